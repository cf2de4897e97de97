"""The destination contract over DuckLake, its catalog in a DuckDB file."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

from etl_core.destination.ducklake.destination import DuckLakeDestination
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
from etl_core.testing.destination_watermark_suite import MakeDestination
from etl_core.testing.hostile import HostileDestination
from tests.lakes.lake import lake


class TestDuckLake(
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
        return lambda pipeline: lake(tmp_path, pipeline)

    def holds(self, column: Column, value: Any) -> bool:
        return column.type.name == "json" or not re.search(r"-0\.0\b", repr(value))

    @pytest.fixture
    def add_column(self) -> AddColumn:
        def add(destination: Destination, schema: TableSchema, name: str) -> Callable[[], Collection[str]]:
            assert isinstance(destination, DuckLakeDestination)
            table = f'"{schema.name.namespace}"."{schema.name.name}"'

            def names() -> Collection[str]:
                with destination._lake.open() as connection:
                    return [row[0] for row in connection.execute(f"DESCRIBE {table}").fetchall()]

            with destination._lake.open() as connection:
                connection.execute(f'ALTER TABLE {table} ADD COLUMN "{name}" VARCHAR')
            return names

        return add


class TestDuckLakeHostile(ChangesSuite):
    @pytest.fixture
    def make_destination(self, tmp_path: Path) -> MakeDestination:
        return lambda pipeline: HostileDestination(lake(tmp_path, pipeline))
