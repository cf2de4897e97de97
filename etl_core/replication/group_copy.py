"""Copies of small tables in groups: under one snapshot, over one connection, published and stored together.

Of 160 ms of CPU that the copy of 20 rows takes alone, a slot, connections, the openings of a DuckDB file and single
transactions are nearly all. What a group must keep:

- A table that cannot be copied at once with the others (another session has locked it, it changed, a value does not
  fit, it is not small) leaves the group: it goes back to INIT, and is copied alone, where it waits, fails and tells.
- The slot is temporary: it gives the snapshot and ends with the session, so none is left behind. Nothing keeps the
  changes since. Where the main stream has passed the snapshot and saw changes of a table, that table is copied again
  (`handover`), and then with a slot of its own: one with a reason is in no group. So that happens once.
- The session of a group is called as its slot, which the tables have as theirs while they are copied: other processes
  tell a running group by it from one that died. It ends after the tables' states have moved.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import pyarrow as pa

from etl_core.destination.protocol import Destination, GroupDestination, TableCopy, check_count, session_of
from etl_core.errors import EtlError, SlotInUse, StateConflict, Stopped, TransientError, where
from etl_core.identifiers import TableId
from etl_core.lsn import Lsn
from etl_core.replication.copied import Copied, why_again_alone
from etl_core.replication.copy_description import CopyDescriptions, Described, NotSmall
from etl_core.replication.copy_publish import CopyEnd
from etl_core.replication.failpoints import (
    COPY_FINISHED,
    COPY_PUBLISHED,
    COPY_STAGED,
    COPY_STARTED,
    SLOT_CREATED,
    reach,
)
from etl_core.replication.observer import Observer
from etl_core.replication.permission import Permission
from etl_core.replication.source import Source
from etl_core.shape.shapes import Shapes
from etl_core.source.connection import Connection
from etl_core.source.copy_ranges import Ranges, all_into
from etl_core.source.ctid_range import CtidRange
from etl_core.source.sizes import estimated_sizes
from etl_core.source.slot import Blocker, create_slot, drop_slot
from etl_core.source.snapshot_connections import SnapshotConnections
from etl_core.source.table_copy import copy_table
from etl_core.state.store import FinishedCopy, Remembered, StateStore, TableStatus, TableUpdate
from etl_core.state.table_state import TableState

_log = logging.getLogger(__name__)

_TABLES = 64
"""In a group at most. A DuckDB file is held while it is published, a second or so."""
_SMALL_BYTES = 1 << 20
"""Of a small table's file, as of its last VACUUM or ANALYZE."""
_LARGEST_BYTES = 4 << 20
"""What the file of a small table has at most when it is copied, and its rows in Arrow, where long values count, too."""


@dataclass(slots=True)
class _Member:
    """A table of the group whose copy was begun at the destination; `rows` are staged."""

    status: TableStatus
    described: Described
    remembered: Remembered
    staging: TableCopy
    end: CopyEnd
    rows: int = 0


