"""The destination contract over every destination we ship."""

from __future__ import annotations

from pathlib import Path

import pytest

from etl_core.destination.duckdb.destination import DuckDBDestination
from etl_core.destination.memory import MemoryDatabase, MemoryDestination
from etl_core.destination.null import NullDestination
from etl_core.testing.destination_sharing_suite import SharingSuite
from etl_core.testing.destination_suite import DestinationSuite
from etl_core.testing.destination_watermark_suite import MakeDestination, WatermarkSuite
from etl_core.testing.scripted_destination import ScriptedDestination


class TestMemory(DestinationSuite):
    @pytest.fixture
    def make_destination(self) -> MakeDestination:
        database = MemoryDatabase()
        return lambda pipeline: MemoryDestination(database, pipeline)


class TestDuckDB(SharingSuite, DestinationSuite):
    @pytest.fixture
    def make_destination(self, tmp_path: Path) -> MakeDestination:
        return lambda pipeline: DuckDBDestination(tmp_path / "public.duckdb", pipeline)


class TestScripted(DestinationSuite):
    """With an empty script it is what it wraps."""

    @pytest.fixture
    def make_destination(self) -> MakeDestination:
        database = MemoryDatabase()
        return lambda pipeline: ScriptedDestination(MemoryDestination(database, pipeline))


class TestNull(WatermarkSuite):
    @pytest.fixture
    def make_destination(self) -> MakeDestination:
        return lambda _pipeline: NullDestination()
