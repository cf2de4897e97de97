"""The Arrow type of each PostgreSQL type, and what is refused."""

from __future__ import annotations

import pyarrow as pa
import pytest

from etl_core.identifiers import TableId, TableName
from etl_core.schema.pg_types import builtin, format_type, modifiers
from etl_core.schema.table import Column, PgType, TableSchema, TypeKind
from etl_core.values.arrow import arrow_schema, arrow_type, is_supported, key_schema


def known(oid: int) -> PgType:
    pg_type = builtin(oid)
    assert pg_type is not None
    return pg_type


def modifier(precision: int, scale: int) -> int:
    return (precision << 16 | (scale & 0x7FF)) + 4


@pytest.mark.parametrize(
    ("oid", "expected"),
    [
        (16, pa.bool_()),
        (17, pa.binary()),
        (18, pa.string()),
        (19, pa.string()),
        (20, pa.int64()),
        (21, pa.int16()),
        (23, pa.int32()),
        (25, pa.string()),
        (26, pa.int64()),
        (28, pa.int64()),
        (114, pa.string()),
        (700, pa.float32()),
        (701, pa.float64()),
        (1042, pa.string()),
        (1043, pa.string()),
        (1082, pa.date32()),
        (1083, pa.time64("us")),
        (1114, pa.timestamp("us")),
        (1184, pa.timestamp("us", tz="UTC")),
        (1186, pa.month_day_nano_interval()),
        (1700, pa.string()),
        (2950, pa.string()),
        (3802, pa.string()),
        (869, pa.string()),
        (1266, pa.string()),
        (3904, pa.string()),
        (3905, pa.list_(pa.string())),
        (4535, pa.string()),
        (1016, pa.list_(pa.int64())),
        (1185, pa.list_(pa.timestamp("us", tz="UTC"))),
    ],
)
def test_known_types(oid: int, expected: pa.DataType) -> None:
    column = Column("c", known(oid))
    assert arrow_type(column) == expected
    assert is_supported(column)


@pytest.mark.parametrize("oid", [790, 791])
def test_unknown_types_are_bytes(oid: int) -> None:
    """So is money whose decimals nobody has asked for; an array of it is a list."""
    column = Column("c", known(oid))
    assert arrow_type(column) == (pa.binary() if oid == 790 else pa.list_(pa.binary()))
    assert not is_supported(column)


@pytest.mark.parametrize(
    ("precision", "scale", "expected"),
    [
        (1, 0, pa.decimal128(1, 0)),
        (38, 38, pa.decimal128(38, 38)),
        (38, 0, pa.decimal128(38, 0)),
        (39, 2, pa.string()),
        (1000, 500, pa.string()),
        (3, 5, pa.decimal128(5, 5)),
        (5, -2, pa.decimal128(7, 0)),
        (3, 39, pa.string()),
        (37, -2, pa.string()),
    ],
)
def test_numeric(precision: int, scale: int, expected: pa.DataType) -> None:
    assert arrow_type(Column("c", known(1700), modifier(precision, scale))) == expected
    assert arrow_type(Column("c", known(1231), modifier(precision, scale))) == pa.list_(expected)
    assert format_type(Column("c", known(1231), modifier(precision, scale))) == f"numeric({precision},{scale})[]"


def test_types_of_users() -> None:
    mood = PgType(50_000, "mood", "public", TypeKind.ENUM)
    amount = PgType(50_001, "amount", "public", TypeKind.DOMAIN, known(20))
    citext = PgType(50_002, "citext", "public")
    assert arrow_type(Column("c", mood)) == pa.string()
    assert arrow_type(Column("c", PgType(50_003, "_mood", "public", TypeKind.ARRAY, mood))) == pa.list_(pa.string())
    assert arrow_type(Column("c", amount)) == pa.int64()
    assert arrow_type(Column("c", PgType(50_004, "big", "public", TypeKind.DOMAIN, amount))) == pa.int64()
    assert arrow_type(Column("c", citext)) == pa.string()
    assert arrow_type(Column("c", PgType(50_004, "floatrange", "public", TypeKind.RANGE))) == pa.string()
    shape = PgType(50_005, "geometry", "public")
    assert not is_supported(Column("c", shape))
    assert not is_supported(Column("c", PgType(50_006, "d", "public", TypeKind.DOMAIN, shape)))
    assert not is_supported(Column("c", PgType(50_007, "_geometry", "public", TypeKind.ARRAY, shape)))
    assert not is_supported(Column("c", PgType(50_008, "citext", "public", TypeKind.COMPOSITE)))


def test_schemas() -> None:
    columns = (
        Column("b", known(25), nullable=False),
        Column("a", known(23), nullable=False),
        Column("c", known(1700), modifier(5, 2)),
    )
    schema = TableSchema(TableId(1), TableName("public", "t"), columns, ("b", "a"))
    key: dict[str, pa.DataType] = {"b": pa.string(), "a": pa.int32()}
    assert arrow_schema(schema) == pa.schema(key | {"c": pa.decimal128(5, 2)})
    assert key_schema(schema) == pa.schema(key)
    assert all(field.nullable for field in arrow_schema(schema))


def test_a_domain_says_the_precision_of_its_base() -> None:
    """Alone, over another domain, over an array, and as the element of one; a column of it has no modifier itself."""
    amount = PgType(50_001, "amount", "public", TypeKind.DOMAIN, known(1700), modifier(10, 2))
    price = PgType(50_002, "price", "public", TypeKind.DOMAIN, amount)
    amounts = PgType(50_003, "_amount", "public", TypeKind.ARRAY, amount)
    list_of = PgType(50_004, "amounts", "public", TypeKind.DOMAIN, known(1231), modifier(10, 2))
    decimal = pa.decimal128(10, 2)
    found = [arrow_type(Column("c", pg_type)) for pg_type in (amount, price, amounts, list_of)]
    assert found == [decimal, decimal, pa.list_(decimal), pa.list_(decimal)]
    assert modifiers(Column("c", price)) == (-1, -1, modifier(10, 2))
