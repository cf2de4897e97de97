"""Snowflake as a destination: the source's table `public.orders` is `"public"."orders"`, bookkeeping is in `"_etl"`.

**Exactly once.** Data, watermarks and the stream's position of a batch are one transaction, in which nothing is
defined; it moves the positions first, where they are the expected ones, and counts them. What a transaction decides
about tables as a whole is in it as well, and done after it (`session`). A COMMIT whose answer is lost has happened or
not: `positions` tells.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from psycopg import sql
from snowflake.connector.errors import Error

from etl_core.batch import WriteBatch
from etl_core.destination.protocol import Positions
from etl_core.destination.snowflake.connection import Connect, Link
from etl_core.destination.snowflake.dialect import SnowflakeDialect
from etl_core.destination.snowflake.failures import explain_table
from etl_core.destination.snowflake.session import SnowflakeDatabase, SnowflakeSession
from etl_core.destination.snowflake.types import from_snowflake
from etl_core.destination.sql import statements
from etl_core.destination.sql.destination import SqlDestination
from etl_core.errors import CopyNeeded, ValueOutOfRange
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.schema.change_log import current_view, history_view, rows_of, versions_of
from etl_core.schema.table import TableSchema
from etl_core.values.arrow import arrow_schema

_log = logging.getLogger(__name__)

_KEPT = 2


class SnowflakeDestination(SqlDestination[SnowflakeSession]):
    """See Destination. May be used from several threads.

    `connect` opens a session in the database, whose account and name are `place`. `staging` is a directory of this
    machine, in which the rows of a copy wait until it is published.
    """

    def __init__(self, connect: Connect, place: str, pipeline: str, staging: Path) -> None:
        self._connect = connect
        self._guard = threading.Lock()
        self._links: list[Link] = []
        self._snowflake = SnowflakeDialect()
        self._account = SnowflakeDatabase(self._take, self._keep, self._snowflake, pipeline)
        folder = hashlib.sha256(place.encode()).hexdigest()[:12]
        super().__init__(self._snowflake, self._account, pipeline, staging / folder / pipeline)

    def prepare(self) -> None:
        self._account.create()
        super().prepare()

    def glance(self, wait_seconds: float | None) -> Positions:
        # Each statement sees what is committed when it begins: read again until nothing came between.
        before = super().glance(wait_seconds)
        while True:
            again = super().glance(wait_seconds)
            if again == before:
                return again
            before = again

    def count(self, tables: Mapping[TableId, TableName], wait_seconds: float) -> Mapping[TableId, tuple[Lsn, int]]:
        """See CountingDestination. Tables that are written meanwhile are left out."""
        before = self.glance(wait_seconds).tables  # of tables that are in place
        counted = super().count(tables, wait_seconds)
        after = super().glance(wait_seconds).tables
        return {
            table_id: found
            for table_id, found in counted.items()
            if before.get(table_id) == found[0] == after.get(table_id)
        }

    def _write(self, batch: WriteBatch) -> int:
        changed = super()._write(batch)
        _log.info("statements of a batch took %.1f s in Snowflake", self._account.last_seconds)
        return changed

    def examine(self) -> str:
        """See ExaminableDestination."""
        with self._database.reading() as session:
            [(database, role, warehouse)] = session.fetch(
                sql.SQL("SELECT CURRENT_DATABASE(), CURRENT_ROLE(), CURRENT_WAREHOUSE()")
            )
        return f"Snowflake database {database} answers role {role} with warehouse {warehouse}"

    def read(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        """See Destination. One query, whose rows are of the moment it began."""
        return self._read(schema, None)

    def read_current(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        """See HistoryDestination."""
        return self._read(rows_of(schema), current_view)

    def read_versions(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        """See HistoryDestination."""
        return self._read(versions_of(schema), history_view)

    def _read(self, schema: TableSchema, view: Callable[[TableName], TableName] | None) -> Iterator[pa.RecordBatch]:
        target = arrow_schema(schema)
        with self._account.open() as link:
            session = SnowflakeSession(link, self._snowflake, self._pipeline)
            place = self._place(session, schema)
            place = place if view is None else view(place)
            select = statements.select(self._snowflake, session.identifier(place.namespace, place.name), schema.columns)
            try:
                for table in link.run(select).fetch_arrow_batches():
                    for batch in table.combine_chunks().to_batches():
                        yield self._as_read(batch, schema, target)
            except Error as error:
                raise explain_table(error, schema.name) from None

    def _as_read(self, batch: pa.RecordBatch, schema: TableSchema, target: pa.Schema) -> pa.RecordBatch:
        try:
            values: Any = [
                from_snowflake(column, known, schema.name)
                for column, known in zip(batch.columns, schema.columns, strict=True)
            ]
            return pa.RecordBatch.from_arrays(values, schema=target)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, ValueOutOfRange):
            raise CopyNeeded(
                f"{schema.name} has values in Snowflake that are not of the types that are stored now",
                table=str(schema.name),
                hint=f"copy the table again: etl resync {schema.name}",
            ) from None

    def close(self) -> None:
        with self._guard:
            links, self._links = self._links, []
        for link in links:
            link.close()

    def _take(self) -> Link:
        with self._guard:
            while self._links:
                link = self._links.pop()
                if not link.is_old:
                    return link
                link.close()
        return Link(self._connect, self._pipeline)

    def _keep(self, link: Link) -> None:
        with self._guard:
            if len(self._links) < _KEPT and not link.is_old:
                self._links.append(link)
                return
        link.close()
