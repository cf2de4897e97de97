"""Blocks of COPY in CSV: NULL against the empty text, quoting, and what pyarrow.csv would change if it were let."""

from __future__ import annotations

from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from etl_core.errors import TableError, ValueOutOfRange
from etl_core.identifiers import TableId, TableName
from etl_core.schema import pg_types
from etl_core.schema.pg_types import builtin
from etl_core.schema.table import Column, PgType, TableSchema
from etl_core.values import csv_column_types, load, load_batch, load_missing, read_csv
from etl_core.values.arrow import arrow_schema


def known(oid: int) -> PgType:
    pg_type = builtin(oid)
    assert pg_type is not None
    return pg_type


def table(*columns: Column) -> TableSchema:
    return TableSchema(TableId(1), TableName("public", "t"), columns, ())


TEXTS = table(Column("a", known(pg_types.TEXT)), Column("b", known(pg_types.TEXT)))


def csv_text(value: str | None, *, alone: bool = False) -> str:
    """As CopyAttributeOutCSV quotes (src/backend/commands/copyto.c)."""
    if value is None:
        return ""
    if value == "" or (alone and value == "\\.") or any(character in ',"\r\n' for character in value):
        return '"' + value.replace('"', '""') + '"'
    return value


NASTY = st.none() | st.text(max_size=8) | st.text(alphabet='a",\r\n\\. \ufeff', max_size=6)


@given(st.lists(st.tuples(NASTY, NASTY), max_size=10))
@example([("\ufeffa", None), ("NaN", "NULL")])
@example([(None, None), ("", ""), ("\\.", "\r\n")])
def test_text_survives(rows: list[tuple[str | None, str | None]]) -> None:
    block = "".join(f"{csv_text(a)},{csv_text(b)}\n" for a, b in rows)
    batch = read_csv(block.encode(), TEXTS)
    assert batch.schema == arrow_schema(TEXTS)
    assert [(row["a"], row["b"]) for row in batch.to_pylist()] == rows


@given(st.lists(NASTY, max_size=10))
@example([None])
@example([None, "", None])
def test_one_column_whose_null_is_an_empty_line(values: list[str | None]) -> None:
    schema = table(Column("a", known(pg_types.TEXT)))
    block = "".join(csv_text(value, alone=True) + "\n" for value in values)
    assert read_csv(block.encode(), schema).column(0).to_pylist() == values


def test_types() -> None:
    schema = table(
        Column("i", known(pg_types.INT8)),
        Column("b", known(pg_types.BOOL)),
        Column("f", known(pg_types.FLOAT8)),
        Column("n", known(pg_types.NUMERIC), (10 << 16 | 2) + 4),
        Column("raw", known(790)),
        Column("l", known(1009)),
    )
    block = memoryview(b'1,t,-0,1.50,$1.00,"{a,""b \\""c\\"""",NULL}"\n,,,,,\n-5,f,NaN,-0.01,"$1,000.00",{}\n')
    batch = read_csv(block, schema)
    assert batch.schema == arrow_schema(schema)
    assert batch.column("i").to_pylist() == [1, None, -5]
    assert batch.column("b").to_pylist() == [True, None, False]
    assert str(batch.column("f").to_pylist()) == "[-0.0, None, nan]"
    assert batch.column("n").to_pylist() == [Decimal("1.50"), None, Decimal("-0.01")]
    assert batch.column("raw").to_pylist() == [b"$1.00", None, b"$1,000.00"]
    assert batch.column("l").to_pylist() == [["a", 'b "c"', None], None, []]


@pytest.mark.parametrize("block", [b"1\n", b"1,2,3\n", b'"1,2\n'])
def test_what_is_not_csv_of_the_table_is_refused_without_showing_it(block: bytes) -> None:
    with pytest.raises(TableError, match=r"table public\.t is not CSV with its 2 columns") as raised:
        read_csv(block, TEXTS)
    assert raised.value.__suppress_context__


def test_a_value_out_of_range_is_named() -> None:
    with pytest.raises(ValueOutOfRange, match="column i of table"):
        read_csv(b"1\nx\n", table(Column("i", known(pg_types.INT8))))


def test_a_block_in_several_chunks() -> None:
    assert csv_column_types(TEXTS) == {"a": pa.string(), "b": pa.string()}
    chunks = [pa.record_batch({"a": ["1"], "b": [None]}, schema=pa.schema(dict.fromkeys("ab", pa.string())))] * 2
    assert load_batch(pa.Table.from_batches(chunks), TEXTS).to_pylist() == [{"a": "1", "b": None}] * 2
    assert load_batch(chunks[0], TEXTS).to_pylist() == [{"a": "1", "b": None}]


def test_load_of_nothing_has_the_type() -> None:
    for oid in (pg_types.BOOL, pg_types.INT4, pg_types.BYTEA, pg_types.DATE, pg_types.TIME, pg_types.INTERVAL, 1009):
        schema = table(Column("c", known(oid)))
        assert (
            load(pa.array([], pa.binary()), schema.columns[0], schema.name).type == arrow_schema(schema).field(0).type
        )
        nulls = load(pa.array([None, None], pa.binary()), schema.columns[0], schema.name)
        nulls.validate(full=True)
        assert nulls.to_pylist() == [None, None]


def test_missing_value() -> None:
    name = TableName("public", "t")
    column = Column("c", known(pg_types.NUMERIC), (10 << 16 | 2) + 4, missing_value="1.50")
    assert load_missing(column, name) == pa.scalar(Decimal("1.50"), pa.decimal128(10, 2))
    absent = load_missing(Column("c", known(1009)), name)
    assert absent.type == pa.list_(pa.string())
    assert not absent.is_valid
