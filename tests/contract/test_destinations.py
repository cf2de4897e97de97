"""The destination contract over every destination we ship."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import duckdb
import pytest

from etl_core.destination.duckdb.destination import DuckDBDestination
from etl_core.destination.memory import MemoryDatabase, MemoryDestination
from etl_core.destination.null import NullDestination
from etl_core.destination.protocol import Destination
from etl_core.schema.table import TableSchema
from etl_core.testing.destination_counting_suite import CountingSuite
from etl_core.testing.destination_deleted_suite import DeletedRowsSuite
from etl_core.testing.destination_history_suite import HistorySuite
from etl_core.testing.destination_log_suite import LogSuite, RotatedLogs
from etl_core.testing.destination_multiset_suite import MultisetSuite
from etl_core.testing.destination_schemas_suite import AddColumn
from etl_core.testing.destination_sharing_suite import SharingSuite
from etl_core.testing.destination_suite import ChangesSuite, DestinationSuite
from etl_core.testing.destination_watermark_suite import MakeDestination, WatermarkSuite
from etl_core.testing.hostile import HostileDestination
from etl_core.testing.scripted_destination import ScriptedDestination


class TestMemory(LogSuite, MultisetSuite, DeletedRowsSuite, CountingSuite, DestinationSuite):
    @pytest.fixture
    def make_destination(self) -> MakeDestination:
        database = MemoryDatabase()
        return lambda pipeline: MemoryDestination(database, pipeline)


class TestDuckDB(
    RotatedLogs,
    HistorySuite,
    LogSuite,
    MultisetSuite,
    DeletedRowsSuite,
    CountingSuite,
    SharingSuite,
    DestinationSuite,
):
    @pytest.fixture
    def make_destination(self, tmp_path: Path) -> MakeDestination:
        return lambda pipeline: DuckDBDestination(tmp_path / "public.duckdb", pipeline)

    @pytest.fixture
    def add_column(self, tmp_path: Path) -> AddColumn:
        def add(_: Destination, schema: TableSchema, name: str) -> Callable[[], Collection[str]]:
            table = f'public."{schema.name.namespace}"."{schema.name.name}"'

            def names() -> Collection[str]:
                with duckdb.connect(tmp_path / "public.duckdb") as connection:
                    return [row[0] for row in connection.execute(f"DESCRIBE {table}").fetchall()]

            with duckdb.connect(tmp_path / "public.duckdb") as connection:
                connection.execute(f'ALTER TABLE {table} ADD COLUMN "{name}" VARCHAR')
            return names

        return add


class TestScripted(DestinationSuite):
    """With an empty script it is what it wraps."""

    @pytest.fixture
    def make_destination(self) -> MakeDestination:
        database = MemoryDatabase()
        return lambda pipeline: ScriptedDestination(MemoryDestination(database, pipeline))


class TestMemoryHostile(LogSuite, MultisetSuite, DeletedRowsSuite, DestinationSuite):
    """Answers are lost, requests arrive twice and late."""

    @pytest.fixture
    def make_destination(self) -> MakeDestination:
        database = MemoryDatabase()
        return lambda pipeline: HostileDestination(MemoryDestination(database, pipeline))


class TestDuckDBHostile(LogSuite, DeletedRowsSuite, ChangesSuite):
    @pytest.fixture
    def make_destination(self, tmp_path: Path) -> MakeDestination:
        return lambda pipeline: HostileDestination(DuckDBDestination(tmp_path / "hostile.duckdb", pipeline))


class TestNull(WatermarkSuite):
    @pytest.fixture
    def make_destination(self) -> MakeDestination:
        return lambda _pipeline: NullDestination()
