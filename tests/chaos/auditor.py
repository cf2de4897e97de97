"""The auditor: source and destination compared by plain SELECTs that share no code with the engine's `verify`."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import psycopg
from psycopg import sql

from etl_core.destination.duckdb.destination import DuckDBDestination
from etl_core.identifiers import TableName
from etl_core.lsn import ZERO, Lsn
from etl_core.state.sql_store import open_store
from etl_core.state.store import TableStatus
from etl_core.state.table_state import TableState
from tests.chaos.history import COLUMNS, History
from tests.chaos.workload import ACCOUNTS, INVARIANT, KEYED


class Lost(AssertionError):
    """The destination is not what the source is, and nothing said so."""


class Auditor:
    """Reads the source, the DuckDB file and the state store of a campaign; writes none of them."""

    def __init__(self, dsn: str, destination: Path, state: str, pipeline: str) -> None:
        self._dsn = dsn
        self._destination = destination
        self._state = state
        self._pipeline = pipeline

    def tables(self) -> Sequence[TableStatus]:
        """The tables as the state store has them."""
        with contextlib.closing(open_store(self._state, self._pipeline)) as store:
            store.migrate()
            return store.tables()

    def _flushed(self) -> Lsn:
        with contextlib.closing(open_store(self._state, self._pipeline)) as store:
            progress = store.progress()
        return ZERO if progress is None else progress.flushed_lsn

    def check_invariant(self, trusted: Mapping[str, Lsn]) -> bool:
        """Raises Lost if a reader of the destination sees part of a transaction. False if it cannot be judged now.

        It can while both tables stream and the stream has passed where they were promoted: then both have every
        transaction up to one position, and none beyond. `trusted` as in `check_history`. Called while no process runs.
        """
        flushed = self._flushed()
        tables = {table.name.name: table for table in self.tables()}
        for name in ("account", "entry"):
            table = tables.get(name)
            if table is None or table.state is not TableState.READY:
                return False
            if table.snapshot_lsn is None or not trusted.get(name, ZERO) <= table.snapshot_lsn <= flushed:
                return False
        with self._open() as destination:
            [(holds,)] = destination.execute(INVARIANT.format(accounts=ACCOUNTS)).fetchall()
        if not holds:
            raise Lost("a reader of the destination sees a part of a transaction: accounts and entries disagree")
        return True

    def check_history(self, history: History, trusted: Mapping[str, Lsn]) -> int:
        """Raises Lost unless each keyed table is what the source was at its watermark; returns how many were judged.

        So a value that was never at the source is found, and so is one that came back after a newer one. Judged are
        the tables that stream and were copied after the LSN in `trusted`, since when all their changes are published.
        Called while no process runs.
        """
        copied = {
            table.name.name: (table.table_id, table.snapshot_lsn)
            for table in self.tables()
            if table.state is TableState.READY and table.snapshot_lsn is not None and table.name.name in KEYED
        }
        if not copied or not self._destination.exists():
            return 0
        with contextlib.closing(DuckDBDestination(self._destination, self._pipeline)) as destination:
            watermarks = destination.positions().tables
        judged = 0
        for name, (table_id, snapshot_lsn) in copied.items():
            watermark = watermarks.get(table_id)
            if watermark is None or snapshot_lsn < trusted.get(name, ZERO):
                continue
            expected = history.state_at(name, watermark)
            listed = ", ".join(f"{column}::VARCHAR" for column in COLUMNS)
            with self._open() as file:
                select = f"SELECT {listed} FROM public.{name}"  # noqa: S608 our own names
                found = {row[0]: row for row in file.execute(select).fetchall()}
            wrong = sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))
            if wrong:
                raise Lost(f"{name} at {watermark} is not what the source was then: keys {wrong[:5]} of {len(wrong)}")
            judged += 1
        return judged

    def compare(self, names: Sequence[TableName]) -> list[str]:
        """What differs, a sentence per table. Nobody writes meanwhile."""
        return [text for name in names if (text := self._compare(name)) is not None]

    @contextlib.contextmanager
    def _open(self) -> Iterator[duckdb.DuckDBPyConnection]:
        connection = duckdb.connect(str(self._destination))
        try:
            yield connection
        finally:
            connection.close()

    def _compare(self, name: TableName) -> str | None:
        identifier = sql.Identifier(name.namespace, name.name)
        with psycopg.connect(self._dsn) as source:
            ours = source.execute(sql.SQL("SELECT * FROM {}").format(identifier))
            columns = [column.name for column in ours.description or ()]
            expected = Counter(tuple(map(_plain, row)) for row in ours)
        names = sql.SQL(", ").join(map(sql.Identifier, columns))
        with self._open() as destination:
            described = destination.execute(sql.SQL("DESCRIBE {}").format(identifier).as_string(None)).fetchall()
            theirs = {row[0] for row in described}
            if theirs != set(columns):
                return f"{name}: columns differ by {sorted(theirs ^ set(columns))}"
            select = sql.SQL("SELECT {} FROM {}").format(names, identifier).as_string(None)
            found = Counter(tuple(map(_plain, row)) for row in destination.execute(select).fetchall())
        if found == expected:
            return None
        missing, extra = expected - found, found - expected
        keys = sorted({row[0] for row in (*missing, *extra)})[:5]
        return f"{name}: {missing.total()} rows missing, {extra.total()} too many or different; first column {keys}"


def _plain(value: Any) -> str:
    """One spelling for what psycopg and DuckDB return for the same value."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        with contextlib.suppress(ValueError):
            return repr(json.loads(value))
    if isinstance(value, datetime) and value.tzinfo is not None:
        return repr(value.astimezone(UTC))
    return repr(value)
