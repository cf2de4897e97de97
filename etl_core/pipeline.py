"""The pipeline: validates, wires the parts together, and runs them until caught up, stopped or failed.

One object per process and pipeline. Everything a command or an orchestrator does goes through its methods.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from etl_core.config import PipelineConfig
from etl_core.destination.protocol import Destination, SharingDestination
from etl_core.destination.registry import build_destination
from etl_core.errors import (
    ConfigError,
    EtlError,
    PermanentError,
    SlotInUse,
    SourceUnavailable,
    StateConflict,
    StreamBlocked,
    TableError,
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
from etl_core.replication.handover import Handover, SyncSlots
from etl_core.replication.observer import Observer
from etl_core.replication.prepare import Preparation
from etl_core.replication.shared_copy import help_copy
from etl_core.replication.source import Source
from etl_core.replication.stream import Streamed, StreamWorker
from etl_core.replication.verify import Verifier
from etl_core.source.publication import drop_publication
from etl_core.source.replication_stream import ReplicationStream
from etl_core.source.server import current_lsn
from etl_core.source.slot import SlotStatus
from etl_core.source.table_copy import CopyResult
from etl_core.state.sql_store import open_store
from etl_core.state.store import ReplicationProgress, StateStore, StreamError, TableStatus, TableUpdate
from etl_core.state.table_state import TableState

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
            lambda: self.source.connect("watch"),
            config.source.publication,
            self.store,
            self.observer,
            lambda connection: self._preparation.register_new(connection),
        )
        self._preparation = Preparation(
            config, self.source, self.store, self.destination, self.observer, self.stop, self.watch
        )
        self._write_lock = threading.Lock()
        self._copies = BackgroundCopies(lambda stop: self._copy(self._to_copy(), stop), self.observer)

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
        """Tables in INIT; failed ones whose time to try again has come, and dead copies, are set back first."""
        self._preparation.reset_dead_copies()
        now = datetime.now(UTC)
        for status in self.store.tables():
            if status.state is TableState.ERRORED and status.retry_at is not None and status.retry_at <= now:
                self._transition(status, TableState.INIT, TableUpdate(attempts=status.attempts))
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
        self, tables: Sequence[TableStatus], stop: threading.Event, share: str | None = None
    ) -> list[Copied | EtlError]:
        copier = TableCopier(
            self.source,
            self.store,
            self.destination,
            self.observer,
            workers=self.config.copy.workers,
            connections_per_table=self.config.copy.connections_per_table,
            unknown_types_to_bytes=self.config.unknown_types_to_bytes,
            share=share,
            stop=stop,
        )
        return copier.copy_all(tables)

    # --- streaming --------------------------------------------------------------------------------------------

    def current_lsn(self) -> Lsn:
        """The source's WAL position now: everything committed before is at or before it."""
        with self.source.connect("prepare") as connection:
            return current_lsn(connection)

    def stream(self, *, until: Lsn | None = None, seconds: float | None = None) -> Streamed:
        """Streams from the stored position until `until` is reached exactly, for `seconds`, or until stopped.

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
        handover = Handover(
            self.store,
            self.destination,
            active,
            SyncSlots(self.source.existing_owned_slots, self.source.drop_if_owned),
            self._begin_catch_up,
            self.observer,
        )
        try:
            handover.start(start, progress.written_lsn if progress else None)
            reactions = Reactions(handover.table_failed, handover.reload)
            applier = self._applier(active, reactions, is_main=True, resumes=progress)
            assembler = self._assembler(describer, self.config.batch.max_bytes, start)
            worker = StreamWorker(
                stream,
                assembler,
                applier,
                WatchedBoundary(handover, self.watch),
                self.config.batch,
                name=f"write-{self.config.pipeline}",
                stop=self.stop,
            )
            self.watch.start(active.schema)
            streamed = worker.run(until=until, seconds=seconds)
            self.watch.finish(streamed.lsn)
            return streamed
        except (StreamBlocked, PermanentError) as error:
            self._note_stream_error(error)
            raise
        finally:
            self.watch.close()
            handover.close()
            describer.close()
            stream.close()

    def _note_stream_error(self, error: EtlError) -> None:
        """For `etl status` and `etl doctor`: a run that tries again may be elsewhere, and says it in its log only."""
        with contextlib.suppress(EtlError):
            self.store.save_stream_error(str(error), error.hint)

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
        is_main: bool,
        resumes: ReplicationProgress | None = None,
    ) -> Applier:
        return Applier(
            self.destination,
            self.store,
            active,
            reactions,
            self.observer,
            write_lock=self._write_lock,
            stop=self.stop,
            is_main=is_main,
            unknown_types_to_bytes=self.config.unknown_types_to_bytes,
            resumes=resumes,
        )

    def _begin_catch_up(self, status: TableStatus, snapshot_lsn: Lsn) -> CatchUp:
        table_id, slot = status.table_id, status.sync_slot
        stored = self.store.schema(table_id)
        mark = self.destination.positions().tables.get(table_id)
        if stored is None or mark is None or slot is None or mark < snapshot_lsn:
            raise TableError(
                f"{status.name} cannot catch up: its copy is incomplete",
                table=str(status.name),
                hint=f"etl resync {status.name}",
            )
        active = ActiveTables()
        active.activate(table_id, mark, stored[1])
        describer = self._describer(active)

        def table_failed(_: TableId, error: EtlError) -> None:
            raise error

        def reload() -> None:
            marks = self.destination.positions().tables
            active.activate(table_id, marks.get(table_id, snapshot_lsn), active.schema(table_id) or stored[1])

        return CatchUp(
            table_id,
            snapshot_lsn,
            lambda: self.source.open_stream(slot, Lsn(0), f"catchup_{table_id}"),
            lambda start: self._assembler(describer, self.config.batch.max_bytes // 4, start),
            self._applier(active, Reactions(table_failed, reload), is_main=False),
            self.config.batch,
            describer.close,
        )

    def run(self, *, seconds: float | None = None) -> Streamed:
        """Copies what needs it and streams, for `seconds` or until stopped; tables stream while others are copied.

        Tables that are set back are copied while it runs; when it ends, copies that are not finished are given up and
        begin anew the next time. After a TransientError they go on, so that the caller can run again. After `prepare`.
        """
        self._copies.start()
        try:
            streamed = self.stream(seconds=seconds)
        except TransientError:
            raise  # the caller streams again; what is being copied goes on meanwhile
        except BaseException:
            self._copies.stop()
            raise
        self._copies.stop()
        return streamed

    # --- tables -----------------------------------------------------------------------------------------------

    def find(self, name: TableName) -> TableStatus:
        """The status of a table by name. Raises ConfigError naming the known ones."""
        tables = self.store.tables()
        for status in tables:
            if status.name == name:
                return status
        known = ", ".join(str(status.name) for status in tables[:8]) or "none"
        raise ConfigError(f"{name} is not a table of pipeline {self.config.pipeline}", hint=f"its tables: {known}")

    def resync(self, name: TableName) -> None:
        """Has a table copied again, behind the swap: by a running `run`, or at the next one."""
        status = self.find(name)
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
        return verifier.verify(statuses)

    # --- status and end ---------------------------------------------------------------------------------------

    def status(self) -> PipelineStatus:
        """What is known, without changing anything; a source or destination out of reach is told, not raised."""
        self.store.migrate()
        tables, progress = self.store.tables(), self.store.progress()
        slot, source_error = None, None
        try:
            slot = self.source.slot_status(self.source.main_slot)
        except EtlError as error:
            source_error = str(error)
        watermarks: dict[TableId, Lsn] = {}
        destination_error = None
        try:
            watermarks = dict(self.destination.positions().tables)
        except EtlError as error:
            destination_error = str(error)
        stream_error = self.stream_error()
        return PipelineStatus(tables, watermarks, progress, slot, source_error, destination_error, stream_error)

    def stream_error(self) -> StreamError | None:
        """What ended the main stream and needs a person, None if it has gone on since."""
        error, progress = self.store.stream_error(), self.store.progress()
        if error is None or progress is None or progress.updated_at is None:
            return error
        return error if error.at >= progress.updated_at else None

    def teardown(self) -> list[str]:
        """Drops the slots and the publication this pipeline created, then forgets its state; says what was dropped.

        The destination keeps its tables. Raises SlotInUse while somebody streams.
        """
        main = self.source.slot_status(self.source.main_slot)
        if main is not None and main.active:
            raise SlotInUse(
                f"pipeline {self.config.pipeline} is streaming", active_pid=main.active_pid, hint="stop it first"
            )
        dropped = []
        for owned in self.store.owned_slots():
            self.source.drop_owned_slot(owned.name)
            dropped.append(f"replication slot {owned.name}")
        if self.store.publication_owned():
            with self.source.connect("teardown") as connection:
                drop_publication(connection, self.source.publication)
            dropped.append(f"publication {self.source.publication}")
        for status in self.store.tables():
            self.destination.forget(status.table_id)
        self.store.clear()
        return dropped
