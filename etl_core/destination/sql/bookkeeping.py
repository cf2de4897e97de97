"""Schema `_etl` of the database: per pipeline, the watermark of every table and the position of the stream.

**The fence is an update that is counted, not a value that is read.** The first statement of a batch's transaction sets
each position `WHERE` it is the expected one. If it does not touch exactly the expected rows, nothing is applied. What
is read first and trusted later may have changed in between (READ COMMITTED); an update holds its rows until the
transaction ends, and one that waited for another writer's sees what that one left.

A table that was forgotten keeps its row with a NULL watermark: the row also says that the table of that name is ours to
replace. So does the name that a renamed table had: its row stays under table id 0, which no relation has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString

import numpy as np
import pyarrow as pa
from psycopg import sql

from etl_core.batch import StreamMove, StreamPosition, WatermarkMove, WriteBatch
from etl_core.destination.aside import is_aside
from etl_core.destination.protocol import Positions, check_stream
from etl_core.destination.sql.dialect import Dialect, Query
from etl_core.destination.sql.session import Session
from etl_core.destination.sql.stored_tables import NO_TABLE, KeptTables, StoredTable
from etl_core.errors import WatermarkConflict
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.schema.table import TableSchema
from etl_core.values.text import fixed_width


@dataclass(frozen=True, slots=True)
class StoredLog:
    """A row of `_etl.logs`: see `histories`. `name` is the table that the views are beside, None if there are none."""

    pipeline: str
    table_id: TableId
    since: Lsn | None
    name: TableName | None = None
    views: str | None = None
    """Of what they were made; None if that is to be looked up."""


class Bookkeeping:
    """What one pipeline reads and writes in `_etl`, within the session's transaction."""

    def __init__(self, dialect: Dialect, session: Session, pipeline: str) -> None:
        self._dialect = dialect
        self._session = session
        self.pipeline = pipeline
        self._keeps = False
        self._kept: KeptTables | None = None
        self._names = {
            "namespace": session.identifier(dialect.namespace),
            "watermarks": session.identifier(dialect.namespace, "watermarks"),
            "streams": session.identifier(dialect.namespace, "streams"),
            "logs": session.identifier(dialect.namespace, "logs"),
        }

    def keep_tables(self) -> None:
        """What `all_tables` gives is read once from now on: where nobody else changes it in the transaction."""
        self._keeps = True

    def create(self) -> None:
        """Idempotent."""
        for statement in self.creation():
            self._session.define(statement)

    def creation(self) -> list[Query]:
        """The statements that `create` runs."""
        return [self._query(statement) for statement in self._dialect.bookkeeping]

    def exists(self) -> bool:
        """Whether `create` was ever committed."""
        return (self._dialect.namespace, "streams") in self._session.relations(views=False)

    def all_tables(self) -> list[StoredTable]:
        """Of every pipeline."""
        return self._read_tables() if not self._keeps else self._known().all()

    def called(self, name: TableName) -> list[StoredTable]:
        """Those of every pipeline whose name is the same to the product."""
        known = self._known() if self._keeps else KeptTables(self._dialect.fold, self._read_tables())
        return known.called(name)

    def stored(self, table_id: TableId) -> StoredTable | None:
        """The table of this pipeline."""
        known = self._known() if self._keeps else KeptTables(self._dialect.fold, self._read_tables())
        return known.of(self.pipeline, table_id)

    def _known(self) -> KeptTables:
        if self._kept is None:
            self._kept = KeptTables(self._dialect.fold, self._read_tables())
        return self._kept

    def _read_tables(self) -> list[StoredTable]:
        query = self._query("SELECT pipeline, table_id, namespace, name, lsn, attnums FROM {watermarks}")
        return [
            StoredTable(
                pipeline,
                TableId(table_id),
                TableName(namespace, name),
                None if lsn is None else Lsn(int(lsn)),
                self._dialect.load_attnums(attnums),
            )
            for pipeline, table_id, namespace, name, lsn, attnums in self._session.fetch(query)
        ]

    def tables(self) -> dict[TableId, StoredTable]:
        """Of this pipeline, forgotten ones too."""
        return {
            stored.table_id: stored
            for stored in self.all_tables()
            if stored.pipeline == self.pipeline and stored.table_id != NO_TABLE
        }

    def positions(self) -> Positions:
        if not self.exists():
            return Positions({}, None)
        tables = [stored for stored in self.tables().values() if stored.lsn is not None]
        return Positions(
            {stored.table_id: stored.lsn for stored in tables if stored.lsn is not None},
            self._stream(),
            frozenset(stored.table_id for stored in tables if is_aside(stored.name)),
        )

    def _stream(self) -> StreamPosition | None:
        rows = self._session.fetch(*self._with_values("SELECT * FROM {streams} WHERE pipeline = {}", self.pipeline))
        if not rows:
            return None
        # `incarnation` came later: before `create` it may not be there. A person may have added others.
        _, lsn, _, *later = rows[0]
        return StreamPosition(Lsn(int(lsn)), *later[:1])

    def fence(self, batch: WriteBatch) -> dict[TableId, StoredTable]:
        """Moves the positions as the batch does, before anything else of it; returns this pipeline's tables.

        Raises WatermarkConflict unless each was where the batch expects it; the transaction is given up then.
        """
        try:
            is_as_expected = self._move_stream(batch.stream) and self._move_watermarks(batch.watermarks)
        except Exception as error:
            if self._session.is_taken(error):
                self._session.rollback()
                _refuse(batch, self._stream(), self.tables())
            elif self._session.is_absent(error):
                _refuse(batch, None, {})
            raise
        if not is_as_expected:
            self._session.rollback()
            _refuse(batch, self._stream(), self.tables())
            raise WatermarkConflict("a position is there twice, or another writer moved it while the batch was written")
        tables = self.tables()
        for table_id, move in batch.watermarks.items():
            self._session.will_move(self.pipeline, tables[table_id].name, move.new)
        return tables

    def _move_watermarks(self, watermarks: Mapping[TableId, WatermarkMove]) -> bool:
        """Whether all were as expected."""
        if not watermarks:
            return True
        count = len(watermarks)
        columns: dict[str, pa.Array[Any]] = {"table_id": _array(np.fromiter(watermarks, np.uint32, count), pa.uint32())}
        for name, lsns in (
            ("expected", (move.expected for move in watermarks.values())),
            ("moved", (move.new for move in watermarks.values())),
        ):
            columns[name] = _array(np.fromiter(lsns, np.uint64, count), pa.uint64())
        query = sql.SQL(
            "UPDATE {} AS w SET lsn = m.moved, updated_at = CURRENT_TIMESTAMP FROM {} AS m "
            "WHERE w.pipeline = {} AND w.table_id = m.table_id AND w.lsn = m.expected"
        ).format(self._names["watermarks"], self._dialect.rows, sql.Literal(self.pipeline))
        rows = pa.Table.from_arrays(list(columns.values()), names=list(columns))
        return self._session.execute_with(query, rows) == count

    def _move_stream(self, move: StreamMove | None) -> bool:
        """Whether it was as expected."""
        if move is None:
            return True
        new, expected = move.new, move.expected
        if expected is None:
            moved = self._run(
                "INSERT INTO {streams} (pipeline, lsn, updated_at, incarnation) SELECT {}, {}, CURRENT_TIMESTAMP, {}"
                " WHERE NOT EXISTS (SELECT 1 FROM {streams} WHERE pipeline = {})",
                self.pipeline,
                int(new.lsn),
                new.incarnation,
                self.pipeline,
            )
        else:
            moved = self._run(
                "UPDATE {streams} SET lsn = {}, incarnation = {}, updated_at = CURRENT_TIMESTAMP"
                " WHERE pipeline = {} AND lsn = {} AND incarnation IS NOT DISTINCT FROM {}",
                int(new.lsn),
                new.incarnation,
                self.pipeline,
                int(expected.lsn),
                expected.incarnation,
            )
        return moved == 1

    def hold(self, schema: TableSchema) -> None:
        """Has every writer of the table wait until this transaction ends, also of the one that has its name.

        One without a row has no watermark, so no writer passes the fence for it.
        """
        if self._keeps and self.stored(schema.table_id) is None and not self.called(schema.name):
            return
        self._run(
            "UPDATE {watermarks} SET updated_at = CURRENT_TIMESTAMP"
            " WHERE (pipeline = {} AND table_id = {}) OR (namespace = {} AND name = {})",
            self.pipeline,
            int(schema.table_id),
            schema.name.namespace,
            schema.name.name,
        )

    def put_table(self, schema: TableSchema, lsn: Lsn) -> None:
        """Sets the table's row, replacing one of the same id or the same name.

        The name that the table had before stays ours: another table may come under it, as when two swap names.
        """
        name = schema.name
        self._session.will_move(self.pipeline, name, lsn)
        attnums = {column.name: column.attnum for column in schema.columns}
        is_new = self._keeps and self.stored(schema.table_id) is None and not self.called(name)
        if not is_new:
            self._run("DELETE FROM {watermarks} WHERE namespace = {} AND name = {}", name.namespace, name.name)
            self._run(
                "UPDATE {watermarks} SET table_id = {}, lsn = NULL, updated_at = CURRENT_TIMESTAMP"
                " WHERE pipeline = {} AND table_id = {}",
                NO_TABLE,
                self.pipeline,
                int(schema.table_id),
            )
        self._run(
            "INSERT INTO {watermarks} (pipeline, table_id, namespace, name, lsn, attnums, updated_at)"
            " VALUES ({}, {}, {}, {}, {}, {}, CURRENT_TIMESTAMP)",
            self.pipeline,
            int(schema.table_id),
            name.namespace,
            name.name,
            int(lsn),
            self._dialect.dump_attnums(attnums),
        )
        if self._kept is not None:
            self._kept.put(StoredTable(self.pipeline, schema.table_id, name, lsn, attnums))

    def move_table(self, table_id: TableId, name: TableName) -> None:
        """The table has another name now; whose that was before is forgotten."""
        self.free_name(name)
        self._kept = None
        self._run(
            "UPDATE {watermarks} SET namespace = {}, name = {} WHERE pipeline = {} AND table_id = {}",
            name.namespace,
            name.name,
            self.pipeline,
            int(table_id),
        )

    def free_name(self, name: TableName) -> None:
        """Forgets the row of a table of that name that nobody brings up to date any more."""
        self._kept = None
        self._run(
            "DELETE FROM {watermarks} WHERE namespace = {} AND name = {} AND (lsn IS NULL OR table_id = {})",
            name.namespace,
            name.name,
            NO_TABLE,
        )

    def logs(self) -> list[StoredLog]:
        """Of every pipeline."""
        query = self._query("SELECT pipeline, table_id, since, namespace, name, views FROM {logs}")
        return [
            StoredLog(
                pipeline,
                TableId(table_id),
                None if since is None else Lsn(int(since)),
                None if name is None else TableName(namespace, name),
                views,
            )
            for pipeline, table_id, since, namespace, name, views in self._session.fetch(query)
        ]

    def put_log(self, log: StoredLog) -> None:
        self.forget_log(log)
        self._run(
            "INSERT INTO {logs} (pipeline, table_id, since, namespace, name, views) VALUES ({}, {}, {}, {}, {}, {})",
            log.pipeline,
            int(log.table_id),
            None if log.since is None else int(log.since),
            None if log.name is None else log.name.namespace,
            None if log.name is None else log.name.name,
            log.views,
        )

    def forget_log(self, log: StoredLog) -> None:
        self._run("DELETE FROM {logs} WHERE pipeline = {} AND table_id = {}", log.pipeline, int(log.table_id))

    def put_attnums(self, table_id: TableId, attnums: Mapping[str, int]) -> None:
        self._kept = None
        self._run(
            "UPDATE {watermarks} SET attnums = {} WHERE pipeline = {} AND table_id = {}",
            self._dialect.dump_attnums(attnums),
            self.pipeline,
            int(table_id),
        )

    def forget(self, table_id: TableId) -> None:
        self._kept = None
        self._run(
            "UPDATE {watermarks} SET lsn = NULL, updated_at = CURRENT_TIMESTAMP WHERE pipeline = {} AND table_id = {}",
            self.pipeline,
            int(table_id),
        )

    def _run(self, query: LiteralString, *values: object) -> int:
        return self._session.execute(*self._with_values(query, *values))

    def _with_values(self, query: LiteralString, *values: object) -> tuple[Query, Sequence[object]]:
        return self._query(query, *[self._dialect.placeholder] * len(values)), values

    def _query(self, query: LiteralString, *placeholders: Query) -> Query:
        return sql.SQL(query).format(*placeholders, **self._names)


def _array(values: np.ndarray[Any, Any], kind: pa.DataType) -> pa.Array[Any]:
    return fixed_width(kind, values, None)


def _refuse(batch: WriteBatch, position: StreamPosition | None, tables: Mapping[TableId, StoredTable]) -> None:
    """Raises WatermarkConflict for the first position that is not where the batch expects it."""
    check_stream(position, batch.stream)
    for table_id, move in batch.watermarks.items():
        stored = tables.get(table_id)
        found = None if stored is None else stored.lsn
        if found != move.expected:
            name = f"table {table_id}" if stored is None else str(stored.name)
            raise WatermarkConflict(f"{name} has the watermark {found}, not the expected {move.expected}")
