"""Schema `_etl` of the DuckDB file: per pipeline, the watermark of every table and the position of the stream.

LSNs are UBIGINT, so that they compare as numbers. A table that was forgotten keeps its row with a NULL watermark: the
row also says that the table of that name is ours to replace. So does the name that a renamed table had: its row stays
under table id 0, which no relation has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import LiteralString

import duckdb
import numpy as np
import pyarrow as pa

from etl_core.batch import StreamMove, StreamPosition, WatermarkMove, WriteBatch
from etl_core.destination.duckdb import statements
from etl_core.destination.protocol import Positions, check_stream
from etl_core.errors import WatermarkConflict
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.schema.table import TableSchema
from etl_core.values.text import fixed_width

_CREATE: tuple[LiteralString, ...] = (
    "CREATE SCHEMA IF NOT EXISTS {namespace}",
    """
    CREATE TABLE IF NOT EXISTS {watermarks} (
        pipeline VARCHAR NOT NULL, table_id UINTEGER NOT NULL, namespace VARCHAR NOT NULL, name VARCHAR NOT NULL,
        lsn UBIGINT, attnums STRUCT(name VARCHAR, attnum SMALLINT)[] NOT NULL, updated_at TIMESTAMPTZ NOT NULL)
    """,
    """
    CREATE TABLE IF NOT EXISTS {streams} (
        pipeline VARCHAR NOT NULL, lsn UBIGINT NOT NULL, updated_at TIMESTAMPTZ NOT NULL)
    """,
    # A column that came later: a file of before has none until then.
    "ALTER TABLE {streams} ADD COLUMN IF NOT EXISTS incarnation VARCHAR",
)
_NO_TABLE = 0


@dataclass(frozen=True, slots=True)
class StoredTable:
    """A row of `_etl.watermarks`. `attnums` tells a column from one that was dropped and added again."""

    pipeline: str
    table_id: TableId
    name: TableName
    lsn: Lsn | None
    attnums: Mapping[str, int]


class Bookkeeping:
    """What one pipeline reads and writes in `_etl`, within the connection's transaction."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, pipeline: str) -> None:
        self._connection = connection
        self._pipeline = pipeline
        self.database = statements.database_of(connection)

    def create(self) -> None:
        """Idempotent."""
        for statement in _CREATE:
            self._run(statement)

    def exists(self) -> bool:
        """Whether `create` was ever committed in this file."""
        found = self._run(
            "SELECT count(*) FROM duckdb_tables() WHERE database_name = current_database() "
            "AND schema_name = '_etl' AND table_name = 'streams'"
        ).fetchall()
        return bool(found[0][0])

    def all_tables(self) -> list[StoredTable]:
        """Of every pipeline."""
        rows = self._run("SELECT pipeline, table_id, namespace, name, lsn, attnums FROM {watermarks}").fetchall()
        return [
            StoredTable(
                pipeline,
                TableId(table_id),
                TableName(namespace, name),
                None if lsn is None else Lsn(lsn),
                {entry["name"]: entry["attnum"] for entry in attnums},
            )
            for pipeline, table_id, namespace, name, lsn, attnums in rows
        ]

    def tables(self) -> dict[TableId, StoredTable]:
        """Of this pipeline, forgotten ones too."""
        return {
            stored.table_id: stored
            for stored in self.all_tables()
            if stored.pipeline == self._pipeline and stored.table_id != _NO_TABLE
        }

    def positions(self) -> Positions:
        if not self.exists():
            return Positions({}, None)
        return Positions(
            {stored.table_id: stored.lsn for stored in self.tables().values() if stored.lsn is not None}, self._stream()
        )

    def _stream(self) -> StreamPosition | None:
        found = self._run("SELECT * FROM {streams} WHERE pipeline = ?", [self._pipeline])
        names = [column[0] for column in found.description or ()]
        rows = found.fetchall()
        if not rows:
            return None
        row = dict(zip(names, rows[0], strict=True))
        return StreamPosition(Lsn(row["lsn"]), row.get("incarnation"))

    def check_fence(self, batch: WriteBatch) -> dict[TableId, StoredTable]:
        """This pipeline's tables. Raises WatermarkConflict unless all is where the batch expects it."""
        position: StreamPosition | None = None
        tables: dict[TableId, StoredTable] = {}
        # Not by `exists`: to list tables DuckDB first makes all its own views, 7 ms of CPU in a file just opened.
        with suppress(duckdb.CatalogException):
            position, tables = self._stream(), self.tables()
        check_stream(position, batch.stream)
        for table_id, move in batch.watermarks.items():
            stored = tables.get(table_id)
            found = None if stored is None else stored.lsn
            if found != move.expected:
                name = f"table {table_id}" if stored is None else str(stored.name)
                raise WatermarkConflict(f"{name} has the watermark {found}, not the expected {move.expected}")
        return tables

    def move_watermarks(self, watermarks: Mapping[TableId, WatermarkMove]) -> None:
        if not watermarks:
            return
        table_ids = np.fromiter(watermarks.keys(), np.uint32, len(watermarks))
        lsns = np.fromiter((move.new for move in watermarks.values()), np.uint64, len(watermarks))
        moves = pa.Table.from_arrays(
            [fixed_width(pa.uint32(), table_ids, None), fixed_width(pa.uint64(), lsns, None)], names=["table_id", "lsn"]
        )
        query = statements.move_watermarks(self.database, self._pipeline)
        statements.execute_with(self._connection, query, moves)

    def move_stream(self, move: StreamMove) -> None:
        """After `check_fence`."""
        if move.expected is None:
            self._run(
                "INSERT INTO {streams} BY NAME SELECT ? AS pipeline, ?::UBIGINT AS lsn, now() AS updated_at,"
                " ?::VARCHAR AS incarnation",
                [self._pipeline, int(move.new.lsn), move.new.incarnation],
            )
        else:
            self._run(
                "UPDATE {streams} SET lsn = ?::UBIGINT, incarnation = ?, updated_at = now() WHERE pipeline = ?",
                [int(move.new.lsn), move.new.incarnation, self._pipeline],
            )

    def put_table(self, schema: TableSchema, lsn: Lsn) -> None:
        """Sets the table's row, replacing one of the same id or the same name.

        The name that the table had before stays ours: another table may come under it, as when two swap names.
        """
        name = [schema.name.namespace, schema.name.name]
        self._run("DELETE FROM {watermarks} WHERE namespace = ? AND name = ?", name)
        self._run(
            "UPDATE {watermarks} SET table_id = ?, lsn = NULL, updated_at = now() WHERE pipeline = ? AND table_id = ?",
            [_NO_TABLE, self._pipeline, int(schema.table_id)],
        )
        self._run(
            "INSERT INTO {watermarks} VALUES (?, ?, ?, ?, ?, ?, now())",
            [
                self._pipeline,
                int(schema.table_id),
                schema.name.namespace,
                schema.name.name,
                int(lsn),
                _entries({column.name: column.attnum for column in schema.columns}),
            ],
        )

    def put_attnums(self, table_id: TableId, attnums: Mapping[str, int]) -> None:
        self._run(
            "UPDATE {watermarks} SET attnums = ? WHERE pipeline = ? AND table_id = ?",
            [_entries(attnums), self._pipeline, int(table_id)],
        )

    def forget(self, table_id: TableId) -> None:
        self._run(
            "UPDATE {watermarks} SET lsn = NULL, updated_at = now() WHERE pipeline = ? AND table_id = ?",
            [self._pipeline, int(table_id)],
        )

    def _run(self, query: LiteralString, values: Sequence[object] = ()) -> duckdb.DuckDBPyConnection:
        """Executes with the file's name in front: `_etl.x` alone could also be `x` in a file called `_etl`."""
        return self._connection.execute(statements.bookkeeping(self.database, query), list(values))


def _entries(attnums: Mapping[str, int]) -> list[dict[str, object]]:
    return [{"name": name, "attnum": attnum} for name, attnum in attnums.items()]
