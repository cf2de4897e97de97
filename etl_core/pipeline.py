"""The pipeline: validates, wires the parts together, and runs them until caught up, stopped or failed.

One object per process and pipeline. Everything a command or an orchestrator does goes through its methods; those that
move no rows are in `control`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime

from etl_core.config import PipelineConfig
from etl_core.control import PipelineControl
from etl_core.destination.protocol import Destination, SharingDestination
from etl_core.errors import DestinationError, EtlError, SlotInUse, StateConflict, TransientError
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.replication.background import BackgroundCopies
from etl_core.replication.catalog_watch import CatalogWatch
from etl_core.replication.compare import Comparison
from etl_core.replication.copied import Copied, is_again_alone
from etl_core.replication.copied_before import check_not_another, copied_tables
from etl_core.replication.copy import TableCopier
from etl_core.replication.observer import Observer
from etl_core.replication.permission import Permission
from etl_core.replication.prepare import Preparation
from etl_core.replication.shared_copy import help_copy
from etl_core.replication.stream import Streamed
from etl_core.replication.streaming import Streaming
from etl_core.replication.verify import Verifier
from etl_core.source.server import current_lsn
from etl_core.source.table_copy import CopyResult
from etl_core.state.store import StateStore, TableStatus, TableUpdate
from etl_core.state.table_state import TableState

_PROMOTION_PATIENCE = 10.0
"""Seconds, after the time given is over, for tables that were just copied; the next start promotes them, too."""


class Pipeline(PipelineControl):
    """Replicates the tables of one publication into one destination.

    `stop` may be set from anywhere: what runs then ends at a transaction boundary.
    """

    def __init__(
        self,
        config: PipelineConfig,
        *,
        observer: Observer | None = None,
        stop: threading.Event | None = None,
        store: StateStore | None = None,
        destination: Destination | None = None,
    ) -> None:
        """Opens the state store and the destination from `config`, unless given. Connects to nothing else yet."""
        super().__init__(config, observer=observer, stop=stop, store=store, destination=destination)
        self.watch = CatalogWatch(
            lambda: self.source.connect("catalog_watch"),
            config.source.publication,
            self.store,
            self.observer,
            lambda connection: self._preparation.register_new(connection),
            config.source.selection,
        )
        self._permission = Permission(config, self.store, self.shapes)
        self._preparation = Preparation(
            config,
            self.source,
            self.store,
            self.destination,
            self.observer,
            self.stop,
            self.watch,
            self.shapes,
            self._permission,
        )
        self._streaming = Streaming(
            config,
            self.source,
            self.store,
            self.destination,
            self.observer,
            self.stop,
            self.watch,
            self._stream_hold,
            self.shapes,
            self._permission,
        )
        self._copies = BackgroundCopies(
            self._to_copy,
            lambda tables: self._copier(self.stop, is_repeated=True).bundles(tables),
            lambda bundle, stop, drain: self._copier(stop, drain=drain, is_repeated=True).copy_bundle(bundle),
            config.copy.workers,
            self.observer,
        )
        self._has_looked = False
        self._drained_at: float | None = None
        self._finished: set[TableId] = set()

    def close(self) -> None:
        """Ends copies in the background, closes the destination and the store. Idempotent."""
        self._copies.stop()
        super().close()

    # --- preparing --------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Brings store, destination, publication, main slot and table list into being. Idempotent.

        Raises ConfigError, SourceRefused or SourceChanged; nothing was replicated then.
        """
        self._preparation.prepare()

    # --- copying ----------------------------------------------------------------------------------------------

    def sync(self, tables: Sequence[TableName] | None = None, *, share: str | None = None) -> list[Copied | EtlError]:
        """Copies the tables that have not been copied yet; named ones are copied again, behind the swap.

        With `share`, other processes may help with them by `help_sync` under this token. One result per table, errors
        included. After `prepare`.
        """
        if tables is not None:
            self._preparation.reset_dead_copies()
            for name in tables:
                if self.find(name).state is TableState.DATA_SYNC:
                    raise StateConflict(f"another process is copying {name} now", hint="wait until it has ended")
                self.resync(name)
            wanted = {self.find(name).table_id for name in tables}
        else:
            wanted = None
        return self._copy(self._to_copy(wanted), self.stop, share)

    def sync_all(self) -> list[Copied | EtlError]:
        """Copies every table that is not paused again, behind the swap, also into another destination than before.

        One result per table, errors included. Raises SlotInUse while a stream writes to another destination,
        StateConflict while another process copies. After `prepare`.
        """
        self._preparation.reset_dead_copies()
        copied = copied_tables(self.store)
        try:
            check_not_another(copied, self.destination.positions(), self.config.pipeline)
        except DestinationError:
            slot = self.source.slot_status(self.source.main_slot)
            if slot is not None and slot.active:
                raise SlotInUse(
                    f"pipeline {self.config.pipeline} is streaming into another destination",
                    active_pid=slot.active_pid,
                    hint="stop it first",
                ) from None
        statuses = [status for status in self.store.tables() if status.state is not TableState.PAUSED]
        for status in statuses:
            if status.state is TableState.DATA_SYNC:
                raise StateConflict(f"another process is copying {status.name} now", hint="wait until it has ended")
        for status in statuses:
            if status.state is not TableState.INIT or not status.is_requested:
                self._transition(status, TableState.INIT, TableUpdate(is_requested=True))
        return self._copy(self._to_copy({status.table_id for status in statuses}), self.stop)

    def check_destination(self) -> None:
        """Raises DestinationError if the destination has nothing of what was copied before. After `prepare`."""
        copied = copied_tables(self.store)
        if copied:
            check_not_another(copied, self.destination.positions(), self.config.pipeline)

    def copy(self, status: TableStatus, *, share: str | None = None) -> Copied | EtlError:
        """Copies one table that is in INIT, as `sync` does; from any thread, several at a time. After `prepare`.

        It looks at no other table: `sync` reads the whole list several times for each, which many tables notice.
        """
        return self._copier(self.stop, share).copy_or_fail(status)

    def _to_copy(self, wanted: Collection[TableId] | None = None) -> list[TableStatus]:
        """Tables in INIT; failed ones whose time to try again has come, and dead copies, are set back first.

        With `wanted`, of those alone: the others are the matter of whoever copies them.

        The first look of a process does not wait for the time that an earlier process set: its cause may be gone, and
        whoever starts a process wants to know.
        """
        self._preparation.reset_dead_copies()
        now = datetime.now(UTC)
        for status in self.store.tables():
            if status.state is not TableState.ERRORED or status.retry_at is None:
                continue
            if wanted is not None and status.table_id not in wanted:
                continue
            if status.sync_slot is not None:
                continue  # its changes are kept, and the stream tries it again
            if status.retry_at <= now or not self._has_looked:
                self.copy_later(status)
        self._has_looked = True
        to_copy = [status for status in self.store.tables() if status.state is TableState.INIT]
        return to_copy if wanted is None else [status for status in to_copy if status.table_id in wanted]

    def copy_later(self, status: TableStatus) -> None:
        """Sets a table back to be copied, by the engine itself: policies are asked. Raises StateConflict."""
        why = None if status.is_requested else status.error
        self._transition(status, TableState.INIT, TableUpdate(error=why, attempts=status.attempts))

    def help_sync(self, name: TableName, token: str) -> CopyResult | None:
        """Copies a share of what another process copies now under that token; returns how much.

        None if it offers nothing, or the destination cannot share a copy. Ranges that were not finished go back.
        """
        status = self.find(name)
        offer = self.store.shared_copies.find(status.table_id)
        if offer is None or offer.is_over or offer.token != token:
            return None
        if not isinstance(self.destination, SharingDestination):
            return None
        return help_copy(
            self.source,
            self.store.shared_copies,
            self.destination,
            name,
            offer,
            self.shapes,
            self._permission.kept,
            self.config.copy.connections_per_table,
            lambda rows, size, total: self.observer.on_copy_progress(name, rows, size, total),
            self.stop,
        )

    def _copy(
        self,
        tables: Sequence[TableStatus],
        stop: threading.Event,
        share: str | None = None,
    ) -> list[Copied | EtlError]:
        return self._copier(stop, share).copy_all(tables)

    def _copier(
        self,
        stop: threading.Event,
        share: str | None = None,
        drain: threading.Event | None = None,
        *,
        is_repeated: bool = False,
    ) -> TableCopier:
        return TableCopier(
            self.source,
            self.store,
            self.destination,
            self.observer,
            self.shapes,
            self._permission,
            workers=self.config.copy.workers,
            connections_per_table=self.config.copy.connections_per_table,
            share=share,
            selection=self.config.source.selection,
            stop=stop,
            drain=drain,
            is_repeated=is_repeated,
        )

    # --- streaming --------------------------------------------------------------------------------------------

    def current_lsn(self) -> Lsn:
        """The source's WAL position now: everything committed before is at or before it."""
        with self.source.connect("prepare") as connection:
            return current_lsn(connection)

    def stream(
        self, *, until: Lsn | None = None, seconds: float | None = None, finishes: Callable[[], bool] | None = None
    ) -> Streamed:
        """Streams from the stored position until `until` is reached exactly, for `seconds`, or until stopped.

        After `seconds` it goes on as long as `finishes()`, and to the end of the transaction that is being read. At
        `until` it waits for the tables that catch up. Raises SlotInUse while another consumer has the slot. After
        `prepare`.
        """
        return self._streaming.stream(until=until, seconds=seconds, finishes=finishes)

    def run(self, *, seconds: float | None = None) -> Streamed:
        """Copies what needs it and streams, for `seconds` or until stopped; tables stream while others are copied.

        Tables that are set back are copied while it runs. After `seconds` no copy begins, and those under way are
        finished first: a snapshot ends with its session, so one that is given up begins anew the next time, and a time
        that is too short for a table would never have it copied. When it is stopped, copies are given up. After a
        TransientError they go on, so that the caller can run again. After `prepare`. Raises DestinationError, before
        anything is copied, if the destination has nothing of what was copied before.
        """
        self.check_destination()
        self._copies.start()
        self._finished = set()
        try:
            streamed = self._streaming.stream(seconds=seconds, finishes=self._finishes_copies)
        except TransientError:
            raise  # the caller streams again; what is being copied goes on meanwhile
        except BaseException:
            self._copies.stop()
            raise
        self._copies.stop()
        return streamed

    def _finishes_copies(self) -> bool:
        """Whether a copy is still being made now that the time is over, or was just made and is to be promoted."""
        if self._copies.drain():
            self._drained_at = None
            self.observer.on_waiting("the time is over: finishing the copies that are under way; waiting for them")
            return True
        again = [one for one in self.store.tables() if is_again_alone(one) and one.table_id not in self._finished]
        if again:  # they were copied in a group, under way when the time was over
            self._finished |= {status.table_id for status in again}
            drain = threading.Event()
            drain.set()
            self._copies.finish(again, lambda status, stop: self._copier(stop, drain=drain).finish_or_fail(status))
            return True
        if self._drained_at is None:
            self._drained_at = time.monotonic()
        is_patient = time.monotonic() - self._drained_at < _PROMOTION_PATIENCE
        return is_patient and any(status.state is TableState.FINISHED_COPY for status in self.store.tables())

    # --- proof ------------------------------------------------------------------------------------------------

    def verify(self, tables: Sequence[TableName] | None = None) -> list[Comparison]:
        """Compares source and destination at one LSN, table by table. After `prepare`.

        If nobody streams, this streams up to that LSN; a stream that runs elsewhere is held there meanwhile.
        """
        statuses = [self.find(name) for name in tables] if tables is not None else list(self.store.tables())
        verifier = Verifier(
            self.source,
            self.store,
            self.destination,
            self.observer,
            self.shapes,
            stream_to=lambda lsn: self.stream(until=lsn),
            current_lsn=self.current_lsn,
            connections=self.config.copy.connections_per_table,
            stop=self.stop,
        )
        self._stream_hold.is_told = False
        try:
            return verifier.verify(statuses)
        finally:
            self._stream_hold.is_told = True
