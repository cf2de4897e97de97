"""Connections to Snowflake, in pairs: one has the transaction, beside it another defines what the first needs.

A statement that creates or alters something commits the transaction of its connection. What it made is there for
every connection at once, for Snowflake reads what is committed.
"""

from __future__ import annotations

import io
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from psycopg import sql
from snowflake.connector.errors import Error

from etl_core.destination.sql.dialect import NAMESPACE, Query

if TYPE_CHECKING:
    from collections.abc import Mapping

FILES = sql.Identifier(NAMESPACE, "files")
"""The stage that rows are put on."""
WORK_PREFIX = "_etl_work_"
_ROWS_PER_FILE = 1_000_000
_BYTES_PER_FILE = 128 << 20
_LONGEST = 6 * 3600
"""Seconds that a pair is kept. Schemas for work are taken for left over after a day."""

PARAMETERS: Mapping[str, object] = {
    "TIMEZONE": "UTC",
    "QUOTED_IDENTIFIERS_IGNORE_CASE": False,
    "DATE_INPUT_FORMAT": "AUTO",
    "TIME_INPUT_FORMAT": "AUTO",
    "TIMESTAMP_INPUT_FORMAT": "AUTO",
    "DATE_OUTPUT_FORMAT": "YYYY-MM-DD",
    "TIME_OUTPUT_FORMAT": "HH24:MI:SS.FF6",
    "TIMESTAMP_NTZ_OUTPUT_FORMAT": "YYYY-MM-DD HH24:MI:SS.FF6",
    "LOCK_TIMEOUT": 900,
    "CLIENT_SESSION_KEEP_ALIVE": True,
    "ABORT_DETACHED_QUERY": True,  # what a process that died has begun does not end after its successor's work
}
"""Of every session: what an account or a user has set otherwise would change values or names.

A lock is waited for longer than Snowflake keeps the transaction of a process that was killed, five minutes.
"""


class Cursor(Protocol):
    """What is used of the connector's."""

    @property
    def rowcount(self) -> int | None: ...

    def execute(
        self, operation: str, parameters: Sequence[object] | None = None, *, file_stream: BinaryIO | None = None
    ) -> Any: ...

    def fetchall(self) -> list[Any]: ...

    def fetch_arrow_batches(self) -> Iterator[pa.Table]: ...

    def close(self) -> Any: ...


class Connection(Protocol):
    """What is used of the connector's, with the paramstyle qmark."""

    def cursor(self) -> Cursor: ...

    def close(self) -> Any: ...


Connect = Callable[[bool], Connection]
"""Opens a session, which commits each statement by itself or does not."""


class Link:
    """Two connections, of which the second and its schema are made when they are needed. Used by one thread.

    The first commits nothing by itself: what it would run if Snowflake had ended its transaction counts for nothing.
    """

    def __init__(self, connect: Connect, pipeline: str) -> None:
        self._connect = connect
        self._pipeline = pipeline
        self._main = connect(False)
        self._second: Connection | None = None
        self._work: Query | None = None
        self._born = time.monotonic()
        self.seconds = 0.0
        """How long statements took that a warehouse runs."""

    @property
    def is_old(self) -> bool:
        return time.monotonic() - self._born > _LONGEST

    def begin(self) -> None:
        """Begins a transaction, for which temporary tables can be made."""
        if self._work is None:
            work = sql.Identifier(f"{WORK_PREFIX}{self._pipeline}${secrets.token_hex(8)}")
            self.define(sql.SQL("CREATE TRANSIENT SCHEMA {}").format(work))
            self._work = work
            for connection in (self._beside(), self._main):
                _run(connection, sql.SQL("USE SCHEMA {}").format(work))
        _run(self._main, sql.SQL("BEGIN"))

    def commit(self) -> None:
        _run(self._main, sql.SQL("COMMIT"))

    def rollback(self) -> None:
        _run(self._main, sql.SQL("ROLLBACK"))

    def run(self, query: Query, values: Sequence[object] = ()) -> Cursor:
        """Runs a statement in the transaction."""
        begun = time.monotonic()
        try:
            return _run(self._main, query, values)
        finally:
            self.seconds += time.monotonic() - begun

    def define(self, query: Query, values: Sequence[object] = ()) -> None:
        """Runs a statement that is committed by itself, beside the transaction."""
        _run(self._beside(), query, values)

    def load(self, table: Query, rows: pa.Table | pa.RecordBatchReader) -> None:
        """Puts Arrow rows into the columns of their names of a table that is beside the transaction."""
        place = sql.Literal(f"@{FILES.as_string(None)}/{secrets.token_hex(12)}")
        # Without NULL_IF the text \N would be NULL.
        copy = sql.SQL(
            "COPY INTO {} FROM {} FILE_FORMAT = (TYPE = PARQUET NULL_IF = () BINARY_AS_TEXT = FALSE)"
            " MATCH_BY_COLUMN_NAME = CASE_SENSITIVE ON_ERROR = ABORT_STATEMENT PURGE = TRUE"
        ).format(table, place)
        for number, part in enumerate(_parts(rows)):
            content = io.BytesIO()
            pq.write_table(part, content, compression="zstd", store_schema=False)
            content.seek(0)
            put = sql.SQL("PUT {} {} AUTO_COMPRESS = FALSE OVERWRITE = TRUE").format(
                sql.Literal(f"file://{number}.parquet"), place
            )
            _run(self._beside(), put, file_stream=content)
            begun = time.monotonic()
            _run(self._beside(), copy)
            self.seconds += time.monotonic() - begun
            _run(self._main, sql.SQL("SELECT 1"))  # a transaction that is idle for five minutes may be ended

    def _beside(self) -> Connection:
        if self._second is None:
            self._second = self._connect(True)
        return self._second

    def close(self) -> None:
        """Ends both sessions, and with the first its transaction."""
        with suppress(Error):
            self._main.close()
        if self._second is None:
            return
        with suppress(Error):
            if self._work is not None:
                self.define(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(self._work))
        with suppress(Error):
            self._second.close()


def _run(
    connection: Connection, query: Query, values: Sequence[object] = (), file_stream: BinaryIO | None = None
) -> Cursor:
    cursor = connection.cursor()
    cursor.execute(query.as_string(None), list(values) or None, file_stream=file_stream)
    return cursor


def _parts(rows: pa.Table | pa.RecordBatchReader) -> Iterator[pa.Table]:
    """The rows in tables that are a file each."""
    held: list[pa.RecordBatch] = []
    count = size = 0
    for batch in rows.to_batches(max_chunksize=_ROWS_PER_FILE) if isinstance(rows, pa.Table) else rows:
        if batch.num_rows == 0:
            continue
        held.append(batch)
        count, size = count + batch.num_rows, size + batch.nbytes
        if count >= _ROWS_PER_FILE or size >= _BYTES_PER_FILE:
            yield pa.Table.from_batches(held)
            held, count, size = [], 0, 0
    if held:
        yield pa.Table.from_batches(held)
