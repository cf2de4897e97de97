"""Which tables' changes are streamed, and why."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("google.cloud.bigquery", reason="the extra is missing: pip install 'etl-dagster[bigquery]'")

from etl_core.destination.bigquery.method import choose
from etl_core.destination.bigquery.options import parse_options
from etl_core.errors import ConfigError, TableError
from etl_core.schema import pg_types
from etl_core.schema.table import Column, PgType, ReplicaIdentity, TableSchema, TypeKind
from etl_core.testing.destination_tables import INT4, INT8, TEXT, array_of, table

FLOAT8 = PgType(pg_types.FLOAT8, "float8")
UUID = PgType(pg_types.UUID, "uuid")
MOOD = PgType(50_000, "mood", "public", TypeKind.ENUM)


def with_columns(*columns: Column) -> TableSchema:
    return table("t", Column("id", INT8), *columns)


@pytest.mark.parametrize(
    ("schema", "method", "reason"),
    [
        (with_columns(Column("n", INT4), Column("u", UUID), Column("m", MOOD)), "storage_write_cdc", "whole rows"),
        (with_columns(Column("note", TEXT)), "load_merge", "column note"),
        (with_columns(Column("tags", array_of(50_001, INT4))), "load_merge", "column tags"),
        (
            replace(with_columns(Column("note", TEXT)), replica_identity=ReplicaIdentity.FULL),
            "storage_write_cdc",
            "whole rows",
        ),
        (table("t", Column("code", TEXT), Column("n", INT4), key=("code",)), "storage_write_cdc", "whole rows"),
        (table("t", Column("x", FLOAT8), key=("x",)), "load_merge", "key column x is FLOAT64"),
        (replace(with_columns(), key=()), "load_merge", "no key"),
        (
            table("t", *(Column(f"k{at}", INT4) for at in range(17)), key=tuple(f"k{at}" for at in range(17))),
            "load_merge",
            "17 columns",
        ),
    ],
    ids=["fixed", "text", "array", "full", "text key", "float key", "no key", "wide key"],
)
def test_auto_streams_what_can_always_be_streamed(schema: TableSchema, method: str, reason: str) -> None:
    chosen, why = choose(schema, "auto")
    assert chosen == method
    assert reason in why
    assert choose(schema, "load_merge")[0] == "load_merge"
    if "key" in reason or "17" in reason:
        with pytest.raises(TableError, match="cannot be streamed"):
            choose(schema, "storage_write_cdc")
    else:
        logged = "storage_write_cdc_redo" if "column" in reason else "storage_write_cdc"
        assert choose(schema, "storage_write_cdc")[0] == logged
        assert choose(schema, "storage_write_cdc", may_be_stale=True)[0] == "storage_write_cdc"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"method": "streaming"}, "destination.method"),
        ({"method": "auto", "max_staleness": "soon"}, "destination.max_staleness"),
        ({"method": "auto", "max_staleness": "2d"}, "destination.max_staleness"),
        ({"method": "auto", "max_staleness": "25h"}, "destination.max_staleness"),
        ({"max_staleness": "10m"}, "destination.max_staleness"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_options({"project": "p", **options})
    assert caught.value.field == field
    assert caught.value.hint


def test_staleness_is_a_duration() -> None:
    parsed = parse_options({"project": "p", "method": "auto", "max_staleness": "10m"})
    assert (parsed.layout.method, parsed.layout.max_staleness) == ("auto", 600.0)
