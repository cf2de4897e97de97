"""The initial copy of tables: each under its own exported snapshot, published behind a swap, then handed over.

A sync slot is created with the snapshot and keeps the changes made since, for the case that the main stream passes
the snapshot before the table is taken in. Where that cannot happen the slot is dropped at once: slots are scarce, and
each one keeps WAL. It cannot happen if, *after* FINISHED_COPY is stored, nobody streams the main slot and the stored
progress has not passed the snapshot: a stream that starts later reads the table states after it has got hold of the
slot, and takes the table in first.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

from etl_core.destination.protocol import (
    Destination,
    SharedCopy,
    TableCopy,
)
from etl_core.errors import (
    DecisionNeeded,
    EtlError,
    SlotInUse,
    StateConflict,
    Stopped,
    TableError,
    TransientError,
    where,
)
from etl_core.identifiers import TableId
from etl_core.lsn import Lsn
from etl_core.os_errors import explain_os_error
from etl_core.replication.copied import Copied
from etl_core.replication.copy_description import CopyDescriptions, Described
from etl_core.replication.copy_publish import CopyEnd
from etl_core.replication.failpoints import (
    COPY_FINISHED,
    COPY_PUBLISHED,
    COPY_STAGED,
    COPY_STARTED,
    SLOT_CREATED,
    reach,
)
from etl_core.replication.group_copy import GroupCopy, changed_in_group, find_groups
from etl_core.replication.observer import Observer
from etl_core.replication.permission import Permission
from etl_core.replication.repeated_copies import AT_ONCE, copies_for
from etl_core.replication.shaping import Shaping
from etl_core.replication.shared_copy import SharedRanges, layout_of, live_helpers
from etl_core.replication.source import Source
from etl_core.replication.table_errors import failed_update, retry_time
from etl_core.shape.shape import Shape
from etl_core.shape.shapes import Shapes
from etl_core.source.catalog import published_table
from etl_core.source.connection import Connection
from etl_core.source.copy_ranges import Plan, all_into
from etl_core.source.slot import Blocker, CreatedSlot
from etl_core.source.snapshot_connections import SnapshotConnections
from etl_core.source.table_copy import CopyResult, copy_table
from etl_core.state.shared_copy import CopyOffer
from etl_core.state.store import Remembered, StateStore, TableStatus, TableUpdate
from etl_core.state.table_state import TableState
from etl_core.table_pattern import TableSelection

_log = logging.getLogger(__name__)

RETRY_AFTER = timedelta(seconds=30)
_SLOTS = 8
"""How many copied tables may wait for the stream to take them in before the next copy begins."""
_SLOT_WAIT = 0.2


class TableCopier:
    """Copies tables of one pipeline; several at a time, each over several connections."""

    def __init__(
        self,
        source: Source,
        store: StateStore,
        destination: Destination,
        observer: Observer,
        shapes: Shapes,
        permission: Permission,
        *,
        workers: int,
        connections_per_table: int,
        share: str | None,
        selection: TableSelection | None = None,
        stop: threading.Event,
        drain: threading.Event | None = None,
        is_repeated: bool = False,
    ) -> None:
        """When `drain` is set no copy begins, and one that still waits for its snapshot is given up.

        With `share`, other processes may help with copies under this token, where the destination can do that. When
        `is_repeated` the caller looks for tables to copy again and again, and so for those that a stream sets back.
        """
        self._source = source
        self._store = store
        self._destination = destination
        self._observer = observer
        self._shapes = shapes
        self._shaping = Shaping(shapes, store, observer)
        self._permission = permission
        self._workers = workers
        self._connections = connections_per_table
        self._share = share
        self._stop = stop
        self._drain = drain or threading.Event()
        self._is_repeated = is_repeated
        self._descriptions = CopyDescriptions(source, store, destination, shapes, permission, selection, stop)

    def copy_all(self, tables: Sequence[TableStatus]) -> list[Copied | EtlError]:
        """Copies tables that are in INIT, `workers` at a time; one result a table. One that fails becomes ERRORED."""
        with ThreadPoolExecutor(self._workers, thread_name_prefix="copy") as pool:
            outcomes: dict[TableId, Copied | EtlError] = {}
            for bundle in pool.map(self.copy_bundle, self.bundles(tables)):
                outcomes |= bundle
        return [outcomes[status.table_id] for status in tables]

    def bundles(self, tables: Sequence[TableStatus]) -> list[Sequence[TableStatus]]:
        """The tables, which are in INIT, in groups to be copied together, and those alone that are not small."""
        single = self._share is not None or not (self._is_repeated or self._is_handed_over())
        groups = [] if single else find_groups(self._source, self._permission, tables, self._workers)
        grouped = {status.table_id for group in groups for status in group}
        return [*([status] for status in tables if status.table_id not in grouped), *groups]

    def copy_bundle(self, tables: Sequence[TableStatus]) -> dict[TableId, Copied | EtlError]:
        """Copies one of `bundles`: what cannot be copied with the others is copied alone. As `copy_or_fail`."""
        outcomes: dict[TableId, Copied | EtlError] = {}
        alone = tables
        if len(tables) > 1 and not (self._stop.is_set() or self._drain.is_set()):
            group = GroupCopy(
                self._source,
                self._store,
                self._destination,
                self._observer,
                self._shapes,
                self._descriptions,
                stop=self._stop,
                on_wait=self._on_wait,
            )
            outcomes, alone = group.copy(tables)
            if not self._is_repeated:
                alone += self._set_back(outcomes)
        return outcomes | {status.table_id: self.copy_or_fail(status) for status in alone}

    def _set_back(self, outcomes: Mapping[TableId, Copied | EtlError]) -> list[TableStatus]:
        """Those of a group, in INIT, that a stream which began meanwhile may set back, or has: nothing kept changes.

        Whoever copies once would leave them so.
        """
        copied = {table_id: one for table_id, one in outcomes.items() if isinstance(one, Copied)}
        if not copied or self._is_handed_over(min(one.snapshot_lsn for one in copied.values())):
            return []
        again = []
        for table_id in copied:
            status = self._store.table(table_id)
            if status is not None and status.state is TableState.FINISHED_COPY and status.sync_slot is None:
                with contextlib.suppress(StateConflict):  # the stream has taken it in
                    again.append(self._move(status, TableState.INIT, changed_in_group(status)))
            elif status is not None and status.state is TableState.INIT:
                again.append(status)
        return again

    def copy_or_fail(self, status: TableStatus) -> Copied | EtlError:
        """Copies one table that is in INIT; returns the error of one that fails, which becomes ERRORED."""
        if self._stop.is_set() or self._drain.is_set():
            return TransientError(f"{status.name} was not copied: stopped before its turn")
        return self.finish_or_fail(status)

    def finish_or_fail(self, status: TableStatus) -> Copied | EtlError:
        """As `copy_or_fail`, also after `drain`: of a table whose copy had begun, and has to be made again."""
        started = time.monotonic()
        repeated = self._wait_if_repeated(status)
        if repeated is not None:
            return repeated
        slot = self._source.new_sync_slot(status.table_id)
        try:
            return self._copy(status, slot)
        except StateConflict as error:
            return error  # somebody else copies the table, or has decided otherwise: theirs to fail or finish
        except EtlError as error:
            if self._stop.is_set() or isinstance(error, Stopped):
                self._give_up(status)
            else:
                self._fail(status, slot, error, time.monotonic() - started)
            return error
        except Exception as error:
            expected = explain_os_error(error)
            if expected is not None:
                self._fail(status, slot, expected, time.monotonic() - started)
                return expected
            # The copies of other tables go on. Its text is left out: it may quote a row.
            _log.error("the copy of %s ended with %s\n%s", status.name, type(error).__name__, where(error))
            unexpected = TableError(
                f"the copy of {status.name} ended with an error that nobody expected: {type(error).__name__}",
                table=str(status.name),
                hint=f"the log says where; report it, and try again: etl resync {status.name}",
            )
            self._fail(status, slot, unexpected, time.monotonic() - started)
            return unexpected

    def _wait_if_repeated(self, status: TableStatus) -> EtlError | None:
        """Has a table that was just set back wait if new copies for that reason did not help; the error it has then."""
        if status.is_requested or status.attempts or status.error is None:
            return None
        count = copies_for(status.error, self._store.history(status.table_id))
        if count <= AT_ONCE:
            return None
        error = TableError(
            f"{status.error}; {count - 1} copies for this reason did not help, so the next one waits",
            table=str(status.name),
            hint=f"it is copied by itself, ever less often; to have it copied now: etl resync {status.name}",
        )
        retry_at = retry_time(RETRY_AFTER, count - AT_ONCE)
        update = TableUpdate(error=str(error), hint=error.hint, attempts=count - 1, retry_at=retry_at)
        with contextlib.suppress(StateConflict):
            self._move(status, TableState.ERRORED, update)
            self._observer.on_table_error(status.name, error)
        return error

    def _copy(self, status: TableStatus, slot: str) -> Copied:
        """Copies one table that is in INIT, under a new slot of that name. On return it is in FINISHED_COPY.

        Raises what went wrong; nothing but the table's state (DATA_SYNC) is left behind then.
        """
        started, reason = time.monotonic(), status.error
        self._check_permission(status)
        self._wait_for_slots()
        # Other processes tell a copy that runs from one that died by this connection: it is there as long as DATA_SYNC.
        # It also creates the slot, and keeps the slot's snapshot alive as long as it does nothing else.
        with self._source.connect(f"copy_{status.table_id}", replication=True) as exporter:
            status = self._move(status, TableState.DATA_SYNC, TableUpdate(sync_slot=slot, attempts=status.attempts))
            reach(COPY_STARTED, exporter)
            self._drop_slots_of_other_copies(status)
            try:
                rows, remembered, shape = self._copy_under_snapshot(status, slot, exporter, reason)
                snapshot_lsn = remembered.lsn
            except BaseException:
                self._source.drop_if_owned(slot)
                raise
            reach(COPY_PUBLISHED, exporter)
            self._store.save_schema(shape.stored, snapshot_lsn)
            self._shaping.copied(shape.source)
            self._store.save_fingerprint(status.table_id, remembered)
            status = self._move(
                replace(status, name=shape.source.name),  # the source's, if it was renamed
                TableState.FINISHED_COPY,
                TableUpdate(snapshot_lsn=snapshot_lsn, sync_slot=slot, rows_copied=rows),
            )
        reach(COPY_FINISHED)
        self._drop_needless_slot(slot, snapshot_lsn)
        seconds = time.monotonic() - started
        self._observer.on_copied(status.name, rows, seconds)
        return Copied(status.name, rows, seconds, snapshot_lsn)

    def _check_permission(self, status: TableStatus) -> None:
        """Raises DecisionNeeded before anything is made on the source; `_describe` looks at what is really copied.

        Whatever else is wrong is met there, too.
        """
        if not self._permission.may_ask(status):
            return
        try:
            with self._source.connect("catalog") as connection:
                table = published_table(connection, status.table_id, self._source.publication)
                if table is not None:
                    self._permission.check_copy(connection, status, table.schema)
        except DecisionNeeded:
            raise
        except EtlError:
            return

    def _copy_under_snapshot(
        self, status: TableStatus, slot: str, exporter: Connection, reason: str | None
    ) -> tuple[int, Remembered, Shape]:
        created = self._source.create_slot(
            exporter,
            slot,
            status.table_id,
            export_snapshot=True,
            on_wait=lambda blockers: self._on_wait(str(status.name), blockers),
            stop=self._stop,
        )
        reach(SLOT_CREATED, exporter)
        if created.snapshot_name is None:
            raise TableError(f"the server exported no snapshot for {status.name}", table=str(status.name))
        role = f"copy_{status.table_id}"
        with SnapshotConnections(lambda: self._source.connect(role), created.snapshot_name, keeps=True) as snapshot:
            remembered, taken_at = self._descriptions.remember(snapshot, [status], created.consistent_point)
            described = self._descriptions.describe([status])[status.table_id]
            in_snapshot = remembered[status.table_id]
            for found in (in_snapshot, described):
                if isinstance(found, EtlError):
                    raise found
            assert isinstance(in_snapshot, Remembered)  # noqa: S101 - for the type checker
            assert isinstance(described, Described)  # noqa: S101
            described = self._descriptions.with_digits(status, described, snapshot, reason)
            shape = described.shape
            with self._destination.copy(shape.target) as staging:
                end = CopyEnd(self._destination, staging, shape, status.name)
                staged = self._stage(status, described, snapshot, created, staging)
                snapshot.close()
                reach(COPY_STAGED, exporter)
                rows = end.publish(
                    created.consistent_point,
                    staged,
                    taken_at,
                    lambda: self._descriptions.changed_values(status, shape),
                )
        return rows, in_snapshot, shape

    def _stage(
        self,
        status: TableStatus,
        described: Described,
        snapshot: SnapshotConnections,
        created: CreatedSlot,
        staging: TableCopy,
    ) -> int:
        """Returns how many rows were staged, here and elsewhere."""

        def on_progress(rows: int, size: int, total_size: int) -> None:
            self._observer.on_copy_progress(status.name, rows, size, total_size)

        def copy(plan: Plan) -> CopyResult:
            return copy_table(
                snapshot,
                replace(described.table, schema=described.shape.asked),
                self._connections,
                plan,
                on_progress,
                self._stop,
                load=described.shape.load,
            )

        if self._share is None or not isinstance(staging, SharedCopy):
            return copy(all_into(staging.write)).rows
        layout = layout_of(described.table, self._shapes)
        offer = CopyOffer(
            status.table_id, self._share, created.snapshot_name, created.consistent_point, layout, staging.address
        )
        shared = SharedRanges(self._store.shared_copies, offer, staging, on_progress)
        try:
            return shared.copy(copy, lambda: live_helpers(self._source, status.table_id), self._stop)
        finally:
            self._store.shared_copies.end(status.table_id, self._share)

    def _wait_for_slots(self) -> None:
        """Waits while the running stream has many tables to take in: every one of them holds a slot of the server."""
        while sum(slot.table_id is not None for slot in self._store.owned_slots()) >= _SLOTS + self._workers:
            main = self._source.slot_status(self._source.main_slot)
            if main is None or not main.active:
                return
            if self._drain.is_set() or self._stop.wait(_SLOT_WAIT):
                raise Stopped("stopped while the stream takes in the tables that are copied")

    def _drop_slots_of_other_copies(self, status: TableStatus) -> None:
        """Of copies that died or were given up. One that is still read is dropped at the next start."""
        for owned in self._store.owned_slots():
            if owned.table_id == status.table_id and owned.name != status.sync_slot:
                with contextlib.suppress(SlotInUse):
                    self._source.drop_if_owned(owned.name, timeout=0.0)

    def _drop_needless_slot(self, slot: str, snapshot_lsn: Lsn) -> None:
        if self._is_handed_over(snapshot_lsn):
            self._source.drop_if_owned(slot)

    def _is_handed_over(self, snapshot_lsn: Lsn | None = None) -> bool:
        """Whether the next stream takes a copied table in before it passes its snapshot: see the top of this file.

        Without a snapshot, whether it would if there were one as of now.
        """
        main = self._source.slot_status(self._source.main_slot)
        if main is None or main.active:
            return False
        progress = None if snapshot_lsn is None else self._store.progress()
        return progress is None or snapshot_lsn is None or progress.flushed_lsn <= snapshot_lsn

    def _on_wait(self, table: str, blockers: Sequence[Blocker]) -> None:
        if self._drain.is_set():
            raise Stopped(f"the copy of {table} was given up: it has not begun, as other transactions run")
        who = "; ".join(map(str, blockers)) or "running transactions"
        self._observer.on_waiting(f"the copy of {table} waits for {who}")

    def _move(self, status: TableStatus, to: TableState, update: TableUpdate) -> TableStatus:
        moved = self._store.transition(status, to, update)
        self._observer.on_state(status.name, to)
        return moved

    def _give_up(self, status: TableStatus) -> None:
        """Sets a copy that was stopped back, so that nobody is told of a copy that is not made any more."""
        with contextlib.suppress(StateConflict, TransientError):  # else the next start sees that it has died
            current = self._store.table(status.table_id)
            if current is not None and current.state is TableState.DATA_SYNC and current.version == status.version + 1:
                self._move(current, TableState.INIT, TableUpdate(attempts=current.attempts))

    def _fail(self, status: TableStatus, slot: str, error: EtlError, seconds: float) -> None:
        current = self._store.table(status.table_id)
        is_copying = current is not None and current.state is TableState.DATA_SYNC and current.sync_slot == slot
        waits = isinstance(error, DecisionNeeded) and current == status
        if current is None or not (is_copying or waits):
            self._observer.on_retry(error, 0.0)  # before or after the copy itself, or someone moved the table on
            return
        first = RETRY_AFTER
        if not isinstance(error, TransientError):
            # Likely to fail again: the source should spend no more than a tenth of its time on it.
            first = max(first, timedelta(seconds=10 * seconds))
        try:
            self._move(current, TableState.ERRORED, failed_update(error, current.attempts + 1, first))
        except StateConflict:
            return
        with contextlib.suppress(TransientError):  # else at the next copy, or the next start
            self._source.drop_if_owned(slot)
        self._observer.on_table_error(status.name, error)
