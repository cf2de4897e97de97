"""Small files are made large ones, on a cadence: every batch adds some, and each is opened by every query.

The one who writes does it between two batches, table by table, and goes on with the batch after a few seconds: the rest
follows before the next ones. What fails is left for the next round, and no batch fails for it. When the last round was
is in `_etl.turns`, so that a run of a minute does not begin anew each time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from psycopg import sql

from etl_core.destination.compaction import Compacted
from etl_core.destination.duckdb_sql.statements import text
from etl_core.destination.ducklake.catalog import DATABASE
from etl_core.destination.ducklake.connection import Lake
from etl_core.errors import EtlError, TableError

_log = logging.getLogger(__name__)

_AT_A_TIME = 2.0
"""Seconds that a batch waits for the tables before one that is compacted; that one is finished."""
_LONG = 10.0
"""Seconds from which on a table is worth a line in the log."""
_READERS = timedelta(days=1)
"""How long a file stays that no snapshot has any more: a query that began before may still read it."""
_DELETED = 0.2
"""The part of a file's rows that were deleted from which on it is written anew."""

_TABLES = f"""
    SELECT schema_name, table_name FROM duckdb_tables() AS t WHERE database_name = '{DATABASE}' AND (
        schema_name = '_etl' OR EXISTS (
            SELECT 1 FROM {DATABASE}._etl.watermarks AS w
            WHERE w.namespace = t.schema_name AND w.name = t.table_name))
    ORDER BY random()
"""  # noqa: S608
_COMPACTED_AT = f"SELECT max(compacted_at) FROM {DATABASE}._etl.turns"  # noqa: S608
_NOTE = f"UPDATE {DATABASE}._etl.turns SET compacted_at = now()"  # noqa: S608
# In this order: rows in the catalog become files, files with deleted rows new ones, small ones a large one.
_OF_TABLE = (
    "CALL ducklake_flush_inlined_data({lake}, schema_name => {schema}, table_name => {table})",
    "CALL ducklake_rewrite_data_files({lake}, {table}, schema => {schema}, delete_threshold => {deleted})",
    "CALL ducklake_merge_adjacent_files({lake}, {table}, schema => {schema})",
)
_EXPIRE = "CALL ducklake_expire_snapshots({lake}, older_than => CAST({at} AS TIMESTAMPTZ))"
_CLEAN = "CALL ducklake_cleanup_old_files({lake}, older_than => CAST({at} AS TIMESTAMPTZ))"


@dataclass(frozen=True, slots=True)
class Cadence:
    """Both in seconds; 0 for never."""

    every: float
    keep_snapshots: float


class Compaction:
    """Of the tables of all pipelines of the lake, which share a cadence. Used by the thread that writes."""

    def __init__(self, lake: Lake, cadence: Cadence, clock: Callable[[], float] = time.monotonic) -> None:
        self._lake = lake
        self._cadence = cadence
        self._clock = clock
        self._next_at: float | None = None
        """By the clock; None until it was looked up."""
        self._waiting: list[tuple[str, str]] | None = None
        """The tables that a round which has begun has left."""

    def run(self, tables: Sequence[tuple[str, str]] | None) -> Iterator[Compacted]:
        """Compacts these tables, or all, whatever the cadence says, and tells of each."""
        with self._lake.open() as connection:
            there = connection.execute(_TABLES).fetchall()
        for schema, table in sorted(there if tables is None else tables):
            name, error = f"{schema}.{table}", None
            try:
                if (schema, table) not in there:
                    raise TableError(f"{name} is not in the lake in {self._lake.catalog}", table=name)
                self._compact(schema, table)
            except EtlError as refused:
                error = refused
            yield Compacted(name, None, error)
        if tables is None:
            self._expire()  # snapshots are those of all tables

    def step(self) -> None:
        """Does some of what is due, if anything is."""
        if not self._cadence.every or (self._next_at is not None and self._clock() < self._next_at):
            return
        try:
            self._step()
        except EtlError as error:
            _log.info("the lake was not compacted: %s", error)
            self._waiting = None
            self._next_at = self._clock() + self._cadence.every

    def _step(self) -> None:
        began = self._clock()
        if self._waiting is None:
            self._waiting = self._begin()
        while self._waiting and self._clock() - began < _AT_A_TIME:
            schema, table = self._waiting.pop()
            try:
                self._compact(schema, table)
            except EtlError as error:
                _log.info("%s.%s of the lake was not compacted: %s", schema, table, error)
        if self._waiting:
            return
        if self._waiting is not None:
            self._next_at = self._clock() + self._cadence.every
            self._expire()
        self._waiting = None

    def _begin(self) -> list[tuple[str, str]] | None:
        """The tables of a round; None if it is too early for one."""
        with self._lake.open() as connection:
            [(at,)] = connection.execute(_COMPACTED_AT).fetchall()
            seconds = self._cadence.every if at is None else (datetime.now(UTC) - at).total_seconds()
            if at is not None and seconds < self._cadence.every:
                self._next_at = self._clock() + self._cadence.every - seconds
                return None
            tables = connection.execute(_TABLES).fetchall()
        self._expire()
        return tables

    def _compact(self, schema: str, table: str) -> None:
        began = self._clock()
        named = {"schema": sql.Literal(schema), "table": sql.Literal(table), "deleted": sql.Literal(_DELETED)}
        self._run([sql.SQL(call).format(lake=sql.Literal(DATABASE), **named) for call in _OF_TABLE])
        took = self._clock() - began
        if took > _LONG:
            _log.warning("a batch waited %.0f s for the compaction of %s.%s", took, schema, table)

    def _expire(self) -> None:
        """Notes the round first: a run of a minute may not live to its end, and the next one goes on with other tables.

        And the newest snapshot, which alone is never expired, is then one that changed `_etl.turns`: a writer that
        began before all that is expired is refused by it.
        """
        calls: list[sql.Composable] = [sql.SQL(_NOTE)]
        if self._cadence.keep_snapshots:
            now = datetime.now(UTC)
            kept, unread = self._day(now - timedelta(seconds=self._cadence.keep_snapshots)), self._day(now - _READERS)
            calls.append(sql.SQL(_EXPIRE).format(lake=sql.Literal(DATABASE), at=sql.Literal(kept.isoformat())))
            calls.append(sql.SQL(_CLEAN).format(lake=sql.Literal(DATABASE), at=sql.Literal(unread.isoformat())))
        self._run(calls)

    def _day(self, at: datetime) -> datetime:
        """A moment that DuckLake compares right: in SQLite it compares texts, where all of a day is before its `T`."""
        if self._lake.catalog.kind != "sqlite":
            return at
        return at.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(microseconds=1)

    def _run(self, calls: Sequence[sql.Composable]) -> None:
        with self._lake.turn(), self._lake.open() as connection:
            for call in calls:
                connection.execute(text(call))
