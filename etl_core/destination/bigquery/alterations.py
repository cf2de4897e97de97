"""Columns that come and go with a batch.

BigQuery has no ALTER inside a transaction. So columns come before it: empty, they change nothing. They go after it: the
transaction that makes them history also writes down that they are to be dropped, and whoever comes next drops what a
crash has left. Each ALTER is in a script that first asks whether the bookkeeping is still what it was decided on:
a process that stood still meanwhile and was succeeded changes nothing. The two statements are of one job in BigQuery,
so that no stop of ours is between them.

A column that comes under the name of one that goes in the same batch takes its place, and all its rows are overwritten
in the transaction: dropped before it, the old values would be gone though the batch may fail.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from google.cloud import bigquery

from etl_core.batch import WatermarkMove
from etl_core.destination.bigquery import statements
from etl_core.destination.bigquery.bookkeeping import (
    Bookkeeping,
    StoredTable,
    added_parameter,
    dropped_parameter,
    moves_parameter,
)
from etl_core.destination.bigquery.columns import StoredColumn, stored_columns
from etl_core.destination.bigquery.connection import CALL_SECONDS, RETRY, Clients
from etl_core.destination.bigquery.failures import translated
from etl_core.destination.bigquery.method import STREAMED, is_stale
from etl_core.destination.bigquery.types import bigquery_field
from etl_core.errors import COPIED_AGAIN, CopiedAgain, EtlError, WatermarkConflict
from etl_core.identifiers import TableId
from etl_core.schema.alterations import Alteration, ChangeKey, origins
from etl_core.schema.table import TableSchema

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Moved:
    """A table's columns under the schema of one part of a batch."""

    columns: tuple[StoredColumn, ...]
    overwritten: tuple[StoredColumn, ...]
    """Those that came with it in which the rows there are must be given a value, or NULL."""
    gone: tuple[str, ...]
    """Those that went with it, as the source called them."""


class ColumnMoves:
    """What becomes of the columns of every table in one batch, part by part."""

    def __init__(self, clients: Clients, tables: Mapping[TableId, StoredTable]) -> None:
        self._clients = clients
        self._tables = tables
        self._columns = {table_id: table.columns for table_id, table in tables.items()}
        self._there: dict[TableId, dict[str, bigquery.SchemaField]] = {}
        self._stale: dict[TableId, bool] = {}
        self._added: dict[TableId, list[StoredColumn]] = {}
        self._created: dict[TableId, list[StoredColumn]] = {}

    def move(self, schema: TableSchema, steps: Sequence[Alteration] = ()) -> Moved:
        """The next part's. Raises CopiedAgain for a renamed column, one of another type, and another key.

        A column's name and the key change what rows that are there mean, and BigQuery can alter neither in the
        transaction that applies the changes.
        """
        before = {column.name: column for column in self._columns[schema.table_id]}
        origin = origins({column.name: column.attnum for column in before.values()}, schema.columns)
        for name, known_as in origin.items():
            if name != known_as:
                raise _cannot(schema, f"column {known_as} was renamed to {name}")
        for step in steps:
            if isinstance(step, ChangeKey):
                raise _cannot(schema, str(step))
        columns, overwritten = [], []
        for column in stored_columns(schema):
            known = before.get(column.name)
            if known is None or (known.attnum != column.attnum and 0 not in (known.attnum, column.attnum)):
                placed, is_there = self._placed(schema, column)
                columns.append(placed)
                if is_there or schema.column(column.name).missing_value is not None:
                    overwritten.append(placed)
                continue
            if known.type != column.type:
                raise _retyped(schema, column.name, column.type, known.type)
            # Its name in BigQuery stays, though another column may have come that differs by case only.
            columns.append(replace(column, column=known.column, attnum=column.attnum or known.attnum))
        self._columns[schema.table_id] = tuple(columns)
        gone = tuple(name for name in before if name not in origin.values())
        return Moved(tuple(columns), tuple(overwritten), gone)

    def table(self, table_id: TableId) -> StoredTable:
        """As it was before the batch."""
        return self._tables[table_id]

    def columns(self, table_id: TableId) -> tuple[StoredColumn, ...]:
        """After the parts so far."""
        return self._columns[table_id]

    def may_be_stale(self, table_id: TableId) -> bool:
        """Whether a query of a table with a column that comes may leave out rows that were streamed before."""
        return self._stale[table_id]

    def changed(self) -> list[TableId]:
        """The tables whose columns change."""
        return [table_id for table_id, columns in self._columns.items() if columns != self._tables[table_id].columns]

    def added(self, table_id: TableId) -> list[StoredColumn]:
        """Columns that are to be created, of those there are after the parts so far."""
        created = self._created.get(table_id, [])
        return [c for c in self._added.get(table_id, []) if c in self._columns[table_id] and c not in created]

    def created(self, table_id: TableId, columns: Sequence[StoredColumn]) -> None:
        """Takes note that columns were."""
        self._created.setdefault(table_id, []).extend(columns)
        self._there.pop(table_id, None)

    def streamed_into(self, table_id: TableId) -> list[tuple[str, int]]:
        """Columns that were created for this batch, by this try to stream it or an earlier one."""
        created = self._created.get(table_id, [])
        return [*self._tables[table_id].added, *((column.column, column.attnum) for column in created)]

    def dropped(self, table_id: TableId) -> tuple[str, ...]:
        """Names in BigQuery of columns that are none of the table's any more."""
        kept = {column.column for column in self._columns[table_id]}
        table = self._tables[table_id]
        gone = [*table.dropped, *(c.column for c in (*table.columns, *self._created.get(table_id, [])))]
        return tuple(name for name in dict.fromkeys(gone) if name not in kept)

    def _placed(self, schema: TableSchema, column: StoredColumn) -> tuple[StoredColumn, bool]:
        """A column that comes, as it is called in BigQuery, and whether one of the name is there already."""
        if schema.table_id not in self._there:
            place = self._tables[schema.table_id].place
            with translated("looking at a table", schema.name):
                table = self._clients.rest().get_table(str(place), retry=RETRY, timeout=CALL_SECONDS)
            self._there[schema.table_id] = {field.name.lower(): field for field in table.schema}
            self._stale[schema.table_id] = is_stale(table.max_staleness)
        there = self._there[schema.table_id].get(column.column.lower())
        if there is None:
            self._added.setdefault(schema.table_id, []).append(column)
            return column, False
        wanted = statements.field(column.column, bigquery_field(schema.column(column.name)))
        if there.to_standard_sql().type != wanted.to_standard_sql().type:
            raise _retyped(schema, column.name, column.type, there.field_type)
        return replace(column, column=there.name), True


