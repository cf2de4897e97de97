"""Each destination stores what the type families give: every built-in type, every Arrow type, and lists of them."""

from __future__ import annotations

import pyarrow as pa
import pytest

from etl_core.destination.bigquery.types import bigquery_field
from etl_core.destination.duckdb_sql.types import duckdb_type
from etl_core.destination.postgres.types import type_name
from etl_core.destination.snowflake.types import snowflake_type
from etl_core.schema.pg_types import _TYPES, MONEY, builtin
from etl_core.schema.table import Column, PgType, TypeKind
from etl_core.testing.destination_tables import array_of, numeric_modifier
from etl_core.values.arrow import arrow_type
from etl_core.values.families import FAMILIES
from etl_core.values.family import CARRIED

_MODIFIERS = (-1, 1, 7, numeric_modifier(38, 0), numeric_modifier(38, 38), numeric_modifier(60, 10))


def _types() -> list[PgType]:
    found = [pg_type for oid, *_ in _TYPES if (pg_type := builtin(oid)) is not None]
    found += [PgType(MONEY, "money", form=decimals) for decimals in (0, 2, 10)]
    for family in FAMILIES:
        found += [PgType(70_000, name, "public", form=form) for name in family.names for form in (-1, 0)]
        found += [PgType(70_000, "mine", "public", kind) for kind in family.kinds]
    return found


@pytest.mark.parametrize("modifier", _MODIFIERS)
def test_every_type_has_a_place_in_every_destination(modifier: int) -> None:
    for pg_type in _types():
        one, many = Column("c", pg_type, modifier), Column("c", array_of(70_001, pg_type), modifier)
        assert duckdb_type(one)
        assert bigquery_field(one).sql
        assert snowflake_type(one)
        # In a database that has only built-in types.
        assert type_name(many, {}) in (type_name(one, {}) + "[]", "text")
        if pa.types.is_list(arrow_type(many)):
            assert duckdb_type(many) == duckdb_type(one) + "[]"
            assert bigquery_field(many).element == bigquery_field(one)


def test_every_type_that_is_carried_is_of_some_family() -> None:
    used = {family.arrow_type(-1) for family in FAMILIES}
    assert set(CARRIED) <= used


def test_a_type_of_a_new_kind_is_stored_as_bytes() -> None:
    assert duckdb_type(Column("c", PgType(70_000, "mine", "public", TypeKind.PSEUDO))) == "BLOB"
