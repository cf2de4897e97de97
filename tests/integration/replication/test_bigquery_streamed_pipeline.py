"""The engine into a table whose changes are streamed to BigQuery, killed again and again: proven equal by `verify`.

The emulator has the copy and the watermarks, a server with Google's rules of change data capture has the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

pytest.importorskip("google.cloud.bigquery", reason="the extra is missing: pip install 'etl-dagster[bigquery]'")

import grpc
from google.cloud.bigquery_storage_v1 import BigQueryWriteClient
from google.cloud.bigquery_storage_v1.services.big_query_write.transports import BigQueryWriteGrpcTransport

from etl_core.destination.bigquery import change_streams
from etl_core.destination.bigquery.cdc import CdcWriter
from etl_core.destination.bigquery.copy import BigQueryCopy
from etl_core.destination.bigquery.destination import BigQueryDestination
from etl_core.destination.bigquery.options import parse_options
from etl_core.destination.bigquery.types import arrow_schema_for, bigquery_field, from_bigquery, to_bigquery
from etl_core.errors import EtlError
from etl_core.lsn import Lsn
from etl_core.schema.table import TableSchema
from etl_core.testing.servers.bigquery_write_server import BigQueryWriteServer

if TYPE_CHECKING:
    from tests.integration.replication.conftest import Churn, Lab

pytestmark = pytest.mark.timeout(600)


@dataclass
class Rules:
    """Kills the process, of which there are several in this one, at every so-manieth batch."""

    server: BigQueryWriteServer
    every: int = 3
    batches: int = 0
    kills: int = 0


class Killed(BaseException):
    """The process: no error of a table or of the destination, which the engine would look into."""


class Warehouse(BigQueryDestination):
    """BigQuery: a copy is in the server too, and read from there."""

    def __init__(self, options: dict[str, str], pipeline: str, rules: Rules) -> None:
        super().__init__(parse_options({**options, "method": "auto"}), pipeline)
        self.rules = rules

    def copy(self, schema: TableSchema) -> BigQueryCopy:
        copy = super().copy(schema)
        publish = copy.publish

        def published(watermark: Lsn, expected: int | None = None) -> int:
            count = publish(watermark, expected)
            held = pa.Table.from_batches(super(Warehouse, self).read(schema), schema=None) if count else None
            columns = {column.name: bigquery_field(column).sql for column in schema.columns}
            stored = None if held is None else to_bigquery(held, schema.columns, schema.name)
            self.rules.server.create_table(self.place(schema).path, columns, schema.key, stored)
            return count

        copy.publish = published  # type: ignore[method-assign]
        return copy

    def read(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        rows = self.rules.server.read(self.place(schema).path, arrow_schema_for(schema.columns))
        return (from_bigquery(block, schema.columns) for block in rows.to_batches())

    def _apply(self, *arguments: Any) -> Any:
        self.rules.batches += 1
        if self.rules.batches % self.rules.every == 0:
            self.rules.kills += 1
            raise Killed("between the rows and the watermark")
        return super()._apply(*arguments)


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rules]:
    with BigQueryWriteServer() as server, grpc.insecure_channel(server.address) as channel:
        client = BigQueryWriteClient(transport=BigQueryWriteGrpcTransport(channel=channel))  # type: ignore[no-untyped-call]
        monkeypatch.setattr(
            change_streams, "CdcWriter", lambda _, path, schema, names: CdcWriter(client, path, schema, names)
        )
        yield Rules(server)


def test_killed_between_the_rows_and_the_watermark(
    lab: Lab,
    churn: Callable[..., Churn],
    churned: Callable[..., None],
    bigquery_options: dict[str, str],
    rules: Rules,
) -> None:
    churned("a", "b")
    for table in ("a", "b"):
        lab.execute(f"ALTER TABLE {table} REPLICA IDENTITY FULL")
    lab.publish()
    first = lab.pipeline(destination=Warehouse(bigquery_options, lab.config.pipeline, rules))
    assert not [outcome for outcome in first.sync() if isinstance(outcome, EtlError)]
    with churn("a", "b"):
        while rules.kills < 6:
            process = lab.pipeline(destination=Warehouse(bigquery_options, lab.config.pipeline, rules))
            with suppress(Killed), lab.running(process) as running:
                while running.is_alive:
                    running.pipeline.stop.wait(0.05)
            process.destination.close()  # the connections that its end would end
    rules.every = 1_000_000
    last = lab.pipeline(destination=Warehouse(bigquery_options, lab.config.pipeline, rules))
    lab.caught_up(last)
    assert {table.method for table in last.destination._book.tables().values()} == {"storage_write_cdc"}  # type: ignore[attr-defined]
    comparisons = last.verify()
    assert [comparison.table.name for comparison in comparisons] == ["a", "b"]
    assert all(comparison.is_equal for comparison in comparisons), comparisons
