"""The destination contract over Snowflake: on a strict double of its connector, or on an account.

With ETL_SNOWFLAKE_ACCOUNT and the other variables of `docs/destinations/snowflake.md` the same tests run there.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("snowflake.connector", reason="the extra is missing: pip install 'etl-dagster[snowflake]'")

from etl_core.destination.options import read_options
from etl_core.destination.protocol import Destination
from etl_core.destination.snowflake.connection import Connect
from etl_core.destination.snowflake.declaration import SNOWFLAKE, connector
from etl_core.destination.snowflake.destination import SnowflakeDestination
from etl_core.destination.snowflake.value_range import CALENDAR
from etl_core.schema.table import Column, TableSchema
from etl_core.testing.destination_counting_suite import CountingSuite
from etl_core.testing.destination_deleted_suite import DeletedRowsSuite
from etl_core.testing.destination_history_suite import HistorySuite
from etl_core.testing.destination_log_suite import LogSuite
from etl_core.testing.destination_multiset_suite import MultisetSuite
from etl_core.testing.destination_schemas_suite import AddColumn
from etl_core.testing.destination_sharing_suite import SharingSuite
from etl_core.testing.destination_suite import ChangesSuite, DestinationSuite
from etl_core.testing.destination_watermark_suite import MakeDestination
from etl_core.testing.hostile import HostileDestination
from etl_core.testing.postgres import Database
from etl_core.testing.servers.snowflake_double import SnowflakeAccount
from etl_core.values.ranges import DAY


@pytest.fixture
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Opens sessions in an empty database of the test's own."""
    if "ETL_SNOWFLAKE_ACCOUNT" not in os.environ:
        database: Database = request.getfixturevalue("database")
        with SnowflakeAccount(database.dsn) as account:
            yield account.connect
        return
    given = {
        option.name: os.environ[f"ETL_SNOWFLAKE_{option.name.upper()}"]
        for option in SNOWFLAKE.options or ()
        if f"ETL_SNOWFLAKE_{option.name.upper()}" in os.environ
    }
    name = f"ETL_TEST_{secrets.token_hex(6).upper()}"
    known = read_options("snowflake", SNOWFLAKE.options or (), given)
    outside = connector(known)(True)
    outside.cursor().execute(f"CREATE TRANSIENT DATABASE {name}")
    try:
        yield connector({**known, "database": name})
    finally:
        outside.cursor().execute(f"DROP DATABASE {name}")
        outside.close()


class TestSnowflake(
    HistorySuite, LogSuite, MultisetSuite, DeletedRowsSuite, CountingSuite, SharingSuite, DestinationSuite
):
    @pytest.fixture
    def make_destination(self, connect: Connect, tmp_path: Path) -> MakeDestination:
        return lambda pipeline: SnowflakeDestination(connect, "test", pipeline, tmp_path)

    def holds(self, column: Column, value: Any) -> bool:
        match column.name:
            case "date":
                return bool(CALENDAR.first_day <= value <= CALENDAR.last_day)
            case "timestamp" | "timestamptz" | "when":
                return bool(CALENDAR.first_day * DAY <= value < (CALENDAR.last_day + 1) * DAY)
            case "time":
                return bool(value < DAY)
            case "unknowns":
                return b"\xff" not in value[:3]
            case _:
                return True

    @pytest.fixture
    def add_column(self, connect: Connect) -> AddColumn:
        def add(_: Destination, schema: TableSchema, name: str) -> Callable[[], Collection[str]]:
            place = schema.name

            def names() -> Collection[str]:
                cursor = connect(True).cursor()
                query = "SELECT column_name FROM information_schema.columns WHERE table_schema = ? AND table_name = ?"
                cursor.execute(query, (place.namespace, place.name))
                return [row[0] for row in cursor.fetchall()]

            connect(True).cursor().execute(
                f'ALTER TABLE "{place.namespace}"."{place.name}" ADD COLUMN "{name}" VARCHAR'
            )
            return names

        return add


class TestSnowflakeHostile(ChangesSuite):
    @pytest.fixture
    def make_destination(self, connect: Connect, tmp_path: Path) -> MakeDestination:
        return lambda pipeline: HostileDestination(SnowflakeDestination(connect, "test", pipeline, tmp_path))
