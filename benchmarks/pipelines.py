"""Pipelines of a benchmark: built from a few words, in this process and in the ones that are measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.server import PUBLICATION
from etl_core.config import CopyConfig, DestinationConfig, PipelineConfig, SourceConfig, StateConfig
from etl_core.destination.null import NullDestination
from etl_core.destination.protocol import Destination
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.pipeline import Pipeline
from etl_core.replication.observer import Observer
from etl_core.state.sql_store import open_store

PIPELINE = "bench"
TABLE = TableName("public", "orders")
CONNECTIONS = 2


def build_pipeline(
    dsn: str, directory: Path, *, destination: Destination | None = None, observer: Observer | None = None
) -> Pipeline:
    """State and DuckDB file in `directory`; batches as by default, the copy over two connections."""
    config = PipelineConfig(
        PIPELINE,
        SourceConfig(PUBLICATION, dsn=dsn),
        DestinationConfig("duckdb", {"path": str(database_file(directory))}),
        StateConfig(f"sqlite:///{directory / 'state.db'}"),
        copy=CopyConfig(workers=1, connections_per_table=CONNECTIONS),
    )
    return Pipeline(config, destination=destination, observer=observer)


def database_file(directory: Path) -> Path:
    return directory / "orders.duckdb"


def null_destination(directory: Path, watermarks: Mapping[str, int]) -> NullDestination:
    """A destination without rows whose tables have the watermarks that an earlier process saw."""
    destination = NullDestination()
    store = open_store(f"sqlite:///{directory / 'state.db'}", PIPELINE)
    for table_id, watermark in watermarks.items():
        stored = store.schema(TableId(int(table_id)))
        assert stored is not None
        with destination.copy(stored[1]) as copy:
            copy.publish(Lsn(watermark))
    store.close()
    return destination


def watermarks_of(destination: Destination) -> dict[str, Any]:
    """For `null_destination`, as JSON can hold it."""
    return {str(table_id): int(lsn) for table_id, lsn in destination.positions().tables.items()}
