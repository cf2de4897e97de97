"""The destination contract over a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import pytest
from psycopg import sql

from etl_core.destination.postgres.destination import PostgresDestination
from etl_core.destination.protocol import Destination
from etl_core.schema.table import Column, TableSchema
from etl_core.testing.destination_counting_suite import CountingSuite
from etl_core.testing.destination_deleted_suite import DeletedRowsSuite
from etl_core.testing.destination_history_suite import HistorySuite
from etl_core.testing.destination_log_suite import LogSuite, RotatedLogs
from etl_core.testing.destination_multiset_suite import MultisetSuite
from etl_core.testing.destination_schemas_suite import AddColumn
from etl_core.testing.destination_sharing_suite import SharingSuite
from etl_core.testing.destination_suite import ChangesSuite, DestinationSuite
from etl_core.testing.destination_values_suite import CASES, Case
from etl_core.testing.destination_watermark_suite import MakeDestination
from etl_core.testing.hostile import HostileDestination
from etl_core.testing.postgres import Database

_TYPES = """
CREATE TYPE public.mood AS ENUM ('sad', 'it''s "ok"');
CREATE DOMAIN public.id AS uuid;
CREATE TYPE public.pair AS (a int, "B c" numeric(10,2), "order" text[]);
CREATE TYPE public.nest AS (kind text, pair public.pair);
"""
_CANONICAL: dict[str, list[Any]] = {
    # What numeric, jsonb and timetz print of such values is another text of the same one.
    "numeric": ["NaN", "1.10", "1" + "0" * 400, "-0.00000000000000000000000000000000000000000000001"],
    "jsons": [['{"a": 1}', None], []],
}


class TestPostgres(
    RotatedLogs, HistorySuite, LogSuite, MultisetSuite, DeletedRowsSuite, CountingSuite, SharingSuite, DestinationSuite
):
    """With the types of the values: they are stored as they are."""

    @pytest.fixture
    def make_destination(self, database: Database, tmp_path: Path) -> MakeDestination:
        database.execute(_TYPES)
        return lambda pipeline: PostgresDestination(database.dsn, pipeline, tmp_path)

    @pytest.fixture
    def cases(self) -> Sequence[Case]:
        return [(column, _CANONICAL.get(column.name, values)) for column, values in CASES]

    def holds(self, column: Column, value: Any) -> bool:
        # A number that is printed otherwise than it was written is tested by `cases`.
        return value != "1e400" and not (column.name == "unknowns" and b"\xff" in value)

    @pytest.fixture
    def add_column(self, database: Database) -> AddColumn:
        def add(_: Destination, schema: TableSchema, name: str) -> Callable[[], Collection[str]]:
            table = sql.Identifier(schema.name.namespace, schema.name.name)

            def names() -> Collection[str]:
                query = (
                    "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"
                )
                return [row[0] for row in database.execute(query, (table.as_string(None),))]

            database.execute(sql.SQL("ALTER TABLE {} ADD COLUMN {} text").format(table, sql.Identifier(name)))
            return names

        return add


class TestPostgresHostile(ChangesSuite):
    @pytest.fixture
    def make_destination(self, database: Database, tmp_path: Path) -> MakeDestination:
        return lambda pipeline: HostileDestination(PostgresDestination(database.dsn, pipeline, tmp_path))