def add_columns(
    clients: Clients, book: Bookkeeping, moves: ColumnMoves, table_id: TableId, move: WatermarkMove
) -> None:
    """Before the transaction. Raises WatermarkConflict if another process has gone on meanwhile."""
    added = moves.added(table_id)
    if not added:
        return
    table, guarded = moves.table(table_id), {table_id: move}
    steps, parameters = [book.fence(guarded), statements.add_columns(table.place, added)], [moves_parameter(guarded)]
    if table.method == STREAMED:
        # Its rows go before the transaction: a try that is lost after them leaves its values in the columns.
        steps.append(book.has_added(table_id))
        parameters.append(added_parameter([*moves.streamed_into(table_id), *((c.column, c.attnum) for c in added)]))
    clients.run(statements.script(steps), "adding a column", parameters, table=table.name)
    moves.created(table_id, added)


def drop_columns(clients: Clients, book: Bookkeeping, table: StoredTable, names: Sequence[str]) -> None:
    """After the transaction that wrote `names` down to be dropped; what fails is tried again before the next batch."""
    try:
        clients.run(
            statements.script(
                [
                    book.still_to_drop(table.table_id),
                    statements.drop_columns(table.place, names),
                    book.has_dropped(table.table_id),
                ]
            ),
            "dropping a column",
            [dropped_parameter(names)],
            table=table.name,
        )
    except WatermarkConflict:
        pass  # another process has done it
    except EtlError as error:
        _log.warning("%s; it is tried again before the next batch", error)


def _retyped(schema: TableSchema, column: str, at_source: str, there: str) -> CopiedAgain:
    return _cannot(schema, f"column {column} is {at_source} at the source and {there} in BigQuery")


def _cannot(schema: TableSchema, what: str) -> CopiedAgain:
    return CopiedAgain(
        f"{schema.name}: {what}, which is not altered in place there", table=str(schema.name), hint=COPIED_AGAIN
    )
