"""Schema `_etl` of the DuckDB file: per pipeline, the watermark of every table and the position of the stream.

LSNs are UBIGINT, so that they compare as numbers. A table that was forgotten keeps its row with a NULL watermark: the
row also says that the table of that name is ours to replace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import LiteralString

import duckdb
import numpy as np
import pyarrow as pa

from etl_core.batch import WatermarkMove
from etl_core.destination.duckdb import statements
from etl_core.destination.protocol import Positions
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
)


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
        return {stored.table_id: stored for stored in self.all_tables() if stored.pipeline == self._pipeline}

    def positions(self) -> Positions:
        if not self.exists():
            return Positions({}, None)
        stream = self._run("SELECT lsn FROM {streams} WHERE pipeline = ?", [self._pipeline]).fetchall()
        return Positions(
            {stored.table_id: stored.lsn for stored in self.tables().values() if stored.lsn is not None},
            Lsn(stream[0][0]) if stream else None,
        )

    def check_fence(self, watermarks: Mapping[TableId, WatermarkMove]) -> dict[TableId, StoredTable]:
        """This pipeline's tables. Raises WatermarkConflict unless each has the watermark that is expected of it."""
        tables = self.tables()
        for table_id, move in watermarks.items():
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

    def move_stream(self, lsn: Lsn) -> None:
        """Never back."""
        updated = self._run(
            "UPDATE {streams} SET lsn = greatest(lsn, ?::UBIGINT), updated_at = now() WHERE pipeline = ?",
            [int(lsn), self._pipeline],
        ).fetchall()
        if not updated[0][0]:
            self._run("INSERT INTO {streams} VALUES (?, ?, now())", [self._pipeline, int(lsn)])

    def put_table(self, schema: TableSchema, lsn: Lsn) -> None:
        """Sets the table's row, replacing one of the same id or the same name."""
        self._run(
            "DELETE FROM {watermarks} WHERE (pipeline = ? AND table_id = ?) OR (namespace = ? AND name = ?)",
            [self._pipeline, int(schema.table_id), schema.name.namespace, schema.name.name],
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
