"""One batch on its way in: every part staged, for a script that applies them all or nothing, or streamed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from google.cloud import bigquery

from etl_core.batch import TableChanges, WatermarkMove
from etl_core.destination.bigquery import removals, statements
from etl_core.destination.bigquery.alterations import ColumnMoves, Moved, add_columns
from etl_core.destination.bigquery.bookkeeping import Bookkeeping, StoredTable
from etl_core.destination.bigquery.cdc import needs_merge
from etl_core.destination.bigquery.change_log import forget_unchanged
from etl_core.destination.bigquery.change_streams import Attempt
from etl_core.destination.bigquery.columns import StoredColumn
from etl_core.destination.bigquery.connection import Clients, Parameter
from etl_core.destination.bigquery.deleted_rows import mark_deleted
from etl_core.destination.bigquery.method import LOGGED, is_streamed
from etl_core.destination.bigquery.names import Place
from etl_core.destination.bigquery.redo_log import Redo, RedoLog, StagedChanges
from etl_core.destination.bigquery.staging_tables import StagingTables
from etl_core.destination.bigquery.types import bigquery_field, to_bigquery
from etl_core.errors import COPIED_AGAIN, CopiedAgain, TableError
from etl_core.identifiers import TableId, TableName
from etl_core.schema.change_log import keeps_log
from etl_core.schema.table import Column, TableSchema
from etl_core.values import load_missing
from etl_core.values.arrow import arrow_field, key_schema

_BOUND_TYPES = frozenset({"INT64", "STRING", "DATE", "DATETIME", "TIMESTAMP"})


@dataclass(frozen=True, slots=True)
class StagedPart:
    """A part of a batch in its staging table (None if it has no rows), and how it is applied."""

    schema: TableSchema
    place: Place
    columns: tuple[StoredColumn, ...]
    staged: Place | None
    truncate: bool
    mark_deleted: datetime | None
    unchanged: tuple[tuple[str, ...], ...]
    removes: bool
    bounds: tuple[str, tuple[Parameter, Parameter]] | None
    fill: tuple[tuple[StoredColumn, ...], Place] | None
    gone: tuple[str, ...]
    """Columns that the part before had, as the source called them."""

    def statements(self, number: int, final: Sequence[StoredColumn]) -> list[str]:
        """In order; `final` are the columns that the table has in the end."""
        found = []
        if self.fill is not None:
            filled, values = self.fill
            kept = [column for column in filled if column in final]
            if kept:
                found.append(statements.fill(self.place, kept, values))
        forget = forget_unchanged(self.place, self.gone) if keeps_log(self.schema) else None
        if forget is not None:
            found.append(forget)
        if self.truncate:
            found.append(statements.truncate(self.place))
        if self.mark_deleted is not None:
            found.append(mark_deleted(self.place, self.mark_deleted))
        if self.staged is None:
            return found
        kept_columns = [column for column in self.columns if column in final]
        if self.removes:
            return [*found, *removals.remove(self.place, self.staged, kept_columns, self.schema, number)]
        if not self.schema.key:
            return [*found, statements.insert(self.place, self.staged, kept_columns)]
        if self.unchanged:
            found.append(statements.check_origins(self.place, self.staged, kept_columns, self.schema, number))
        bounds = None if self.bounds is None else self.bounds[0]
        found.append(statements.merge(self.place, self.staged, kept_columns, self.schema, self.unchanged, bounds))
        return found


class Stager:
    """Stages the parts of one batch, in order, and knows what has become of every table's columns."""

    def __init__(
        self,
        clients: Clients,
        book: Bookkeeping,
        tables: Mapping[TableId, StoredTable],
        watermarks: Mapping[TableId, WatermarkMove],
        attempt: Attempt,
    ) -> None:
        self._clients = clients
        self._book = book
        self._tables = tables
        self._watermarks = watermarks
        self.attempt = attempt
        """What streams the changes of those tables whose changes are."""
        self.moves = ColumnMoves(clients, tables)
        self.parts: list[StagedPart] = []
        self.redo: dict[TableId, Redo] = {}
        """What is to be streamed to tables once the batch is committed; there after `complete`."""
        self._logged: dict[TableId, list[StagedChanges]] = {}
        self._staging = StagingTables(clients, book)

    def stage(self, changes: TableChanges) -> None:
        """Stages the part, or streams it. Raises TableError for one that cannot be applied."""
        schema = changes.schema
        table = self._tables[schema.table_id]
        if schema.name != table.name:
            raise CopiedAgain(f"{table.name} was renamed to {schema.name}", table=str(schema.name), hint=COPIED_AGAIN)
        moved = self.moves.move(schema, changes.alterations)
        if is_streamed(table.method):
            self._check_streamed(changes, table, moved)
            if table.method == LOGGED:
                self._log(changes, moved)
            else:
                self._stream(changes, table, moved)
            return
        columns = moved.columns
        fill = self._stage_fill(schema, moved.overwritten)
        rows = _rows_of(changes)
        number = len(self.parts)
        place = None
        if rows is not None:
            place = self._stage_rows(f"part_{schema.table_id}", rows, schema, columns, bool(changes.partials))
        self.parts.append(
            StagedPart(
                schema,
                table.place,
                columns,
                place,
                changes.truncate,
                changes.mark_deleted,
                tuple(partial.unchanged for partial in changes.partials),
                changes.removals is not None,
                key_bounds(changes, columns, number),
                fill,
                moved.gone,
            )
        )

    def finish(self) -> None:
        """Waits until everything is staged. Raises what went wrong."""
        self._staging.finish()

    def complete(self, log: RedoLog) -> None:
        """Makes the rows whole that are to be streamed out of the redo log. Their tables' columns are there."""
        for table_id, parts in self._logged.items():
            begins_at, final = self._watermarks[table_id].expected, self.moves.columns(table_id)
            self.redo[table_id] = log.complete(self._tables[table_id], begins_at, parts, final, self._staging)

    def keep_logged(self) -> None:
        """Leaves to the redo log what may be in it."""
        self._staging.keep([place for redo in self.redo.values() for place, _ in redo.parts])

    def drop(self) -> None:
        """Drops what was staged, whether it was to the end or not."""
        self._staging.drop()

    def _log(self, changes: TableChanges, moved: Moved) -> None:
        schema = changes.schema
        rows = _rows_of(changes)
        if rows is not None:
            unchanged = tuple(partial.unchanged for partial in changes.partials)
            place = self._stage_rows(f"redo_{schema.table_id}", rows, schema, moved.columns, bool(changes.partials))
            self._logged.setdefault(schema.table_id, []).append(StagedChanges(schema, moved.columns, place, unchanged))

    def _check_streamed(self, changes: TableChanges, table: StoredTable, moved: Moved) -> None:
        """Raises TableError for a part that no rows can say."""
        schema = changes.schema
        reason = needs_merge(changes, are_completed=table.method == LOGGED)
        if reason is None and moved.overwritten and not self._are_empty(table, moved.overwritten, schema):
            reason = f"rows older than column {moved.overwritten[0].name} have, or may have, a value in it"
        if reason is not None:
            how = "where it happens often, use method: load_merge"
            if changes.partials:
                how = "without destination.max_staleness, or with REPLICA IDENTITY FULL, it then happens no more"
            raise TableError(
                f"changes of {schema.name} cannot be streamed, because {reason}",
                table=str(schema.name),
                hint=f"copy it again: etl resync {schema.name}; {how}",
            )

    def _stream(self, changes: TableChanges, table: StoredTable, moved: Moved) -> None:
        table_id = changes.schema.table_id
        move = self._watermarks[table_id]
        add_columns(self._clients, self._book, self.moves, table_id, move)
        self.attempt.send(changes, table.place, moved.columns, move.expected)

    def _are_empty(self, table: StoredTable, columns: Sequence[StoredColumn], schema: TableSchema) -> bool:
        """Whether columns that are there already hold nothing and older rows hold nothing at the source."""
        if any(schema.column(column.name).missing_value is not None for column in columns):
            return False
        # What a try that was lost has left in a column of its own is sent again, and more.
        others = [column for column in columns if (column.column, column.attnum) not in table.added]
        if not others:
            return True
        if self.moves.may_be_stale(schema.table_id):
            return False
        job = self._clients.run(statements.any_value(table.place, others), "looking at a column", table=schema.name)
        return not list(job.result())

    def _stage_fill(
        self, schema: TableSchema, filled: tuple[StoredColumn, ...]
    ) -> tuple[tuple[StoredColumn, ...], Place] | None:
        """What rows older than these columns hold in them, as one staged row."""
        if not filled:
            return None
        columns = [schema.column(column.name) for column in filled]
        row = pa.table({column.name: _missing(column, schema.name) for column in columns})
        values = to_bigquery(row, columns, schema.name).rename_columns([column.column for column in filled])
        fields = statements.fields(filled, replace(schema, columns=tuple(columns), key=()))
        return filled, self._staging.put(f"fill_{schema.table_id}", fields, values, schema.name)

    def _stage_rows(
        self, prefix: str, rows: pa.Table, schema: TableSchema, columns: Sequence[StoredColumn], with_origins: bool
    ) -> Place:
        marks = [statements.ROW, statements.FINAL, statements.PARTIAL]
        keys = [schema.column(name) for name in key_schema(schema).names] if with_origins else []
        stored = to_bigquery(rows, schema.columns, schema.name).rename_columns([c.column for c in columns])
        for number, key in enumerate(keys):
            name = statements.origin(number)
            origins = to_bigquery(pa.table({key.name: rows[name]}), [key], schema.name)
            stored = stored.append_column(name, origins.column(0))
        for mark in marks:
            stored = stored.append_column(mark, rows[mark])
        fields = statements.staged_fields(columns, schema, with_origins=with_origins)
        ordered = stored.select([field.name for field in fields])
        return self._staging.put(prefix, fields, ordered.combine_chunks(), schema.name)


