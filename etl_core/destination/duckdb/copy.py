"""The initial copy of one table: staged beside the database file, then loaded and published in one transaction.

Loading costs 0.55–0.75 µs of CPU a row of eight columns, nearly all of it DuckDB's compression, and keeps other
processes from the file for 0.3–0.5 s per million rows. Its memory is bounded: DuckDB pulls the staged batches one by
one and writes each full row group out.
"""

from __future__ import annotations

from contextlib import suppress
from types import TracebackType
from typing import Self

import duckdb
import pyarrow as pa

from etl_core.destination.duckdb import statements
from etl_core.destination.duckdb.additions import Additions, check_can_be_kept, made_anew, read_additions
from etl_core.destination.duckdb.bookkeeping import Bookkeeping
from etl_core.destination.duckdb.connection import DatabaseFile
from etl_core.destination.duckdb.failures import explain_table
from etl_core.destination.duckdb.memory import MemoryRaised
from etl_core.destination.duckdb.names import check_columns, check_name
from etl_core.destination.duckdb.staging import Staging, staging_directory
from etl_core.destination.duckdb.types import tagged_schema
from etl_core.destination.protocol import check_count
from etl_core.lsn import Lsn
from etl_core.schema.table import TableSchema
from etl_core.values.arrow import arrow_schema


class DuckDBCopy:
    """See TableCopy. Raises TableError at once for a table that this file cannot hold.

    `is_known` says that the file may have the table already: to look costs as much as opening the file.
    """

    def __init__(self, file: DatabaseFile, pipeline: str, schema: TableSchema, *, is_known: bool) -> None:
        check_columns(schema)
        self._file = file
        self._pipeline = pipeline
        self._schema = schema
        if is_known:
            self._check_before()
        self._staging = Staging(staging_directory(file.path, pipeline, schema.table_id), arrow_schema(schema))

    @property
    def address(self) -> str:
        return self._staging.address

    def write(self, rows: pa.RecordBatch) -> None:
        self._staging.write(rows)

    def include(self, receipt: str) -> None:
        self._staging.include(receipt)

    def publish(self, watermark: Lsn, expected: int | None = None) -> int:
        while True:  # a few times at most: it has all there is then
            with suppress(MemoryRaised):
                return self._publish(watermark, expected)

    def _publish(self, watermark: Lsn, expected: int | None) -> int:
        name = self._schema.name
        with self._file.transaction() as connection:
            try:
                loaded = self._load(connection, watermark)
            except duckdb.Error as error:
                raise explain_table(error, name, self._file.path) from None
            check_count(name, loaded, expected)  # in the transaction, which leaves the old table then
        return loaded

    def _check_before(self) -> None:
        """Raises now what `publish` would raise after all rows were read."""
        if not self._file.exists():
            return
        with self._file.open() as connection:
            book = Bookkeeping(connection, self._pipeline)
            if book.exists():
                self._additions(connection, book)

    def _additions(self, connection: duckdb.DuckDBPyConnection, book: Bookkeeping) -> Additions:
        """What people have added to the table that is there. Raises TableError if it must not be replaced."""
        present = connection.execute(statements.RELATIONS).fetchall()
        ours = check_name(self._schema, self._pipeline, book.all_tables(), present)
        if not ours:
            return Additions()
        additions = read_additions(connection, book.database, self._schema.name, ours)
        described: dict[str, str] = {}
        if additions.columns:  # so the table is there
            table = statements.table_identifier(book.database, self._schema.name)
            rows = connection.execute(statements.text(statements.describe(table))).fetchall()
            described = {row[0]: row[1] for row in rows}
        check_can_be_kept(self._schema, additions, ours, described)
        return additions

    def _load(self, connection: duckdb.DuckDBPyConnection, watermark: Lsn) -> int:
        schema = self._schema
        book = Bookkeeping(connection, self._pipeline)
        additions = self._additions(connection, book)
        table = statements.table_identifier(book.database, schema.name)
        connection.execute(statements.text(statements.create_schema(book.database, schema.name.namespace)))
        kept = None
        if additions.columns:
            kept = "etl$kept"
            names = [*schema.key, *(column.name for column in additions.columns)]
            connection.execute(statements.text(statements.keep(kept, table, [(name, name) for name in names])))
        arrow = tagged_schema(schema.columns)
        rows = pa.RecordBatchReader.from_batches(arrow, self._staging.read(arrow))
        query = statements.insert(table, schema.columns)
        if kept is not None:
            key = [schema.column(name) for name in schema.key]
            query = statements.insert_carrying(table, schema.columns, key, additions.columns, kept)
        self._file.compression.note(connection, self._staging.sizes)
        with made_anew(connection, book.database, schema, additions):
            loaded = statements.execute_with(connection, query, rows)
        book.put_table(schema, watermark)
        return loaded

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._staging.discard()
