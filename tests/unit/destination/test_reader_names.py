"""What queries call the tables: as the destinations call them, and as Dagster's assets say."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from etl_core.config import DestinationConfig
from etl_core.destination.registry import reader_names
from etl_core.errors import ConfigError
from etl_core.identifiers import TableId, TableName
from etl_core.schema.table import Column, PgType, TableSchema

ORDERS = TableName("sales", "Order Lines")
SCHEMA = TableSchema(
    TableId(1),
    ORDERS,
    (
        Column("id", PgType(20, "int8")),
        Column("Who?", PgType(25, "text")),
        Column("price", PgType(1700, "numeric"), type_modifier=(10 << 16) + 2 + 4),
    ),
    ("id",),
)


def test_a_duckdb_file_has_the_names_of_postgresql_in_a_database_called_after_the_file() -> None:
    names = reader_names(DestinationConfig("duckdb", {"path": "data/ware.house.duckdb"}))
    assert names.database == "ware"
    assert names.path(ORDERS) == ("sales", "Order Lines")
    assert [(column.name, column.source, column.type) for column in names.columns(SCHEMA)] == [
        ("id", "id", "BIGINT"),
        ("Who?", "Who?", "VARCHAR"),
        ("price", "price", "DECIMAL(10,2)"),
    ]


@pytest.mark.parametrize("name", ["main", "Temp", "system", "warehouse", "main_db"])
def test_the_database_is_what_duckdb_calls_it(tmp_path: Path, name: str) -> None:
    file = str(tmp_path / f"{name}.duckdb")
    with duckdb.connect(file) as connection:
        called = connection.execute("SELECT current_database()").fetchall()
    assert called == [(reader_names(DestinationConfig("duckdb", {"path": file})).database,)]


@pytest.mark.parametrize(("options", "dataset"), [({}, "sales"), ({"dataset": "raw_{namespace}"}, "raw_sales")])
def test_bigquery_has_names_of_its_own(options: dict[str, object], dataset: str) -> None:
    names = reader_names(DestinationConfig("bigquery", {"project": "my-project", **options}))
    assert names.database == "my-project"
    found, table = names.path(ORDERS)
    assert found == dataset
    assert table.startswith("Order_Lines_")
    [number, who, price] = names.columns(SCHEMA)
    assert (number.name, number.type) == ("id", "INT64")
    assert who.name.startswith("c_Who__")
    assert (who.source, who.type) == ("Who?", "STRING")
    assert price.type == "NUMERIC"


def test_postgresql_has_the_names_and_types_of_the_source() -> None:
    names = reader_names(DestinationConfig("postgres", {"dsn": "postgresql://etl:hunter2@host/ware"}))
    assert names.database == "ware"
    assert names.path(SCHEMA.name) == (SCHEMA.name.namespace, SCHEMA.name.name)
    assert [(column.name, column.source) for column in names.columns(SCHEMA)] == [
        (column.name, column.name) for column in SCHEMA.columns
    ]


@pytest.mark.parametrize("type_", ["memory", "null"])
def test_what_keeps_no_tables_is_refused(type_: str) -> None:
    with pytest.raises(ConfigError, match=f"destination type {type_} keeps no tables that can be queried") as raised:
        reader_names(DestinationConfig(type_))
    assert raised.value.hint == "use a type that does; etl destinations lists what there is"


def test_a_wrong_option_is_refused() -> None:
    with pytest.raises(ConfigError, match="pat"):
        reader_names(DestinationConfig("duckdb", {"pat": "shop.duckdb"}))