def _missing(column: Column, table: TableName) -> Any:
    """The value of a column in rows that are older than it, as an array of one."""
    if column.missing_value is None:
        return pa.nulls(1, arrow_field(column).type)
    value: Any = load_missing(column, table)
    return pa.repeat(value, 1)


def _rows_of(changes: TableChanges) -> pa.Table | None:
    """All sets as one table in the columns of the schema and the marks; None if there is no row."""
    schema = changes.schema
    keys = key_schema(schema)
    has_origins = bool(changes.partials)
    parts = []

    def add(rows: pa.Table, final: bool, group: int, origins: pa.Table | None) -> None:
        if not rows.num_rows:
            return
        columns = []
        for field in changes.inserts.schema:
            if field.name in rows.schema.names:
                columns.append(rows[field.name])
            else:
                columns.append(pa.chunked_array([pa.nulls(rows.num_rows, field.type)]))
        marked = pa.Table.from_arrays(columns, names=changes.inserts.schema.names)
        marked = marked.append_column(statements.FINAL, pa.repeat(pa.scalar(final), rows.num_rows))
        marked = marked.append_column(statements.PARTIAL, pa.repeat(pa.scalar(group, pa.int64()), rows.num_rows))
        if has_origins:
            for number, key in enumerate(keys):
                values = pa.nulls(rows.num_rows, key.type) if origins is None else origins[key.name]
                marked = marked.append_column(statements.origin(number), values)
        parts.append(marked)

    add(changes.inserts, True, 0, None)
    add(changes.upserts, True, 0, None)
    add(changes.deletes, False, 0, None)
    if changes.removals is not None:
        add(changes.removals, False, 0, None)
    for group, partial in enumerate(changes.partials, 1):
        add(partial.rows, True, group, partial.origin_keys)
        add(partial.origin_keys, False, 0, None)
    if not parts:
        return None
    together = pa.concat_tables(parts)
    return together.append_column(statements.ROW, pa.array(np.arange(together.num_rows)))


def key_bounds(
    changes: TableChanges, columns: Sequence[StoredColumn], number: int
) -> tuple[str, tuple[Parameter, Parameter]] | None:
    """The range of the first key column that a part touches; None for types without a use for it."""
    schema = changes.schema
    if not schema.key:
        return None
    name = key_schema(schema).names[0]
    kind = bigquery_field(schema.column(name))
    if kind.sql not in _BOUND_TYPES:
        return None
    tables = [changes.inserts, changes.upserts, changes.deletes]
    for partial in changes.partials:
        tables += [partial.rows, partial.origin_keys]
    keys = pa.concat_tables([table.select([name]) for table in tables])
    extremes: Any = pc.min_max(keys[name])
    lowest, highest = extremes["min"].as_py(), extremes["max"].as_py()
    if lowest is None:
        return None
    first, last = f"first_{number}", f"last_{number}"
    column = next(column for column in columns if column.name == name)
    parameters = (
        bigquery.ScalarQueryParameter(first, kind.sql, lowest),
        bigquery.ScalarQueryParameter(last, kind.sql, highest),
    )
    return statements.bounds_of(column, first, last), parameters
