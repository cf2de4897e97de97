"""The engine into tables whose changes are streamed to BigQuery, killed again and again: proven equal by `verify`.

The emulator has the copy and the watermarks, a server with Google's rules of change data capture has the rows. BigQuery
itself, with ETL_BIGQUERY_PROJECT set, has both.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

pytest.importorskip("google.cloud.bigquery", reason="the extra is missing: pip install 'etl-dagster[bigquery]'")

import grpc
from google.cloud.bigquery_storage_v1 import BigQueryWriteClient
from google.cloud.bigquery_storage_v1.services.big_query_write.transports import BigQueryWriteGrpcTransport

from etl_core.destination.bigquery import change_streams, redo_log
from etl_core.destination.bigquery.bookkeeping import StoredTable
from etl_core.destination.bigquery.cdc import CdcWriter
from etl_core.destination.bigquery.copy import BigQueryCopy
from etl_core.destination.bigquery.destination import BigQueryDestination
from etl_core.destination.bigquery.options import parse_options
from etl_core.destination.bigquery.redo_log import Redo, RedoLog
from etl_core.destination.bigquery.row_stream import RowStream
from etl_core.destination.bigquery.staging import append_all
from etl_core.destination.bigquery.types import arrow_schema_for, bigquery_field, from_bigquery, to_bigquery
from etl_core.errors import EtlError
from etl_core.identifiers import TableId
from etl_core.lsn import Lsn
from etl_core.schema.table import TableSchema
from etl_core.testing.servers.bigquery_emulator import BigQueryEmulator
from etl_core.testing.servers.bigquery_write_server import BigQueryWriteServer

if TYPE_CHECKING:
    from tests.integration.replication.conftest import Churn, Lab

pytestmark = pytest.mark.timeout(600)


@dataclass
class Rules:
    """Kills the process, of which there are several in this one, at every so-manieth batch, where `points` say."""

    server: BigQueryWriteServer | None
    points: Iterator[str] = field(default_factory=lambda: cycle(["staged", "committed", "streamed"]))
    every: int = 3
    batches: int = 0
    kills: int = 0
    due: str | None = None

    def reach(self, point: str) -> None:
        if point == self.due:
            self.kills += 1
            self.due = None
            raise Killed(point)


class Killed(BaseException):
    """The process: no error of a table or of the destination, which the engine would look into."""


class Log(RedoLog):
    """Lookups, which are the emulator's, find what the server has."""

    def __init__(self, warehouse: Warehouse) -> None:
        super().__init__(warehouse._clients, warehouse._book)
        self._rules = warehouse.rules
        self.schemas = warehouse.schemas

    def complete(self, table: StoredTable, *arguments: Any) -> Redo:
        if self._rules.server is not None:
            schema = self.schemas[table.table_id]
            rows = self._rules.server.read(table.place.path, arrow_schema_for(schema.columns)).combine_chunks()
            self._clients.run(f"TRUNCATE TABLE {table.place.sql}", "a test")
            append_all(self._clients, table.place, rows, table.name)
        return super().complete(table, *arguments)

    def finish(self, tables: Collection[StoredTable]) -> None:
        self._rules.reach("committed")
        super().finish(tables)

    def _stream(self, table: StoredTable, redo: Redo) -> None:
        super()._stream(table, redo)
        self._rules.reach("streamed")


class Warehouse(BigQueryDestination):
    """BigQuery: a copy is in the server too, and read from there."""

    def __init__(
        self, options: dict[str, str], pipeline: str, rules: Rules, schemas: dict[TableId, TableSchema]
    ) -> None:
        super().__init__(parse_options({**options, "method": "storage_write_cdc"}), pipeline)
        self.rules = rules
        self.schemas = schemas
        self._redo = Log(self)

    def copy(self, schema: TableSchema) -> BigQueryCopy:
        copy = super().copy(schema)
        server = self.rules.server
        if server is None:
            return copy
        self.schemas[schema.table_id] = schema
        publish = copy.publish

        def published(watermark: Lsn, expected: int | None = None) -> int:
            count = publish(watermark, expected)
            held = pa.Table.from_batches(super(Warehouse, self).read(schema), schema=None) if count else None
            columns = {column.name: bigquery_field(column).sql for column in schema.columns}
            stored = None if held is None else to_bigquery(held, schema.columns, schema.name)
            server.create_table(self.place(schema).path, columns, schema.key, stored)
            return count

        copy.publish = published  # type: ignore[method-assign]
        return copy

    def read(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        if self.rules.server is None:
            return super().read(schema)
        rows = self.rules.server.read(self.place(schema).path, arrow_schema_for(schema.columns))
        return (from_bigquery(block, schema.columns) for block in rows.to_batches())

    def _apply(self, *arguments: Any) -> Any:
        self.rules.batches += 1
        if self.rules.batches % self.rules.every == 0:
            self.rules.due = next(self.rules.points)
        self.rules.reach("staged")
        return super()._apply(*arguments)


@pytest.fixture
def rules(bigquery_emulator: BigQueryEmulator | None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rules]:
    if bigquery_emulator is None:
        yield Rules(None)
        return
    with BigQueryWriteServer() as server, grpc.insecure_channel(server.address) as channel:
        client = BigQueryWriteClient(transport=BigQueryWriteGrpcTransport(channel=channel))  # type: ignore[no-untyped-call]
        monkeypatch.setattr(
            change_streams, "CdcWriter", lambda _, path, schema, names: CdcWriter(client, path, schema, names)
        )
        monkeypatch.setattr(
            redo_log, "RowStream", lambda _, path, name, encoder: RowStream(client, path, name, encoder)
        )
        yield Rules(server)


def test_killed_before_and_after_a_batch_is_committed(
    lab: Lab,
    churn: Callable[..., Churn],
    churned: Callable[..., None],
    bigquery_options: dict[str, str],
    rules: Rules,
) -> None:
    churned("a", "b")
    lab.execute("ALTER TABLE a REPLICA IDENTITY FULL")  # b's rows come without unchanged values
    lab.publish()
    schemas: dict[TableId, TableSchema] = {}
    first = lab.pipeline(destination=Warehouse(bigquery_options, lab.config.pipeline, rules, schemas))
    assert not [outcome for outcome in first.sync() if isinstance(outcome, EtlError)]
    with churn("a", "b"):
        while rules.kills < 6:
            process = lab.pipeline(destination=Warehouse(bigquery_options, lab.config.pipeline, rules, schemas))
            with suppress(Killed), lab.running(process) as running:
                while running.is_alive:
                    running.pipeline.stop.wait(0.05)
            process.destination.close()  # the connections that its end would end
    rules.every = 1_000_000
    last = lab.pipeline(destination=Warehouse(bigquery_options, lab.config.pipeline, rules, schemas))
    lab.caught_up(last)
    methods = {table.name.name: table.method for table in last.destination._book.tables().values()}  # type: ignore[attr-defined]
    assert methods == {"a": "storage_write_cdc", "b": "storage_write_cdc_redo"}
    comparisons = last.verify()
    assert [comparison.table.name for comparison in comparisons] == ["a", "b"]
    assert all(comparison.is_equal for comparison in comparisons), comparisons
