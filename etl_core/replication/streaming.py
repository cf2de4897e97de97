"""The main stream of a pipeline, put together: slot, fence, hand-over, catch-ups, watch, and the worker on top.

One at a time in a process. What the parts promise stands in their own files.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from etl_core.batch import WatermarkMove, WriteBatch
from etl_core.config import PipelineConfig
from etl_core.destination.protocol import Destination
from etl_core.errors import (
    CopyNeeded,
    EtlError,
    PermanentError,
    SlotInUse,
    SourceUnavailable,
    StateConflict,
    StreamBlocked,
)
from etl_core.identifiers import TableId
from etl_core.lsn import ZERO, Lsn
from etl_core.replication.active import ActiveTables
from etl_core.replication.applier import Applier, Reactions
from etl_core.replication.assembler import Assembler
from etl_core.replication.catalog_watch import CatalogWatch
from etl_core.replication.catchup import CatchUp
from etl_core.replication.describe import Describer
from etl_core.replication.failpoints import POSITION_MOVED, reach
from etl_core.replication.handover import Handover
from etl_core.replication.hold import StreamHold
from etl_core.replication.observer import Observer
from etl_core.replication.permission import Permission
from etl_core.replication.rename_writer import RenameWriter
from etl_core.replication.renames import Renames
from etl_core.replication.shaping import Shaping
from etl_core.replication.source import Source
from etl_core.replication.stopped_tables import Keeping, StoppedTables
from etl_core.replication.stream import Streamed, StreamWorker
from etl_core.replication.stream_fence import StreamFence
from etl_core.replication.sync_slots import SyncSlots
from etl_core.replication.watched_boundary import WatchedBoundary
from etl_core.shape.shapes import Shapes
from etl_core.source.fingerprint import Look
from etl_core.source.replication_stream import ReplicationStream
from etl_core.source.server import current_lsn, limit_lock_waits
from etl_core.source.shutdown_watch import ShutdownWatch
from etl_core.source.slot import SlotStatus
from etl_core.state.store import ReplicationProgress, StateStore, TableStatus
from etl_core.state.table_state import TableState

_NEEDS_NO_WAL = frozenset({TableState.INIT, TableState.ERRORED, TableState.PAUSED})


class Streaming:
    """Streams the main slot of one pipeline; `stop` ends it at a transaction boundary."""

    def __init__(
        self,
        config: PipelineConfig,
        source: Source,
        store: StateStore,
        destination: Destination,
        observer: Observer,
        stop: threading.Event,
        watch: CatalogWatch,
        hold: StreamHold,
        shapes: Shapes,
        permission: Permission,
    ) -> None:
        self._config = config
        self._source = source
        self._store = store
        self._destination = destination
        self._observer = observer
        self._stop = stop
        self._watch = watch
        self._hold = hold
        self._shapes = shapes
        self._permission = permission
        self._shaping = Shaping(shapes, store, observer)
        self._write_lock = threading.Lock()

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
        identity = self._store.source_identity()
        if identity is None:
            raise PermanentError("the pipeline was not prepared")
        found = self._look_at_the_catalog()
        progress = self._move_on(self._store.progress())
        start = progress.flushed_lsn if progress else identity.slot_lsn
        active = ActiveTables()
        describer = self._describer(active)
        stream = self._open_main_stream(start)
        try:
            progress = self._store.claim_progress(progress, start)
        except StateConflict:
            # Somebody streamed between our look and our hold of the slot: tables copied meanwhile must not be judged
            # by a position that the slot has already left.
            stream.close()
            raise SlotInUse(f"another process has just streamed {self._config.pipeline}", hint="start again") from None
        except BaseException:
            stream.close()
            raise
        shutdown = ShutdownWatch(lambda: self._source.connect("watch"))
        fence = StreamFence(identity.incarnation, progress.written_lsn)
        keeping = Keeping(
            self._source.keep_changes,
            self._complete_up_to,
            self._source.wal_kept_by,
            self._config.batch.kept_wal,
        )
        reactions = Reactions(lambda table_id, error: handover.table_failed(table_id, error), lambda: handover.reload())
        renames = Renames(active.schema)
        rename_writer = self._rename_writer(renames, active, reactions)
        handover = Handover(
            self._store,
            self._destination,
            active,
            SyncSlots(self._source, self._store, self._observer),
            lambda status, snapshot_lsn, slot: self._begin_catch_up(status, snapshot_lsn, slot, identity.incarnation),
            self._observer,
            StoppedTables(self._store, active, keeping, self._permission.still_waits),
            fence,
            hold=self._hold.look,
            stop=self._stop,
            claim=progress.claim,
            pipeline=self._config.pipeline,
            write_lock=self._write_lock,
            check_copied=self._shaping.check_copied,
            put_aside=renames.put_aside,
            name_taken=rename_writer.look_aside,
        )
        try:
            handover.start(start)
            for table_id, remembered in self._store.fingerprints().items():
                # Of an earlier look, which a stream that ends soon may have passed, as it has not the one of now.
                renames.noted({table_id: remembered.fingerprint.name}, remembered.lsn)
            renames.noted(found.names, found.lsn)
            applier = self._applier(
                active,
                reactions,
                fence=fence,
                renames=rename_writer,
                resumes=progress,
                server_now=stream.server_now,
            )
            assembler = self._assembler(describer, self._config.batch.max_bytes, start)
            shutdown.begin()
            worker = StreamWorker(
                stream,
                assembler,
                applier,
                WatchedBoundary(handover, self._watch),
                self._config.batch,
                name=f"write-{self._config.pipeline}",
                stop=self._stop,
                watch=shutdown,
            )
            self._watch.start(active.schema, renames.noted)
            streamed = worker.run(until=until, seconds=seconds, finishes=finishes)
            self._watch.finish(streamed.lsn)
            return streamed
        except (StreamBlocked, PermanentError) as error:
            self._note_stream_error(error)
            raise
        finally:
            self._watch.close()
            handover.close()
            describer.close()
            shutdown.close()
            stream.close()

    def _note_stream_error(self, error: EtlError) -> None:
        """For `etl status` and `etl doctor`: a run that tries again may be elsewhere, and says it in its log only."""
        with contextlib.suppress(EtlError):
            self._store.save_stream_error(str(error), error.hint, is_permanent=isinstance(error, PermanentError))

    def _complete_up_to(self, table_id: TableId, move: WatermarkMove) -> None:
        with self._write_lock:
            self._destination.write(WriteBatch((), {table_id: move}, None))

    def _look_at_the_catalog(self) -> Look:
        """Before any table is taken in: what the WAL does not say is found here or by the watch while it runs."""
        with contextlib.closing(self._source.connect("catalog_watch")) as connection:
            limit_lock_waits(connection, 1)  # of a table that somebody alters; the look itself may take its time
            found = self._watch.look_now(connection)
        if found.publishing is None:
            raise SourceUnavailable(
                f"publication {self._source.publication} does not exist, so nothing is sent",
                hint="start again, which creates a publication for source.tables, or create it: "
                "every table is then copied again by itself",
            )
        return found

    def _rename_writer(self, renames: Renames, active: ActiveTables, reactions: Reactions) -> RenameWriter:
        return RenameWriter(
            renames,
            self._destination,
            self._store,
            active,
            self._shapes,
            self._observer,
            write_lock=self._write_lock,
            table_failed=reactions.table_failed,
            reload=reactions.reload,
            look_soon=self._watch.wake,
            check_named=self._permission.check_named,
        )

    def _move_on(self, progress: ReplicationProgress | None) -> ReplicationProgress | None:
        """Moves the stored position up to the first change that any table still needs, if it is before that.

        Tables that are to be copied need none of what is there now. Without it the stream could not get past WAL that
        the server cannot decode, as it was written while there was no publication.
        """
        if progress is None:
            return None
        needed = self._needed_from()
        slot = self._source.slot_status(self._source.main_slot)
        if needed <= progress.flushed_lsn or slot is None or slot.active:
            return progress
        try:
            moved = self._store.save_progress(replace(progress, flushed_lsn=needed, lag_seconds=None), progress)
        except StateConflict:
            return self._store.progress()
        reach(POSITION_MOVED)
        return moved

    def _needed_from(self) -> Lsn:
        """The oldest snapshot of a copied table, the end of the WAL if there is none; 0 if it cannot be said."""
        end = self._end_of_wal()  # first: a table that is copied meanwhile is copied from there on
        statuses = [status for status in self._store.tables() if status.state not in _NEEDS_NO_WAL]
        if any(status.state is not TableState.FINISHED_COPY for status in statuses):
            return ZERO
        return min((status.snapshot_lsn or ZERO for status in statuses), default=end)

    def _describer(self, active: ActiveTables) -> Describer:
        return Describer(
            lambda: self._source.connect("describe"),
            self._source.publication,
            active.schema,
            active.watermark,
            self._watch.copied_from,
        )

    def _assembler(self, describer: Describer, memory_limit: int, start: Lsn) -> Assembler:
        return Assembler(
            describer,
            memory_limit=memory_limit,
            start_lsn=start,
            on_truncate=self._watch.truncated,
            announced=describer.announced,
            seals_spool=self._shapes.hides,
        )

    def _open_main_stream(self, start: Lsn) -> ReplicationStream:
        return self._source.open_stream(self._source.main_slot, start, "stream")

    def _applier(
        self,
        active: ActiveTables,
        reactions: Reactions,
        *,
        fence: StreamFence | None,
        renames: RenameWriter | None = None,
        resumes: ReplicationProgress | None = None,
        server_now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> Applier:
        return Applier(
            self._destination,
            self._store,
            active,
            reactions,
            self._observer,
            write_lock=self._write_lock,
            stop=self._stop,
            fence=fence,
            renames=renames,
            shapes=self._shapes,
            followed=self._permission.followed,
            check_permitted=self._permission.check_applied,
            resumes=resumes,
            server_now=server_now,
        )

    def _begin_catch_up(
        self, status: TableStatus, snapshot_lsn: Lsn, slot: SlotStatus, incarnation: str
    ) -> CatchUp | None:
        table_id = status.table_id
        stored = self._store.schema(table_id)
        positions = self._destination.positions()
        mark = positions.tables.get(table_id)
        is_ours = positions.stream is None or positions.stream.incarnation in (incarnation, None)
        if stored is None or mark is None or mark < snapshot_lsn or not is_ours:
            raise CopyNeeded(
                f"{status.name} cannot catch up: its copy is not in the destination",
                table=str(status.name),
                hint=f"was the destination restored or replaced? etl resync {status.name}",
            )
        self._shaping.check_copied(stored[1])
        if slot.confirmed_flush_lsn is None or slot.confirmed_flush_lsn > mark:
            return None
        active = ActiveTables()
        active.activate(table_id, mark, stored[1])
        describer = self._describer(active)

        def table_failed(_: TableId, error: EtlError) -> None:
            raise error

        def reload() -> None:
            found = self._destination.positions().tables.get(table_id)
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
            lambda: self._source.open_stream(slot.name, Lsn(0), f"catchup_{table_id}"),
            lambda start: self._assembler(describer, self._config.batch.max_bytes // 4, start),
            self._applier(active, Reactions(table_failed, reload), fence=None),
            self._config.batch,
            describer.close,
        )

    def _end_of_wal(self) -> Lsn:
        with self._source.connect("prepare") as connection:
            return current_lsn(connection)
