"""What a SQL product needs whose driver takes rows of Python values (PEP 249), one statement for many rows.

Arrow rows become columns of plain values (`plain`). A statement that reads Arrow rows reads a temporary table of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

import pyarrow as pa
from psycopg import sql

from etl_core.destination.sql import statements
from etl_core.destination.sql.additions import Additions
from etl_core.destination.sql.destination import SqlDestination
from etl_core.destination.sql.dialect import Dialect, Query, Values
from etl_core.destination.sql.plain import from_plain, plain_field, plain_type, to_plain
from etl_core.destination.sql.session import Session
from etl_core.destination.sql.type_change import TypeChange
from etl_core.identifiers import TableName
from etl_core.schema.table import Column, TableSchema
from etl_core.values.arrow import arrow_schema, arrow_type

DriverSessionT = TypeVar("DriverSessionT", bound="DriverSession")

_READ_ROWS = 8_192
"""Of a batch that is read."""


class DriverDialect(Dialect):
    """See Dialect. Values are stored as they are handed over, and a column whose stored type differs is another one."""

    stored_types: ClassVar[Mapping[type, str]]
    """What holds each of the plain types: int, float, bytes and str."""

    def type_name(self, column: Column) -> str:
        return self.stored_types[plain_type(arrow_type(column))]

    def type_change(self, stored: str, column: Column) -> TypeChange:
        return TypeChange.NONE if stored == self.type_name(column) else TypeChange.OTHER

    def cast_in(self, value: Query, column: Column) -> Query:  # noqa: ARG002
        return value

    def cast_out(self, value: Query, column: Column) -> Query:  # noqa: ARG002
        return value

    def arrow_field(self, column: Column) -> pa.Field[Any]:
        return plain_field(column)

    def arrow_values(self, values: Values, column: Column, table: TableName) -> Values:
        if isinstance(values, pa.ChunkedArray):
            chunks = [to_plain(chunk, column, table) for chunk in values.chunks]
            return pa.chunked_array(chunks, plain_field(column).type)
        return to_plain(values, column, table)


class DriverSession(Session):
    """See Session. Tables are created and dropped in the transaction; a new one takes the place of the one before."""

    def __init__(self, connection: Any, dialect: DriverDialect) -> None:
        """`connection` is PEP 249's, in a transaction."""
        self._connection = connection
        self._dialect = dialect

    def plain_values(self, values: pa.Array[Any]) -> list[Any]:
        """A column of `to_plain`, for a product that cannot hold each of them as it is."""
        return values.to_pylist()

    def stored_values(self, values: Sequence[Any], kind: type) -> Sequence[Any]:  # noqa: ARG002
        """The inverse of `plain_values`, of values of the plain type `kind`."""
        return values

    def run(self, query: Query, values: Sequence[object] = ()) -> Any:
        """Executes a statement; returns the driver's cursor."""
        cursor = self._connection.cursor()
        cursor.execute(query.as_string(None), [_bound(value) for value in values])
        return cursor

    def fetch(self, query: Query, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self.run(query, values).fetchall()]

    def execute(self, query: Query, values: Sequence[object] = ()) -> int:
        count: int = self.run(query, values).rowcount
        return max(count, 0)

    def execute_with(self, query: Query, rows: pa.Table | pa.RecordBatchReader) -> int:
        table, types = self._dialect.rows, self._dialect.stored_types
        described = [
            sql.SQL("{} {}").format(sql.Identifier(field.name), sql.SQL(types[plain_type(field.type)]))
            for field in rows.schema
        ]
        self.define(sql.SQL("CREATE TEMPORARY TABLE {} ({})").format(table, sql.SQL(", ").join(described)))
        self._load(table, rows)
        changed = self.execute(query)
        self.drop_temporary(table)
        return changed

    def insert(
        self,
        dialect: Dialect,  # noqa: ARG002
        table: Query,
        columns: Sequence[Column],  # noqa: ARG002 - the rows have them
        rows: pa.Table | pa.RecordBatchReader,
    ) -> int:
        return self._load(table, rows)

    def _load(self, table: Query, rows: pa.Table | pa.RecordBatchReader) -> int:
        names = sql.SQL(", ").join(map(sql.Identifier, rows.schema.names))
        places = sql.SQL(", ").join([self._dialect.placeholder] * len(rows.schema.names))
        insert = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(table, names, places).as_string(None)
        batches: Iterable[pa.RecordBatch] = rows.to_batches() if isinstance(rows, pa.Table) else rows
        count = 0
        for batch in batches:
            if batch.num_rows:
                columns = [self.plain_values(_signed(column)) for column in batch.columns]
                self._connection.cursor().executemany(insert, list(zip(*columns, strict=True)))
                count += batch.num_rows
        return count

    def put_aside(self, result: Query, query: Query, rows: pa.Table | pa.RecordBatchReader | None = None) -> int:
        super().put_aside(result, query, rows)
        return int(self.fetch(statements.count_rows(result))[0][0])  # many drivers count no CREATE TABLE … AS

    def rollback(self) -> None:
        self._connection.rollback()

    @contextmanager
    def made_anew(self, schema: TableSchema, additions: Additions) -> Iterator[Query]:
        table = self.identifier(schema.name.namespace, schema.name.name)
        self.define(sql.SQL("DROP TABLE IF EXISTS {}").format(table))
        self.define(statements.create_table(self._dialect, table, schema.columns, additions.columns))
        yield table
        self.settle_key(schema)

    def read(self, schema: TableSchema, place: TableName) -> Iterator[pa.RecordBatch]:
        """The rows of the table of `schema`, which is at `place`, in their Arrow types."""
        table = self.identifier(place.namespace, place.name)
        cursor = self.run(statements.select(self._dialect, table, schema.columns))
        target = arrow_schema(schema)
        while rows := cursor.fetchmany(_READ_ROWS):
            columns = [
                from_plain(self.stored_values(values, plain_type(arrow_type(column))), column, schema.name)
                for values, column in zip(zip(*rows, strict=True), schema.columns, strict=True)
            ]
            yield pa.RecordBatch.from_arrays(columns, schema=target)


class DriverDestination(SqlDestination[DriverSessionT]):
    """See Destination. `close` has nothing to let go of where each transaction has a connection of its own."""

    def read(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        """See Destination. A connection is open until the iterator is exhausted or closed."""
        with self._database.reading() as session, session.table_errors(schema.name):
            yield from session.read(schema, self._place(session, schema))

    def close(self) -> None:
        """See Destination."""


def _bound(value: object) -> object:
    """Drivers take integers of 64 bits with a sign. A column of `str` holds a larger one, and compares it as it is."""
    return str(value) if isinstance(value, int) and value >= 1 << 63 else value


def _signed(values: pa.Array[Any]) -> pa.Array[Any]:
    return values.cast(pa.string()) if pa.types.is_uint64(values.type) else values
