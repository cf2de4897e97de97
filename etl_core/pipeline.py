"""The pipeline: validates, wires the parts together, and runs them until caught up, stopped or failed.

One object per process and pipeline. Everything a command or an orchestrator does goes through its methods.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from etl_core.batch import WatermarkMove, WriteBatch
from etl_core.config import PipelineConfig
from etl_core.destination.protocol import Destination, Positions, SharingDestination, WaitingDestination
from etl_core.destination.registry import build_destination
from etl_core.errors import (
    ConfigError,
    CopyNeeded,
    EtlError,
    PermanentError,
    SlotInUse,
    SourceUnavailable,
    StateConflict,
    StreamBlocked,
    TransientError,
)
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import ZERO, Lsn
from etl_core.replication.active import ActiveTables
from etl_core.replication.applier import Applier, Reactions
from etl_core.replication.assembler import Assembler
from etl_core.replication.background import BackgroundCopies
from etl_core.replication.catalog_watch import CatalogWatch, WatchedBoundary
from etl_core.replication.catchup import CatchUp
from etl_core.replication.compare import Comparison
from etl_core.replication.copy import Copied, TableCopier
from etl_core.replication.describe import Describer
from etl_core.replication.handover import Handover
from etl_core.replication.hold import StreamHold
from etl_core.replication.look import Look
from etl_core.replication.naming import tables_named
from etl_core.replication.observer import Observer
from etl_core.replication.prepare import Preparation
from etl_core.replication.shared_copy import help_copy
from etl_core.replication.source import Source
from etl_core.replication.stopped_tables import Keeping, StoppedTables
from etl_core.replication.stream import Streamed, StreamWorker
from etl_core.replication.stream_fence import StreamFence
from etl_core.replication.sync_slots import SyncSlots
from etl_core.replication.teardown import Teardown, TeardownPlan
from etl_core.replication.verify import Verifier
from etl_core.source.replication_stream import ReplicationStream
from etl_core.source.server import current_lsn
from etl_core.source.shutdown_watch import ShutdownWatch
from etl_core.source.slot import SlotStatus, slot_status
from etl_core.source.table_copy import CopyResult
from etl_core.state.sql_store import open_store
from etl_core.state.store import ReplicationProgress, StateStore, StreamError, TableStatus, TableUpdate
from etl_core.state.table_state import TableState

_LOOK_PATIENCE = 8.0
"""Seconds in which the source and the destination are to answer for `etl status`; they are asked at once."""
_HELD_PATIENCE = 2.0
"""Seconds for which `etl status` waits for a destination that another process holds."""
_PROMOTION_PATIENCE = 10.0
"""Seconds, after the time given is over, for tables that were just copied; the next start promotes them, too."""
_NEEDS_NO_WAL = frozenset({TableState.INIT, TableState.ERRORED, TableState.PAUSED})


@dataclass(frozen=True, slots=True)
class PipelineStatus:
    """What `etl status` shows.

    `slot` is None if it does not exist, or `source_error` says why it is not known; `destination_error` says why the
    watermarks are not.
    """

    tables: Sequence[TableStatus]
    watermarks: dict[TableId, Lsn]
    progress: ReplicationProgress | None
    slot: SlotStatus | None
    source_error: str | None
    destination_error: str | None = None
    stream_error: StreamError | None = None
    """What ended the stream, if it has not gone on since."""
    held_by: str | None = None
    """Who holds the stream at a position, and since when: a comparison that runs."""


@dataclass(frozen=True, slots=True)
class _SourceSeen:
    """What the source said for the status. `copies` are the tables that a process somewhere is copying."""

    slot: SlotStatus | None
    holder: str | None
    copies: frozenset[TableId]


class Pipeline:
    """Replicates the tables of one publication into one destination.

    `stop` may be set from anywhere: what runs then ends at a transaction boundary. A context manager.
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
        self.config = config
        self.observer = observer or Observer()
        self.stop = stop or threading.Event()
        self.store = store or open_store(config.state.url, config.pipeline)
        self.destination = destination or build_destination(
            config.destination.type, config.destination.options, config.pipeline
        )
        self.source = Source(
            config.source.conninfo,
            config.pipeline,
            config.source.publication,
            self.store,
            config.source.silence_timeout,
        )
        self.watch = CatalogWatch(
            lambda: self.source.connect("catalog_watch"),
            config.source.publication,
            self.store,
            self.observer,
            lambda connection: self._preparation.register_new(connection),
        )
        self._preparation = Preparation(
            config, self.source, self.store, self.destination, self.observer, self.stop, self.watch
        )
        if isinstance(self.destination, WaitingDestination):
            self.destination.stop_on(self.stop)
        self._stream_hold = StreamHold(self.source, self.store, self.observer)
        self._write_lock = threading.Lock()
        self._copies = BackgroundCopies(
            self._to_copy,
            lambda status, stop, drain: self._copier(stop, drain=drain).copy_or_fail(status),
            config.copy.workers,
            self.observer,
        )
        self._has_looked = False
        self._drained_at: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends copies in the background, closes the destination and the store. Idempotent."""
        self._copies.stop()
        self.destination.close()
        self.store.close()

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
        tables_to_copy = [status for status in self._to_copy() if wanted is None or status.table_id in wanted]
        return self._copy(tables_to_copy, self.stop, share)

    def _to_copy(self) -> list[TableStatus]:
        """Tables in INIT; failed ones whose time to try again has come, and dead copies, are set back first.

        The first look of a process does not wait for the time that an earlier process set: its cause may be gone, and
        whoever starts a process wants to know.
        """
        self._preparation.reset_dead_copies()
        self._preparation.bring_back_returned()
        now = datetime.now(UTC)
        for status in self.store.tables():
            if status.state is not TableState.ERRORED or status.retry_at is None:
                continue
            if status.sync_slot is not None:
                continue  # its changes are kept, and the stream tries it again
            if status.retry_at <= now or not self._has_looked:
                self._transition(status, TableState.INIT, TableUpdate(attempts=status.attempts))
        self._has_looked = True
        return [status for status in self.store.tables() if status.state is TableState.INIT]

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
        self, stop: threading.Event, share: str | None = None, drain: threading.Event | None = None
    ) -> TableCopier:
        return TableCopier(
            self.source,
            self.store,
            self.destination,
            self.observer,
            workers=self.config.copy.workers,
            connections_per_table=self.config.copy.connections_per_table,
            unknown_types_to_bytes=self.config.unknown_types_to_bytes,
            share=share,
            stop=stop,
            drain=drain,
        )

    # --- streaming --------------------------------------------------------------------------------------------

    def current_lsn(self) -> Lsn:
        """The source's WAL position now: everything committed before is at or before it."""
        with self.source.connect("prepare") as connection:
            return current_lsn(connection)

    def stream(
        self,
        *,
        until: Lsn | None = None,
        seconds: float | None = None,
        finishes: Callable[[], bool] | None = None,
    ) -> Streamed:
        """Streams from the stored position until `until` is reached exactly, for `seconds`, or until stopped.

        After `seconds` it goes on as long as `finishes` says that something under way is still being finished.
        At `until` it waits for the tables that catch up.
        Raises SlotInUse while another consumer has the slot. After `prepare`.
        """
        identity = self.store.source_identity()
        if identity is None:
            raise PermanentError("the pipeline was not prepared")
        self._look_at_the_catalog()
        progress = self._move_on(self.store.progress())
        start = progress.flushed_lsn if progress else identity.slot_lsn
        active = ActiveTables()
        describer = self._describer(active)
        stream = self._open_main_stream(start)
        try:
            progress = self.store.claim_progress(progress, start)
        except StateConflict:
            # Somebody streamed between our look and our hold of the slot: tables copied meanwhile must not be judged
            # by a position that the slot has already left.
            stream.close()
            raise SlotInUse(f"another process has just streamed {self.config.pipeline}", hint="start again") from None
        except BaseException:
            stream.close()
            raise
        shutdown = ShutdownWatch(lambda: self.source.connect("watch"))
        fence = StreamFence(identity.incarnation, progress.written_lsn)
        keeping = Keeping(
            self.source.keep_changes,
            self._complete_up_to,
            self.source.drop_if_owned,
            self.source.wal_kept_by,
            self.config.batch.kept_wal,
        )
        handover = Handover(
            self.store,
            self.destination,
            active,
            SyncSlots(self.source, self.store, self.observer),
            lambda status, snapshot_lsn, slot: self._begin_catch_up(status, snapshot_lsn, slot, identity.incarnation),
            self.observer,
            StoppedTables(self.store, active, keeping),
            fence,
            hold=self._stream_hold.look,
            stop=self.stop,
            claim=progress.claim,
            write_lock=self._write_lock,
        )
        try:
            handover.start(start)
            reactions = Reactions(handover.table_failed, handover.reload)
            applier = self._applier(active, reactions, fence=fence, resumes=progress, server_now=stream.server_now)
            assembler = self._assembler(describer, self.config.batch.max_bytes, start)
            shutdown.begin()
            worker = StreamWorker(
                stream,
                assembler,
                applier,
                WatchedBoundary(handover, self.watch),
                self.config.batch,
                name=f"write-{self.config.pipeline}",
                stop=self.stop,
                watch=shutdown,
            )
            self.watch.start(active.schema)
            streamed = worker.run(until=until, seconds=seconds, finishes=finishes)
            self.watch.finish(streamed.lsn)
            return streamed
        except (StreamBlocked, PermanentError) as error:
            self._note_stream_error(error)
            raise
        finally:
            self.watch.close()
            handover.close()
            describer.close()
            shutdown.close()
            stream.close()

    def _note_stream_error(self, error: EtlError) -> None:
        """For `etl status` and `etl doctor`: a run that tries again may be elsewhere, and says it in its log only."""
        with contextlib.suppress(EtlError):
            self.store.save_stream_error(str(error), error.hint)

    def _complete_up_to(self, table_id: TableId, move: WatermarkMove) -> None:
        with self._write_lock:
            self.destination.write(WriteBatch((), {table_id: move}, None))

    def _look_at_the_catalog(self) -> None:
        """Before any table is taken in: what the WAL does not say is found here or by the watch while it runs."""
        with contextlib.closing(self.watch.connect()) as connection:
            found = self.watch.look_now(connection)
        if found.publishing is None:
            raise SourceUnavailable(
                f"publication {self.source.publication} does not exist, so nothing is sent",
                hint="start again, which creates a publication for source.tables, or create it: "
                "every table is then copied again by itself",
            )

    def _move_on(self, progress: ReplicationProgress | None) -> ReplicationProgress | None:
        """Moves the stored position up to the first change that any table still needs, if it is before that.

        Tables that are to be copied need none of what is there now. Without it the stream could not get past WAL that
        the server cannot decode, as it was written while there was no publication.
        """
        if progress is None:
            return None
        needed = self._needed_from()
        slot = self.source.slot_status(self.source.main_slot)
        if needed <= progress.flushed_lsn or slot is None or slot.active:
            return progress
        try:
            return self.store.save_progress(replace(progress, flushed_lsn=needed, lag_seconds=None), progress)
        except StateConflict:
            return self.store.progress()

    def _needed_from(self) -> Lsn:
        """The oldest snapshot of a copied table, the end of the WAL if there is none; 0 if it cannot be said."""
        end = self.current_lsn()  # first: a table that is copied meanwhile is copied from there on
        statuses = [status for status in self.store.tables() if status.state not in _NEEDS_NO_WAL]
        if any(status.state is not TableState.FINISHED_COPY for status in statuses):
            return ZERO
        return min((status.snapshot_lsn or ZERO for status in statuses), default=end)

    def _describer(self, active: ActiveTables) -> Describer:
        return Describer(
            lambda: self.source.connect("describe"), self.source.publication, active.schema, self.watch.copied_from
        )

    def _assembler(self, describer: Describer, memory_limit: int, start: Lsn) -> Assembler:
        return Assembler(describer, memory_limit=memory_limit, start_lsn=start, on_truncate=self.watch.truncated)

    def _open_main_stream(self, start: Lsn) -> ReplicationStream:
        return self.source.open_stream(self.source.main_slot, start, "stream")

    def _applier(
        self,
        active: ActiveTables,
        reactions: Reactions,
        *,
        fence: StreamFence | None,
        resumes: ReplicationProgress | None = None,
        server_now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> Applier:
        return Applier(
            self.destination,
            self.store,
            active,
            reactions,
            self.observer,
            write_lock=self._write_lock,
            stop=self.stop,
            fence=fence,
            unknown_types_to_bytes=self.config.unknown_types_to_bytes,
            resumes=resumes,
            server_now=server_now,
        )

    def _begin_catch_up(
        self, status: TableStatus, snapshot_lsn: Lsn, slot: SlotStatus, incarnation: str
    ) -> CatchUp | None:
        table_id = status.table_id
        stored = self.store.schema(table_id)
        positions = self.destination.positions()
        mark = positions.tables.get(table_id)
        is_ours = positions.stream is None or positions.stream.incarnation in (incarnation, None)
        if stored is None or mark is None or mark < snapshot_lsn or not is_ours:
            raise CopyNeeded(
                f"{status.name} cannot catch up: its copy is not in the destination",
                table=str(status.name),
                hint=f"was the destination restored or replaced? etl resync {status.name}",
            )
        if slot.confirmed_flush_lsn is None or slot.confirmed_flush_lsn > mark:
            return None
        active = ActiveTables()
        active.activate(table_id, mark, stored[1])
        describer = self._describer(active)

        def table_failed(_: TableId, error: EtlError) -> None:
            raise error

        def reload() -> None:
            found = self.destination.positions().tables.get(table_id)
            if found is None or found < active.watermarks()[table_id]:
                raise CopyNeeded(
                    f"{status.name}: the destination's watermark went back to {found} while it caught up",
                    table=str(status.name),
                    hint=f"was the destination restored or replaced? etl resync {status.name}",
                )
            active.activate(table_id, found, active.schema(table_id) or stored[1])

        return CatchUp(
            table_id,
            snapshot_lsn,
            lambda: self.source.open_stream(slot.name, Lsn(0), f"catchup_{table_id}"),
            lambda start: self._assembler(describer, self.config.batch.max_bytes // 4, start),
            self._applier(active, Reactions(table_failed, reload), fence=None),
            self.config.batch,
            describer.close,
        )

    def run(self, *, seconds: float | None = None) -> Streamed:
        """Copies what needs it and streams, for `seconds` or until stopped; tables stream while others are copied.

        Tables that are set back are copied while it runs. After `seconds` no copy begins, and those under way are
        finished first: a snapshot ends with its session, so one that is given up begins anew the next time, and a time
        that is too short for a table would never have it copied. When it is stopped, copies are given up. After a
        TransientError they go on, so that the caller can run again. After `prepare`.
        """
        self._copies.start()
        try:
            streamed = self.stream(seconds=seconds, finishes=self._finishes_copies)
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
        if self._drained_at is None:
            self._drained_at = time.monotonic()
        is_patient = time.monotonic() - self._drained_at < _PROMOTION_PATIENCE
        return is_patient and any(status.state is TableState.FINISHED_COPY for status in self.store.tables())

    # --- tables -----------------------------------------------------------------------------------------------

    def find(self, name: TableName) -> TableStatus:
        """The status of a table by name, its old or its new one. Raises ConfigError naming the known ones."""
        tables = self.store.tables()
        for status in tables:
            if status.name == name:
                return status
        for status in tables_named(self.store, self.source, name):
            return status
        known = ", ".join(str(status.name) for status in tables[:8]) or "none"
        raise ConfigError(f"{name} is not a table of pipeline {self.config.pipeline}", hint=f"its tables: {known}")

    def resync(self, name: TableName) -> None:
        """Has a table copied again, behind the swap: by a running `run`, or at the next one.

        Both tables if two have swapped names: which one is meant is not to be guessed.
        """
        self.find(name)
        for status in tables_named(self.store, self.source, name):
            if status.state is not TableState.INIT:
                self._transition(status, TableState.INIT)

    def pause(self, name: TableName) -> None:
        """Stops applying a table's changes. Its data stays as it is."""
        status = self.find(name)
        if status.state is not TableState.PAUSED:
            self._transition(status, TableState.PAUSED)

    def resume(self, name: TableName) -> None:
        """Brings a paused or failed table back: it is copied again, as its changes were not kept meanwhile."""
        status = self.find(name)
        if status.state in (TableState.PAUSED, TableState.ERRORED):
            self._transition(status, TableState.INIT)

    def _transition(self, status: TableStatus, to: TableState, update: TableUpdate | None = None) -> TableStatus:
        moved = self.store.transition(status, to, update)
        self.observer.on_state(status.name, to)
        return moved

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

    # --- status and end ---------------------------------------------------------------------------------------

    def status(self) -> PipelineStatus:
        """What is known, without changing anything; a source or destination out of reach is told, not raised."""
        self.store.migrate()
        source = Look("the source", self._look_at_source)
        destination = Look("the destination", self._look_at_destination)
        tables, progress = self.store.tables(), self.store.progress()
        seen = _SourceSeen(None, None, frozenset())
        watermarks: dict[TableId, Lsn] = {}
        source_error = destination_error = None
        try:
            seen = source.answer(_LOOK_PATIENCE)
        except EtlError as error:
            source_error = str(error)
        else:
            # A copy's session is there as long as its state; seen before the states, so that none just begun is missed.
            copied = {t.table_id for t in tables if t.state is TableState.DATA_SYNC} - seen.copies
            if copied:
                tables = [self._if_copy_died(table) if table.table_id in copied else table for table in tables]
        try:
            watermarks = dict(destination.answer(_LOOK_PATIENCE).tables)
        except EtlError as error:
            destination_error = str(error)
        return PipelineStatus(
            tables,
            watermarks,
            progress,
            seen.slot,
            source_error,
            destination_error,
            self.stream_error(),
            seen.holder,
        )

    def _look_at_source(self) -> _SourceSeen:
        with self.source.connect("status") as connection:
            return _SourceSeen(
                slot_status(connection, self.source.main_slot),
                self._stream_hold.describe(connection),
                self.source.running_copies(connection),
            )

    def _look_at_destination(self) -> Positions:
        if isinstance(self.destination, WaitingDestination):
            return self.destination.glance(_HELD_PATIENCE)
        return self.destination.positions()

    def _if_copy_died(self, table: TableStatus) -> TableStatus:
        """As the next start will set it back: nobody copies the table any more, unless its state has just moved."""
        now = self.store.table(table.table_id) or table
        return replace(now, state=TableState.INIT) if now == table else now

    def stream_error(self) -> StreamError | None:
        """What ended the main stream and needs a person, None if it has gone on since."""
        error, progress = self.store.stream_error(), self.store.progress()
        if error is None or progress is None or progress.updated_at is None:
            return error
        return error if error.at >= progress.updated_at else None

    def plan_teardown(self) -> TeardownPlan:
        """What `teardown` would drop on the source, and what it would leave behind."""
        return Teardown(self.source, self.store, self.destination).plan()

    def teardown(self) -> list[str]:
        """Drops the slots and the publication this pipeline created, then forgets its state; says what was dropped.

        The destination keeps its tables. On another cluster nothing is dropped. Raises SlotInUse while a stream runs.
        """
        return Teardown(self.source, self.store, self.destination).run()
