"""What a copy takes: the tables as the catalog describes them, what they are at the destination, and who must be asked.

Several tables are described at once, for copies in groups: reading the catalog costs more than a small table's rows.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from etl_core.destination.protocol import Destination
from etl_core.errors import EtlError, SourceLocked, TableAbsent, TableError, TransientError
from etl_core.identifiers import TableId
from etl_core.lsn import Lsn
from etl_core.replication.followed import note_renamed
from etl_core.replication.permission import Permission
from etl_core.replication.removals import check_removals
from etl_core.replication.source import Source
from etl_core.shape.shape import Shape
from etl_core.shape.shapes import Shapes
from etl_core.source.absence import left_out
from etl_core.source.catalog import PublishedTable, published_among
from etl_core.source.connection import Connection
from etl_core.source.digits import count_digits
from etl_core.source.fingerprint import look
from etl_core.source.plan import TablePlan, read_plan
from etl_core.source.publication import Publication, find_publication
from etl_core.source.server import server_time
from etl_core.source.snapshot import check_unchanged, lock_table, plan_ranges
from etl_core.source.snapshot_connections import SnapshotConnections
from etl_core.state.store import Remembered, StateStore, TableStatus
from etl_core.table_pattern import TableSelection
from etl_core.values.digits import digits_told


class NotSmall(TransientError):
    """A table that is larger than its statistics say, or has long values: it is copied alone."""


@dataclass(frozen=True, slots=True)
class Described:
    """A table as it is to be copied."""

    table: PublishedTable
    shape: Shape


class CopyDescriptions:
    """Of one pipeline's tables. May be used from several threads."""

    def __init__(
        self,
        source: Source,
        store: StateStore,
        destination: Destination,
        shapes: Shapes,
        permission: Permission,
        selection: TableSelection | None,
        stop: threading.Event,
    ) -> None:
        self._source = source
        self._store = store
        self._destination = destination
        self._shapes = shapes
        self._permission = permission
        self._selection = selection
        self._stop = stop

    def changed_values(self, status: TableStatus, shape: Shape) -> frozenset[str]:
        """The columns whose older values are not what the settings make of values now."""
        before = self._store.schema(status.table_id)
        return self._shapes.changed_values(
            self._store.shape(status.table_id), None if before is None else before[1], shape.source
        )

    def remember(
        self, snapshot: SnapshotConnections, statuses: Sequence[TableStatus], snapshot_lsn: Lsn
    ) -> tuple[dict[TableId, Remembered | TransientError], datetime]:
        """What the catalog says of each table in the copy's own snapshot: everything later is a change.

        And the moment of the snapshot, by the server's clock.
        """
        connection = snapshot.take()
        try:
            taken_at = server_time(connection)
            found = look(connection, self._source.publication, [status.table_id for status in statuses]).tables
        finally:
            snapshot.give_back(connection)
        remembered: dict[TableId, Remembered | TransientError] = {}
        for status in statuses:
            fingerprint = found.get(status.table_id)
            remembered[status.table_id] = (
                Remembered(fingerprint, snapshot_lsn)
                if fingerprint is not None
                else TransientError(
                    f"{status.name} was created or dropped while its copy was starting",
                    hint="the copy starts again with a new snapshot",
                )
            )
        return remembered, taken_at

    def describe(self, statuses: Sequence[TableStatus]) -> dict[TableId, Described | EtlError]:
        """Each table as it is to be copied, or why it cannot be. Raises what concerns all of them."""
        described: dict[TableId, Described | EtlError] = {}
        with self._source.connect("catalog") as connection:
            tables = published_among(connection, [status.table_id for status in statuses], self._source.publication)
            plans = {plan.name: plan for plan in read_plan(connection, [table.name for table in tables.values()])}
            publication = find_publication(connection, self._source.publication)
            for status in statuses:
                table = tables.get(status.table_id)
                plan = None if table is None else plans.get(table.name)
                try:
                    described[status.table_id] = self._describe(connection, status, table, plan, publication)
                except EtlError as error:
                    described[status.table_id] = error
        return described

    def _describe(
        self,
        connection: Connection,
        status: TableStatus,
        table: PublishedTable | None,
        plan: TablePlan | None,
        publication: Publication | None,
    ) -> Described:
        if table is None:
            raise TableAbsent(
                f"{status.name} is no longer in publication {self._source.publication}",
                table=str(status.name),
                hint="add it again, or take it out of the configuration",
            )
        if self._selection is not None and self._selection.leaves_out(table.name):
            raise left_out(status.name, table.name)
        note_renamed(self._store, self._selection, status, table.name)
        self._permission.check_copy(connection, status, table.schema)
        table = replace(table, schema=self._permission.kept(table.schema))
        if plan is not None and plan.lost_partitions:
            lost = plan.lost_partitions[0]
            raise TableError(
                f"partition {lost.name} of {status.name} is "
                f"{'a foreign table' if lost.kind == 'f' else 'unlogged'}, whose changes PostgreSQL does not send:"
                " the destination would silently lack them",
                table=str(status.name),
                hint="detach the partition; or set publish_via_partition_root = false for the publication, and"
                " replicate the other partitions as tables of their own",
            )
        stored = self._store.schema(status.table_id)
        if stored is not None:
            self._shapes.check_shown(stored[1], table.schema, self._store.shape(status.table_id))
        shape = self._shapes.of(table.schema)
        if publication is not None:
            check_removals(self._destination, shape.target, publication)
        return Described(table, shape)

    def with_digits(
        self,
        status: TableStatus,
        described: Described,
        snapshot: SnapshotConnections,
        reason: str | None,
        *,
        waits: bool = True,
        most_bytes: int | None = None,
    ) -> Described:
        """With the digits that the numerics of the snapshot have, or had for which the table is copied: the `reason`.

        They are asked for before anything is staged. Raises SourceLocked, unless it `waits`, for a locked table, and
        NotSmall for one whose files have more than `most_bytes`: counting reads all of them.
        """
        table = described.table
        stored = self._store.schema(status.table_id)
        before = None if stored is None else stored[1]
        columns = self._shapes.columns_to_count(table.schema, before)
        if not columns:
            return described
        connection = snapshot.take()
        try:
            if not lock_table(connection, table, self._stop, wait=waits):
                raise SourceLocked(f"table {table.name} is locked by another session")
            check_unchanged(connection, table)
            if most_bytes is not None and sum(part.size for part in plan_ranges(connection, table)) > most_bytes:
                raise NotSmall(f"{table.name} has grown since its size was noted")
            found = {**count_digits(connection, table, columns, self._stop)}
        finally:
            snapshot.give_back(connection)
        told = digits_told(reason, table.name)
        if told is not None and told[0] in found:
            found[told[0]] = found[told[0]].also(told[1])
        schema = self._shapes.decided(table.schema, before, found)
        return Described(replace(table, schema=schema), self._shapes.of(schema))
