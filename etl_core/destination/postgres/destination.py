"""PostgreSQL as a destination: the source's table `public.orders` is `public.orders`, bookkeeping is in schema `_etl`.

**Exactly once.** Data, watermarks and the stream's position of a batch are one transaction at READ COMMITTED. Its first
statements move the positions where they are the expected ones, and are counted: of two writers that expect the same
one waits for the other's row, and then finds another value in it. A copy holds the table's row before it touches the
table. What COMMIT has answered is durable (`synchronous_commit` is on).

**A live read model.** Readers never wait for a batch, nor for a new copy of the same columns: both delete and insert
rows, and a reader keeps the state that its snapshot has.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
from psycopg import sql

from etl_core.destination.doctor import MissingType
from etl_core.destination.postgres.connection import Server
from etl_core.destination.postgres.conninfo import parameters
from etl_core.destination.postgres.dialect import PostgresDialect
from etl_core.destination.postgres.failures import unavailable
from etl_core.destination.postgres.missing_types import missing_types
from etl_core.destination.postgres.session import PostgresDatabase, PostgresSession
from etl_core.destination.postgres.types import read_column
from etl_core.destination.sql import statements
from etl_core.destination.sql.destination import SqlDestination
from etl_core.errors import DestinationError, SourceRefused, SourceUnavailable
from etl_core.identifiers import TableName
from etl_core.schema.change_log import current_view, history_view, rows_of, versions_of
from etl_core.schema.table import TableSchema
from etl_core.source.copy_blocks import copy_blocks
from etl_core.source.server import running_database
from etl_core.values import read_csv
from etl_core.values.arrow import arrow_schema

_BLOCK_BYTES = 1 << 20


class PostgresDestination(SqlDestination[PostgresSession]):
    """See Destination. May be used from several threads.

    `staging` is a directory of this machine, in which the rows of a copy wait until it is published.
    """

    def __init__(self, conninfo: str, pipeline: str, staging: Path) -> None:
        dialect = PostgresDialect()
        self._server = Server(conninfo, pipeline)
        self._postgres = dialect
        given = parameters(conninfo)
        address = [given.get(name) for name in ("host", "hostaddr", "port", "dbname", "service")]
        place = hashlib.sha256(repr(address).encode()).hexdigest()[:12]
        super().__init__(dialect, PostgresDatabase(self._server, dialect), pipeline, staging / place / pipeline)

    def examine(self) -> str:
        """See ExaminableDestination."""
        query = sql.SQL(
            "SELECT ARRAY(SELECT r FROM pg_catalog.unnest(ARRAY['CREATE', 'TEMPORARY']) AS r"
            " WHERE NOT pg_catalog.has_database_privilege(datname, r)), datname::text,"
            " pg_catalog.pg_is_in_recovery(), pg_catalog.pg_encoding_to_char(encoding)::text"
            " FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()"
        )
        with self._database.reading() as session:
            [(missing, name, is_standby, encoding)] = session.fetch(query)
        if is_standby:
            raise DestinationError(
                f"database {name} of the destination is on a standby, which cannot be written",
                hint="connect to the primary: target_session_attrs=read-write in destination.dsn",
            )
        if missing:
            rights = ", ".join(missing)
            raise DestinationError(
                f"the destination's user lacks a right on database {name}: {rights}",
                hint=f"GRANT {rights} ON DATABASE {name} TO …",
            )
        if encoding == "SQL_ASCII":
            raise DestinationError(
                f"database {name} of the destination has the encoding SQL_ASCII, which says of no byte what it means",
                hint="CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0, and write there",
            )
        return f"PostgreSQL database {name} can be written"

    def missing_types(self, schemas: Sequence[TableSchema]) -> Sequence[MissingType]:
        """See TypedDestination."""
        with self._database.reading():
            return missing_types(schemas, self._postgres.known)

    def running_database(self) -> str:
        """See PostgresPlace."""
        with self._server.transaction("read") as connection:
            return running_database(connection)

    def read(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        """See Destination. A connection is open until the iterator is exhausted or closed."""
        return self._read(schema, None)

    def read_current(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        """See HistoryDestination. What does not fit into work_mem is sorted in the server's temporary files."""
        return self._read(rows_of(schema), current_view)

    def read_versions(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        """See HistoryDestination."""
        return self._read(versions_of(schema), history_view)

    def _read(self, schema: TableSchema, view: Callable[[TableName], TableName] | None) -> Iterator[pa.RecordBatch]:
        with self._database.reading() as session:
            place = self._place(session, schema)
            place = place if view is None else view(place)
            stored = replace(schema, columns=tuple(map(read_column, schema.columns)))
            table = session.identifier(place.namespace, place.name)
            select = statements.select(self._postgres, table, schema.columns)
            with session.table_errors(schema.name):  # COPY would not tell a table that is gone from a server's failure
                session.fetch(sql.SQL("{} LIMIT 0").format(select))
        target = arrow_schema(schema)
        with closing(self._server.open()) as connection:
            copy = sql.SQL("COPY ({}) TO STDOUT (FORMAT csv)").format(select).as_bytes(connection)
            try:
                for block in copy_blocks(connection, copy, threading.Event(), _BLOCK_BYTES):
                    yield pa.RecordBatch.from_arrays(read_csv(block, stored).columns, schema=target)
            except SourceUnavailable as error:
                raise unavailable(error) from None
            except SourceRefused as error:
                raise DestinationError(f"destination: {error}", hint=error.hint) from None

    def close(self) -> None:
        self._server.close()
