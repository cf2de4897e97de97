from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from etl_core.destination.duckdb.destination import DuckDBDestination
from etl_core.destination.duckdb_sql.types import duckdb_type, is_stored_as
from etl_core.schema.table import Column
from etl_core.testing.destination_tables import INT8, publish, table
from etl_core.testing.destination_values_suite import CASES

_STORED = {
    "bool": "BOOLEAN",
    "int2": "SMALLINT",
    "int4": "INTEGER",
    "int8": "BIGINT",
    "float4": "FLOAT",
    "float8": "DOUBLE",
    "money": "DECIMAL(12,2)",
    "wide": "DECIMAL(38,10)",
    "numeric": "VARCHAR",
    "text": "VARCHAR",
    "bytea": "BLOB",
    "uuid": "UUID",
    "domain": "UUID",
    "date": "DATE",
    "time": "TIME",
    "timestamp": "TIMESTAMP",
    "timestamptz": "TIMESTAMP WITH TIME ZONE",
    "interval": "INTERVAL",
    "json": "JSON",
    "jsonb": "JSON",
    "mood": "VARCHAR",
    "unknown": "BLOB",
    "unknowns": "BLOB[]",
    "dollars": "DECIMAL(19,2)",
    "yen": "DECIMAL(19,0)[]",
    "xid8": "UBIGINT",
    "bit": "BIT",
    "timetz": "TIME WITH TIME ZONE",
    "vectors_of_ints": "SMALLINT[]",
    "point": "STRUCT(x DOUBLE, y DOUBLE)",
    "path": "STRUCT(closed BOOLEAN, points STRUCT(x DOUBLE, y DOUBLE)[])",
    "polygon": "STRUCT(x DOUBLE, y DOUBLE)[]",
    "hstore": "MAP(VARCHAR, VARCHAR)",
    "vector": "FLOAT[3]",
    "any_vector": "FLOAT[]",
    "pair": 'STRUCT(a INTEGER, "B c" DECIMAL(10,2), "order" VARCHAR[])',
    "nest": 'STRUCT(kind VARCHAR, pair STRUCT(a INTEGER, "B c" DECIMAL(10,2), "order" VARCHAR[]))',
    "int4range": "STRUCT(lower INTEGER, upper INTEGER, lower_inc BOOLEAN, upper_inc BOOLEAN, isempty BOOLEAN)",
    "numranges": "STRUCT(lower VARCHAR, upper VARCHAR, lower_inc BOOLEAN, upper_inc BOOLEAN, isempty BOOLEAN)[]",
    "grid": "INTEGER[][]",
    "feeling": "ENUM('sad', 'it''s \"ok\"', '', 'a[]')",
    "feelings": "ENUM('sad', 'it''s \"ok\"', '', 'a[]')[]",
    "bits": "BIT[]",
    "points": "STRUCT(x DOUBLE, y DOUBLE)[]",
    "hstores": "MAP(VARCHAR, VARCHAR)[]",
    "vectors": "FLOAT[2][]",
    "pairs": 'STRUCT(a INTEGER, "B c" DECIMAL(10,2), "order" VARCHAR[])[]',
    "ints": "INTEGER[]",
    "texts": "VARCHAR[]",
    "uuids": "UUID[]",
    "jsons": "JSON[]",
    "dates": "DATE[]",
    "moods": "VARCHAR[]",
    "moneys": "DECIMAL(10,2)[]",
}


@pytest.mark.parametrize("column", [column for column, _ in CASES], ids=lambda column: column.name)
def test_a_column_has_the_stored_type_duckdb_names(column: Column, tmp_path: Path) -> None:
    destination = DuckDBDestination(tmp_path / "x.duckdb", "shop")
    destination.prepare()
    publish(destination, table("t", Column("id", INT8), column))
    with duckdb.connect(tmp_path / "x.duckdb") as connection:
        described = {row[0]: row[1] for row in connection.execute("DESCRIBE public.t").fetchall()}
    assert described[column.name] == _STORED[column.name]
    assert is_stored_as(duckdb_type(column), described[column.name])