def find_groups(
    source: Source, permission: Permission, tables: Sequence[TableStatus], workers: int
) -> list[Sequence[TableStatus]]:
    """Those of the tables, which are in INIT, that are small, in groups for so many workers.

    Not one that is copied for a reason, was tried before, or has a policy: it is copied alone.
    """
    plain = [one for one in tables if one.error is None and not one.attempts and not permission.has_policy(one)]
    if len(plain) < 2:
        return []
    try:
        with source.connect("catalog") as connection:
            sizes = estimated_sizes(connection, [status.table_id for status in plain])
    except EtlError:
        return []  # told by the copies
    small = [status for status in plain if sizes.get(status.table_id, _SMALL_BYTES + 1) <= _SMALL_BYTES]
    size = max(2, min(_TABLES, -(-len(small) // workers)))
    groups = [small[first : first + size] for first in range(0, len(small), size)]
    return [group for group in groups if len(group) > 1]


def changed_in_group(status: TableStatus) -> TableUpdate:
    """Of a table that was copied in a group and goes back to INIT: with a reason it is in no other group."""
    return TableUpdate(error=why_again_alone(status.name), is_requested=True)


class GroupCopy:
    """One group of tables. `copy` is called once."""

    def __init__(
        self,
        source: Source,
        store: StateStore,
        destination: Destination,
        observer: Observer,
        shapes: Shapes,
        descriptions: CopyDescriptions,
        *,
        stop: threading.Event,
        on_wait: Callable[[str, Sequence[Blocker]], None],
    ) -> None:
        """`on_wait` is told what waits, and whom for; it may raise Stopped."""
        self._source = source
        self._store = store
        self._destination = destination
        self._observer = observer
        self._shapes = shapes
        self._descriptions = descriptions
        self._stop = stop
        self._on_wait = on_wait
        self._role = source.new_group()
        self._started = time.monotonic()
        self._statuses: dict[TableId, TableStatus] = {}
        self._outcomes: dict[TableId, Copied | EtlError] = {}

    def copy(self, tables: Sequence[TableStatus]) -> tuple[dict[TableId, Copied | EtlError], list[TableStatus]]:
        """The outcomes of tables that are in INIT, and those, in INIT again, that are to be copied alone.

        Raises nothing: what concerns all of them, each says when it is copied alone.
        """
        error: EtlError | None = None
        try:
            with self._source.connect(self._role, replication=True) as exporter:
                try:
                    self._copy(exporter, tables)
                except Exception as failure:
                    error = _told(failure)
                self._set_back(error)
        except EtlError as failure:
            error = failure
        copied = [outcome for outcome in self._outcomes.values() if isinstance(outcome, Copied)]
        if copied:
            reach(COPY_FINISHED)
        for one in copied:
            self._observer.on_copied(one.name, one.rows, one.seconds)
        left = [self._statuses.get(one.table_id, one) for one in tables if one.table_id not in self._outcomes]
        if self._stop.is_set() or isinstance(error, Stopped):
            stopped = error or Stopped("the copy of a group of tables was stopped")
            return self._outcomes | {status.table_id: stopped for status in left}, []
        return self._outcomes, left

    def _copy(self, exporter: Connection, tables: Sequence[TableStatus]) -> None:
        slot = self._source.group_slot(self._role)
        self._begin(tables, slot)
        reach(COPY_STARTED, exporter)
        self._drop_slots_of_other_copies()
        with self._source.connect("slots") as observer:
            created = create_slot(
                exporter,
                slot,
                export_snapshot=True,
                temporary=True,
                observer=observer,
                on_wait=lambda blockers: self._on_wait(f"{len(tables)} tables", blockers),
                stop=self._stop,
            )
        reach(SLOT_CREATED, exporter)
        if created.snapshot_name is None:
            raise TransientError("the server exported no snapshot for a group of tables")
        lsn = created.consistent_point
        with contextlib.ExitStack() as stagings:
            with SnapshotConnections(
                lambda: self._source.connect(self._role), created.snapshot_name, keeps=True
            ) as snapshot:
                staged, taken_at = self._stage_all(snapshot, lsn, stagings)
            drop_slot(exporter, slot)  # it keeps WAL, and the snapshot is not needed any more
            reach(COPY_STAGED, exporter)
            published = self._publish_all(staged, lsn, taken_at)
        reach(COPY_PUBLISHED, exporter)
        self._finish(published, lsn)

    def _begin(self, tables: Sequence[TableStatus], slot: str) -> None:
        update = TableUpdate(sync_slot=slot)
        try:
            answers = self._store.transition_all([(status, TableState.DATA_SYNC, update) for status in tables])
        except EtlError as error:
            # Its answer may be lost: those that were moved are set back, the others are tried later.
            self._outcomes |= {status.table_id: error for status in tables}
            for status in self._store.tables():
                if status.sync_slot == slot:
                    self._statuses[status.table_id] = status
                    del self._outcomes[status.table_id]
            raise
        for status, moved in zip(tables, answers, strict=True):
            if isinstance(moved, StateConflict):
                self._outcomes[status.table_id] = moved  # somebody else copies it, or has decided otherwise
            else:
                self._statuses[status.table_id] = moved
                self._observer.on_state(moved.name, moved.state)

    def _set_back(self, error: EtlError | None) -> None:
        """Those that have left the group go back to INIT. Before the group's session ends, maybe by `error`."""
        left = [status for table_id, status in self._statuses.items() if table_id not in self._outcomes]
        if not left:
            return
        try:
            answers = self._store.transition_all([(status, TableState.INIT, TableUpdate()) for status in left])
        except EtlError as away:  # the next start sees that the copy has died
            self._outcomes |= {status.table_id: away for status in left}
            return
        for status, moved in zip(left, answers, strict=True):
            if isinstance(moved, StateConflict):
                self._outcomes[status.table_id] = error or moved
            else:
                self._statuses[status.table_id] = moved
                self._observer.on_state(moved.name, moved.state)

    def _drop_slots_of_other_copies(self) -> None:
        """Of copies that died or were given up. One that is still read is dropped at the next start."""
        for owned in self._store.owned_slots():
            if owned.table_id in self._statuses:
                with contextlib.suppress(SlotInUse):
                    self._source.drop_if_owned(owned.name, timeout=0.0)

    def _stage_all(
        self, snapshot: SnapshotConnections, lsn: Lsn, stagings: contextlib.ExitStack
    ) -> tuple[list[_Member], datetime]:
        statuses = list(self._statuses.values())
        remembered, taken_at = self._descriptions.remember(snapshot, statuses, lsn)
        all_described = self._descriptions.describe(statuses)
        ready = []
        for status in statuses:
            in_snapshot, described = remembered[status.table_id], all_described[status.table_id]
            if isinstance(in_snapshot, Remembered) and isinstance(described, Described):
                with self._leaving(status):
                    counted = self._descriptions.with_digits(
                        status, described, snapshot, None, waits=False, most_bytes=_LARGEST_BYTES
                    )
                    ready.append((status, counted, in_snapshot))
        begun = []
        with session_of(self._destination):  # to look at the table of before
            for status, described, in_snapshot in ready:
                with self._leaving(status):
                    staging = stagings.enter_context(self._destination.copy(described.shape.target))
                    end = CopyEnd(self._destination, staging, described.shape, status.name)
                    begun.append(_Member(status, described, in_snapshot, staging, end))
        staged = []
        for member in begun:
            with self._leaving(member.status):
                member.rows = self._stage(snapshot, member)
                staged.append(member)
        return staged, taken_at

    def _stage(self, snapshot: SnapshotConnections, member: _Member) -> int:
        """Returns how many rows were staged."""
        name, table, shape = member.status.name, member.described.table, member.described.shape
        size = 0

        def write(rows: pa.RecordBatch) -> None:
            nonlocal size
            size += rows.nbytes
            if size > _LARGEST_BYTES:
                raise NotSmall(f"{name} has long values")
            member.staging.write(rows)

        def plan(ranges: Sequence[CtidRange]) -> Ranges:
            if sum(part.size for part in ranges) > _LARGEST_BYTES:
                raise NotSmall(f"{name} has grown")
            return all_into(write)(ranges)

        def on_progress(rows: int, size: int, total_size: int) -> None:
            self._observer.on_copy_progress(name, rows, size, total_size)

        return copy_table(
            snapshot,
            replace(table, schema=shape.asked),
            1,
            plan,
            on_progress,
            self._stop,
            load=shape.load,
            waits=False,
        ).rows

    def _publish_all(self, staged: Sequence[_Member], lsn: Lsn, taken_at: datetime) -> list[_Member]:
        with session_of(self._destination):
            together = self._publish_together(staged, lsn)
            published = list(together)
            for member in staged:
                if member not in together:
                    with self._leaving(member.status):
                        self._publish(member, lsn, taken_at)
                        published.append(member)
        return published

    def _publish_together(self, staged: Sequence[_Member], lsn: Lsn) -> list[_Member]:
        """Those that were; none where one of them cannot be published, or the destination cannot do that."""
        plain = [member for member in staged if member.end.replaces]
        if len(plain) < 2 or not isinstance(self._destination, GroupDestination):
            return []
        try:
            counts = self._destination.publish_together([(member.staging, lsn, member.rows) for member in plain])
            for member, rows in zip(plain, counts, strict=True):
                check_count(member.status.name, rows, member.rows)
        except Stopped:
            raise
        except EtlError as error:
            _log.debug("a group is published one by one: %s", type(error).__name__)
            return []
        return plain

    def _publish(self, member: _Member, lsn: Lsn, taken_at: datetime) -> None:
        shape = member.described.shape
        member.end.publish(lsn, member.rows, taken_at, lambda: self._descriptions.changed_values(member.status, shape))

    def _finish(self, published: Sequence[_Member], lsn: Lsn) -> None:
        if not published:
            return
        copies = []
        for member in published:
            source = member.described.shape.source
            status = replace(member.status, name=source.name)  # if it was renamed
            update = TableUpdate(snapshot_lsn=lsn, rows_copied=member.rows)
            copies.append(
                FinishedCopy(
                    (status, TableState.FINISHED_COPY, update),
                    member.described.shape.stored,
                    self._shapes.stored(source),
                    member.remembered,
                )
            )
        answers = self._store.finish_copies(copies)
        seconds = time.monotonic() - self._started
        for member, moved in zip(published, answers, strict=True):
            table_id = member.status.table_id
            if isinstance(moved, StateConflict):
                self._outcomes[table_id] = moved
            else:
                self._observer.on_state(moved.name, moved.state)
                self._outcomes[table_id] = Copied(moved.name, member.rows, seconds, lsn)

    @contextlib.contextmanager
    def _leaving(self, status: TableStatus) -> Iterator[None]:
        """A table for which the block fails leaves the group: it is copied alone, where the failure is told."""
        try:
            yield
        except Stopped:
            raise
        except Exception as error:
            _log.debug("%s leaves its group: %s", status.name, type(error).__name__)
        if self._stop.is_set():
            raise Stopped("the copy of a group of tables was stopped")


def _told(failure: Exception) -> EtlError:
    """The error for what ended a group. The text of what nobody expects is left out: it may quote a row."""
    if isinstance(failure, EtlError):
        return failure
    _log.error("the copy of a group of tables ended with %s\n%s", type(failure).__name__, where(failure))
    return TransientError(f"the copy of a group of tables ended with {type(failure).__name__}")
