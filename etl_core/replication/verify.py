"""Proof that the destination equals the source, at one LSN.

A slot is created for its exported snapshot: the snapshot holds exactly the transactions that end at or before the
slot's consistent point. The stream is brought to that very position and kept there while both sides are read. If
another process streams, it is asked to hold through the state store; else we stream there ourselves.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from etl_core.destination.protocol import Destination
from etl_core.errors import SourceUnavailable, StateConflict, TableError, TransientError
from etl_core.lsn import Lsn
from etl_core.replication.compare import Comparison, Scan, Sink, compare, scan_of
from etl_core.replication.observer import Observer
from etl_core.replication.source import Source
from etl_core.source.catalog import PublishedTable, published_table
from etl_core.source.table_copy import copy_table
from etl_core.state.store import Hold, StateStore, TableStatus
from etl_core.state.table_state import TableState

_HOLD_FOR = timedelta(seconds=60)
_RENEW_EVERY = 15.0
_POLL = 0.2
_HOLD_PATIENCE = 120.0
"""Seconds to wait for a running stream to reach the position: it may be far behind."""


class Verifier:
    """Compares tables of one pipeline. `stream_to` streams until exactly the given position, when nobody else does."""

    def __init__(
        self,
        source: Source,
        store: StateStore,
        destination: Destination,
        observer: Observer,
        *,
        stream_to: Callable[[Lsn], object],
        current_lsn: Callable[[], Lsn],
        connections: int,
        stop: threading.Event,
    ) -> None:
        self._source = source
        self._store = store
        self._destination = destination
        self._observer = observer
        self._stream_to = stream_to
        self._current_lsn = current_lsn
        self._connections = connections
        self._stop = stop

    def verify(self, tables: Sequence[TableStatus]) -> list[Comparison]:
        """One comparison a table, all at one LSN; a table that is not streaming is reported with that problem."""
        main = self._source.slot_status(self._source.main_slot)
        is_streamed = main is not None and main.active
        if not is_streamed:
            # Tables that still catch up may pass the position to compare at: they are taken in before there is one.
            self._stream_to(self._current_lsn())
        held = self._held() if is_streamed else contextlib.nullcontext(self._stream_to)
        slot = f"{self._source.main_slot}_verify"
        with held as bring_to:
            try:
                with self._source.connect("verify", replication=True) as exporter:
                    created = self._source.create_slot(
                        exporter,
                        slot,
                        None,
                        export_snapshot=True,
                        on_wait=lambda who: self._observer.on_waiting(
                            f"the snapshot waits for {'; '.join(map(str, who))}"
                        ),
                        stop=self._stop,
                    )
                    if created.snapshot_name is None:
                        raise SourceUnavailable("the server exported no snapshot to compare with")
                    bring_to(created.consistent_point)
                    return self._compare_all(tables, created.snapshot_name, created.consistent_point)
            finally:
                self._source.drop_owned_slot(slot)

    def _compare_all(self, tables: Sequence[TableStatus], snapshot: str, lsn: Lsn) -> list[Comparison]:
        # The states first: a table that is copied again meanwhile has another version afterwards.
        now = {status.table_id: status for status in self._store.tables()}
        watermarks = self._destination.positions().tables
        return [
            self._compare(now.get(table.table_id, table), watermarks.get(table.table_id), snapshot, lsn)
            for table in tables
        ]

    def _compare(self, status: TableStatus, watermark: Lsn | None, snapshot: str, lsn: Lsn) -> Comparison:
        if status.state is not TableState.READY:
            return not_compared(status, lsn, f"it is in state {status.state.name}")
        if watermark is None or watermark > lsn:
            return not_compared(status, lsn, f"the destination has it as of {watermark}: try again")
        try:
            comparison = replace(self._compare_ready(status, snapshot, lsn), lsn=lsn)
        except TableError as error:
            return not_compared(status, lsn, str(error))
        after = self._store.table(status.table_id)
        if after is None or after.version != status.version:
            return not_compared(status, lsn, "its state has changed meanwhile: try again")
        return comparison

    def _compare_ready(self, status: TableStatus, snapshot: str, lsn: Lsn) -> Comparison:
        with self._source.connect("catalog") as connection:
            table = published_table(connection, status.table_id, self._source.publication)
        stored = self._store.schema(status.table_id)
        if table is None or stored is None or table.schema.column_names != stored[1].column_names:
            return not_compared(status, lsn, "the source's columns have changed since the last row change")
        schema = table.schema
        return compare(
            status.name, schema.key, self._scan_source(table, snapshot), scan_of(lambda: self._destination.read(schema))
        )

    def _scan_source(self, table: PublishedTable, snapshot: str) -> Scan:
        def scan(sink: Sink) -> None:
            copy_table(
                lambda: self._source.connect("verify"),
                snapshot,
                table,
                self._connections,
                sink,
                lambda _rows, _size, _total: None,
                self._stop,
            )

        return scan

    # --- holding a stream that runs elsewhere -----------------------------------------------------------------

    @contextlib.contextmanager
    def _held(self) -> Iterator[Callable[[Lsn], object]]:
        owner = f"verify-{socket.gethostname()}-{os.getpid()}"
        wanted: list[Lsn | None] = [None]
        released = threading.Event()

        def request() -> None:
            self._store.request_hold(Hold(owner, datetime.now(UTC) + _HOLD_FOR, wanted[0]))

        def renew() -> None:
            while not released.wait(_RENEW_EVERY):
                with contextlib.suppress(TransientError, StateConflict):
                    request()

        def bring_to(lsn: Lsn | None) -> None:
            wanted[0] = lsn
            request()
            self._wait_reached(owner, lsn)

        renewing = threading.Thread(target=renew, name="verify-hold", daemon=True)
        renewing.start()
        try:
            bring_to(None)
            yield bring_to
        finally:
            released.set()
            renewing.join()
            self._store.release_hold(owner)

    def _wait_reached(self, owner: str, lsn: Lsn | None) -> None:
        deadline = time.monotonic() + _HOLD_PATIENCE
        while time.monotonic() < deadline:
            hold = self._store.hold()
            if (
                hold is not None
                and hold.owner == owner
                and hold.reached is not None
                and hold.reached >= (lsn or hold.reached)
            ):
                return
            if self._stop.wait(_POLL):
                raise TransientError("stopped while waiting for the running stream")
        raise TransientError(
            "the running stream did not come to the position to compare at within two minutes",
            hint="etl status shows how far it is behind; try again when it has caught up",
        )


def not_compared(status: TableStatus, lsn: Lsn, problem: str) -> Comparison:
    """The outcome for a table that could not be compared."""
    return Comparison(status.name, 0, 0, "", is_equal=False, problem=f"not compared: {problem}", lsn=lsn)
