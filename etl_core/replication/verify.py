"""Proof that the destination equals the source, at one LSN.

A temporary slot is created for its exported snapshot, which holds exactly the transactions that end at or before the
slot's consistent point. The stream is brought to that very position and kept there while both sides are read: a hold in
the state store asks for it, whoever streams. If nobody does, we stream there ourselves.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from etl_core.destination.protocol import Destination
from etl_core.errors import SlotInUse, SourceUnavailable, Stopped, TransientError
from etl_core.identifiers import TableId
from etl_core.lsn import ZERO, Lsn
from etl_core.replication.compare import Comparison
from etl_core.replication.compare_tables import TableComparer, not_compared
from etl_core.replication.hold import holding, place_hold
from etl_core.replication.observer import Observer
from etl_core.replication.source import Source
from etl_core.replication.stream import Ended, Streamed
from etl_core.shape.shapes import Shapes
from etl_core.source.catalog import published_tables
from etl_core.source.slot import Blocker
from etl_core.source.snapshot_connections import SnapshotConnections
from etl_core.state.store import StateStore, TableStatus
from etl_core.state.table_state import TableState

_POLL = 0.2
_HOLD_PATIENCE = 120.0
"""Seconds to wait for a running stream to reach the position: it may be far behind."""
_SNAPSHOTS = 3
"""How many are taken at most: a table that was beyond the first goes with the stream when the next is taken."""
_CATCHING_UP = (TableState.FINISHED_COPY, TableState.SYNC_DONE)
"""Tables in these states may be ahead of the stream."""


@dataclass(frozen=True, slots=True)
class _Found:
    """The states of all tables, and how far the destination has each."""

    statuses: Mapping[TableId, TableStatus]
    watermarks: Mapping[TableId, Lsn]

    def of(self, table: TableStatus) -> tuple[int, Lsn | None] | None:
        """What changes when the table is written; None if it is gone."""
        status = self.statuses.get(table.table_id)
        return None if status is None else (status.version, self.watermarks.get(table.table_id))


class Verifier:
    """Compares tables of one pipeline. `stream_to` streams until exactly the given position, when nobody else does."""

    def __init__(
        self,
        source: Source,
        store: StateStore,
        destination: Destination,
        observer: Observer,
        shapes: Shapes,
        *,
        stream_to: Callable[[Lsn], Streamed],
        current_lsn: Callable[[], Lsn],
        connections: int,
        stop: threading.Event,
    ) -> None:
        self._source = source
        self._store = store
        self._destination = destination
        self._observer = observer
        self._shapes = shapes
        self._stream_to = stream_to
        self._current_lsn = current_lsn
        self._connections = connections
        self._stop = stop

    def verify(self, tables: Sequence[TableStatus]) -> list[Comparison]:
        """One comparison a table, all at one LSN; a table that is not streaming is reported with that problem.

        Raises StateConflict while another process compares, Stopped if it was stopped before everything was compared.
        """
        try:
            return self._verify(tables)
        except Stopped:
            raise Stopped("stopped before every table was compared; nothing was changed") from None

    def _verify(self, tables: Sequence[TableStatus]) -> list[Comparison]:
        with self._held() as bring_to:
            waiting = any(status.state in _CATCHING_UP for status in self._store.tables())
            if waiting or self._is_streamed():
                # Nothing passes the position to compare at: what catches up goes with the stream, which waits.
                bring_to(self._current_lsn())
            tries = 0
            while True:
                with self._source.exported_snapshot("verify", on_wait=self._on_wait, stop=self._stop) as snapshot:
                    if snapshot.snapshot_name is None:
                        raise SourceUnavailable("the server exported no snapshot to compare with")
                    lsn = snapshot.consistent_point
                    bring_to(lsn)
                    tries += 1
                    found = self._look()
                    if tries == _SNAPSHOTS or not self._is_passed(tables, found.watermarks, lsn):
                        return self._compare_all(tables, found, snapshot.snapshot_name, lsn)

    def _is_passed(self, tables: Sequence[TableStatus], watermarks: Mapping[TableId, Lsn], lsn: Lsn) -> bool:
        """Whether a table has passed `lsn`: one that caught up until now, and goes with the stream from here on."""
        return any(watermarks.get(table.table_id, ZERO) > lsn for table in tables)

    def _on_wait(self, blockers: Sequence[Blocker]) -> None:
        self._observer.on_waiting(f"the snapshot waits for {'; '.join(map(str, blockers))}")

    def _compare_all(self, tables: Sequence[TableStatus], found: _Found, snapshot: str, lsn: Lsn) -> list[Comparison]:
        with self._source.connect("catalog") as connection:
            published = {t.schema.table_id: t for t in published_tables(connection, self._source.publication)}
        statuses = [found.statuses.get(table.table_id, table) for table in tables]
        with SnapshotConnections(lambda: self._source.connect("verify"), snapshot, keeps=True) as connections:
            comparer = TableComparer(
                connections,
                self._store,
                self._destination,
                self._observer,
                self._shapes,
                connections=self._connections,
                stop=self._stop,
            )
            comparisons = comparer.compare_all(statuses, published, found.watermarks, lsn)
        # A copy began meanwhile, or the hold ended because its session was lost: what was read is of several moments.
        after = self._look()
        for table in tables:
            if found.of(table) is None or found.of(table) != after.of(table):
                comparisons[table.table_id] = not_compared(table, lsn, "it was written meanwhile: try again")
        return [comparisons[table.table_id] for table in tables]

    def _look(self) -> _Found:
        """States and watermarks, the states first: a table that is copied again has another version afterwards."""
        statuses = {status.table_id: status for status in self._store.tables()}
        return _Found(statuses, self._destination.positions().tables)

    # --- holding the stream -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _held(self) -> Iterator[Callable[[Lsn], None]]:
        """Gives a call that brings the stream to an LSN and holds it there, and any that begins after that."""
        with holding(self._source, self._store) as owner:

            def bring_to(lsn: Lsn) -> None:
                place_hold(self._store, owner, lsn)
                self._wait_reached(owner, lsn)

            yield bring_to

    def _is_streamed(self) -> bool:
        main = self._source.slot_status(self._source.main_slot)
        return main is not None and main.active

    def _wait_reached(self, owner: str, lsn: Lsn) -> None:
        """Waits for the running stream to come to `lsn` and stand there; if none runs, streams up to it."""
        deadline = time.monotonic() + _HOLD_PATIENCE
        while time.monotonic() < deadline:
            hold = self._store.hold()
            if hold is not None and hold.owner == owner and hold.reached is not None and hold.reached >= lsn:
                return
            if not self._is_streamed():
                with contextlib.suppress(SlotInUse):  # a stream has just begun; it is held
                    if self._stream_to(lsn).ended is not Ended.REACHED:
                        raise Stopped("stopped on the way to the position to compare at")
                    return
            if self._stop.wait(_POLL):
                raise Stopped("stopped while waiting for the running stream")
        raise TransientError(
            "the running stream did not come to the position to compare at within two minutes",
            hint="etl status shows how far it is behind; try again when it has caught up",
        )
