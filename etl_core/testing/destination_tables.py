"""Tables, rows and batches to test a destination with, and how rows are compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from etl_core.batch import PartialRows, StreamMove, StreamPosition, TableChanges, WatermarkMove, WriteBatch
from etl_core.destination.protocol import Destination
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.schema import pg_types
from etl_core.schema.pg_types import numeric_modifier as numeric_modifier
from etl_core.schema.table import Column, PgType, TableSchema, TypeKind
from etl_core.values.arrow import arrow_schema, key_schema

Row = tuple[Hashable, ...]
Rows = Sequence[Sequence[Any]]

INT4 = PgType(pg_types.INT4, "int4")
INT8 = PgType(pg_types.INT8, "int8")
TEXT = PgType(pg_types.TEXT, "text")
INCARNATION = "7312345678901234567/1/0/16B3748"
"""Of the suites' stream."""


def array_of(oid: int, element: PgType) -> PgType:
    """The type of one-dimensional arrays of `element`."""
    return PgType(oid, f"_{element.name}", kind=TypeKind.ARRAY, element=element, delimiter=element.delimiter)


def table(
    name: str | TableName,
    *columns: Column,
    key: Sequence[str] = ("id",),
    table_id: int = 16_400,
) -> TableSchema:
    """A schema; a `name` in text is in namespace `public`."""
    full = name if isinstance(name, TableName) else TableName("public", name)
    return TableSchema(TableId(table_id), full, columns, tuple(key))


def orders(table_id: int = 16_400, name: str = "orders") -> TableSchema:
    """id int8 (key), status text, note text, amount int4."""
    return table(
        name,
        Column("id", INT8, nullable=False),
        Column("status", TEXT),
        Column("note", TEXT),
        Column("amount", INT4),
        table_id=table_id,
    )


def rows(schema: TableSchema, data: Rows = (), without: Sequence[str] = ()) -> pa.Table:
    """Rows in the Arrow schema of `schema` less the columns `without`; values as Python objects."""
    arrow = pa.schema([field for field in arrow_schema(schema) if field.name not in without])
    return _columns(arrow, data)


def keys(schema: TableSchema, data: Rows = ()) -> pa.Table:
    """Rows of the key columns only."""
    return _columns(key_schema(schema), data)


def _columns(arrow: pa.Schema, data: Rows) -> pa.Table:
    columns = [[row[at] for row in data] for at in range(len(arrow))]
    return pa.Table.from_arrays(
        [_array(values, field.type) for values, field in zip(columns, arrow, strict=True)], schema=arrow
    )


def _array(values: list[Any], kind: pa.DataType) -> Any:
    if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        # Python's datetime cannot say infinity, 24:00:00 or the year 294246: temporal values are given as integers.
        storage = pa.int32() if pa.types.is_date32(kind) else pa.int64()
        return pa.array(values, storage).cast(kind)
    return pa.array(values, kind)


def changes(
    schema: TableSchema,
    *,
    inserts: Rows = (),
    upserts: Rows = (),
    deletes: Rows = (),
    partials: Iterable[PartialRows] = (),
    truncate: bool = False,
    removals: Rows = (),
) -> TableChanges:
    return TableChanges(
        schema,
        rows(schema, inserts),
        rows(schema, upserts),
        keys(schema, deletes),
        tuple(partials),
        truncate,
        removals=rows(schema, removals) if removals else None,
    )


def partial(schema: TableSchema, unchanged: Sequence[str], moved: Mapping[Row, Sequence[Any]]) -> PartialRows:
    """`moved` maps the origin key to the new row less the columns `unchanged`."""
    return PartialRows(
        tuple(unchanged), keys(schema, list(moved)), rows(schema, list(moved.values()), without=unchanged)
    )


def batch(
    *parts: TableChanges,
    expected: int,
    new: int,
    stream: int | None = None,
    stream_from: int | None = None,
    tables: Iterable[TableId] = (),
) -> WriteBatch:
    """A batch that moves the tables of `parts`, and `tables`, from watermark `expected` to `new`.

    `stream` is where it moves the stream, None for a batch that does not, `stream_from` where from, None for nowhere.
    """
    touched = {part.schema.table_id for part in parts} | set(tables)
    move = WatermarkMove(Lsn(expected), Lsn(new))
    moved = None if stream is None else StreamMove(stream_at(stream_from), StreamPosition(Lsn(stream), INCARNATION))
    return WriteBatch(iter(parts), dict.fromkeys(touched, move), moved)


def stream_at(lsn: int | None) -> StreamPosition | None:
    """A position of the suites' stream."""
    return None if lsn is None else StreamPosition(Lsn(lsn), INCARNATION)


def publish(destination: Destination, schema: TableSchema, data: Rows = (), *, watermark: int = 100) -> int:
    """Copies `data` into the table and publishes it."""
    with destination.copy(schema) as copy:
        for record_batch in rows(schema, data).to_batches():
            copy.write(record_batch)
        return copy.publish(Lsn(watermark))


def contents(destination: Destination, schema: TableSchema) -> Counter[Row]:
    """The rows of a table with how often each is there; temporal values as integers, lists as tuples."""
    counted: Counter[Row] = Counter()
    for record_batch in destination.read(schema):
        assert record_batch.schema.equals(arrow_schema(schema)), record_batch.schema
        counted.update(comparable(pa.Table.from_batches([record_batch])))
    return counted


def comparable(data: pa.Table) -> list[Row]:
    """Every row as a tuple that can be compared and counted."""
    columns = [[_hashable(value) for value in _plain(column).to_pylist()] for column in data.columns]
    return list(zip(*columns, strict=True))


def _plain(column: Any) -> Any:
    kind = column.type
    if isinstance(kind, pa.ListType) and pa.types.is_temporal(kind.value_type) and not _is_interval(kind.value_type):
        return column.cast(pa.list_(_storage(kind.value_type)))
    if pa.types.is_temporal(kind) and not _is_interval(kind):
        return column.cast(_storage(kind))
    return column


def _is_interval(kind: pa.DataType) -> bool:
    return pa.types.is_interval(kind)


def _storage(kind: pa.DataType) -> pa.DataType:
    return pa.int32() if pa.types.is_date32(kind) else pa.int64()


def _hashable(value: Any) -> Hashable:
    if isinstance(value, dict):
        return tuple((name, _hashable(part)) for name, part in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(_hashable(element) for element in value)
    if isinstance(value, float):
        return repr(value)  # NaN equals NaN, and -0.0 is not 0.0
    result: Hashable = value
    return result
