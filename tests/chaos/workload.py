"""A seeded workload: several writers and one who alters tables, in whole transactions from one row to 20,000.

Each writer draws its statements from a generator of its own, so the same seed draws the same statements; how those of
several writers interleave is the server's. A statement that the source refuses (a deadlock, a column that another
writer dropped) is part of the workload.
"""
# ruff: noqa: S608 the workload writes its own SQL

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from psycopg import errors

KEYED = ("plain_a", "plain_b", "wide")
"""Tables with `id bigint PRIMARY KEY, n integer, note text, big text`."""
ACCOUNTS = 20
INVARIANT = (
    "SELECT (SELECT sum(balance) FROM public.account) = (SELECT coalesce(sum(amount), 0) FROM public.entry)"
    " AND (SELECT count(*) FROM public.account) = {accounts}"
)
"""True in every state that a reader of the source can see."""
LARGE = 20_000
_KEYS = 400
_PATIENCE = 300
_REFUSED = (
    errors.DeadlockDetected,
    errors.LockNotAvailable,
    errors.IntegrityError,
    errors.UndefinedColumn,
    errors.DuplicateColumn,
    errors.UndefinedTable,
    errors.DuplicateTable,
    errors.ObjectNotInPrerequisiteState,
    errors.CheckViolation,
    errors.OperationalError,
)


def create_tables(execute: Callable[[str], object]) -> None:
    """The tables of the workload, with rows."""
    for table in KEYED:
        execute(
            f"CREATE TABLE {table} (id bigint PRIMARY KEY, n integer NOT NULL, note text, big text);"
            f"ALTER TABLE {table} ALTER big SET STORAGE EXTERNAL;"
            f"INSERT INTO {table} SELECT i, i, 'note ' || i, repeat('x' || i, 1200) FROM generate_series(1, 150) i"
        )
    execute(
        "CREATE TABLE account (id integer PRIMARY KEY, balance bigint NOT NULL);"
        f"INSERT INTO account SELECT i, 0 FROM generate_series(1, {ACCOUNTS}) i;"
        "CREATE TABLE entry (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, account integer, amount bigint);"
        "CREATE TABLE journal (line text, n integer);"
        "CREATE TABLE parted (id bigint, part integer, note text, PRIMARY KEY (id, part)) PARTITION BY LIST (part);"
        "CREATE TABLE parted_0 PARTITION OF parted FOR VALUES IN (0);"
        "CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1)"
    )


def change_each(execute: Callable[[str], object]) -> None:
    """One row change in each table that is altered: PostgreSQL tells of a new column with the next change alone."""
    for table in KEYED:
        execute(f"INSERT INTO {table} (id, n) VALUES (0, 0) ON CONFLICT (id) DO UPDATE SET n = 0")


class Writer:
    """One session's transactions. `number` 0 also alters tables; it is the only one that does."""

    def __init__(self, dsn: str, seed: int, number: int) -> None:
        self._dsn = dsn
        self._draw = random.Random(f"{seed}/{number}")
        self._alters = number == 0
        self._columns: dict[str, list[str]] = {table: [] for table in KEYED}
        self._names = 0

    def write(self, transactions: int) -> None:
        """Draws and runs so many transactions. The server may crash or cut the connection meanwhile."""
        connection: psycopg.Connection[Any] | None = None
        try:
            for _ in range(transactions):
                statements, is_undone = self._transaction()
                if connection is None or connection.closed:
                    connection = self._connect()
                try:
                    with connection.transaction(force_rollback=is_undone):
                        for statement, is_taken_back in statements:
                            with connection.transaction(force_rollback=is_taken_back):
                                connection.execute(statement.encode())
                except _REFUSED:
                    continue
        finally:
            if connection is not None:
                connection.close()

    def _connect(self) -> psycopg.Connection[Any]:
        for _ in range(_PATIENCE * 10):
            try:
                return psycopg.connect(self._dsn, options="-c lock_timeout=5s", connect_timeout=10)
            except psycopg.OperationalError:  # the server starts again
                threading.Event().wait(0.1)
        raise TimeoutError("the source's server does not come back")

    def _transaction(self) -> tuple[Sequence[tuple[str, bool]], bool]:
        """Statements, each with whether it is rolled back to a savepoint; and whether all are rolled back."""
        draw = self._draw
        kind = draw.random()
        if kind < 0.01:
            first = draw.randint(10**6, 10**9)
            large = f"INSERT INTO wide SELECT {first} + i, i, NULL, 'l' FROM generate_series(1, {LARGE}) i"
            return [(large, False)], draw.random() < 0.2
        if kind < 0.02:
            return [("UPDATE wide SET n = n + 1", False), ("DELETE FROM wide WHERE id > 1000000", False)], False
        if kind < 0.3:
            return [(statement, False) for statement in self._transfer()], draw.random() < 0.05
        if self._alters and kind < 0.42:
            return self._alteration(), draw.random() < 0.1
        return [(self._change(), draw.random() < 0.1) for _ in range(draw.randint(1, 6))], draw.random() < 0.05

    def _transfer(self) -> Sequence[str]:
        account, amount = self._draw.randint(1, ACCOUNTS), self._draw.randint(-1000, 1000)
        return (
            f"UPDATE account SET balance = balance + {amount} WHERE id = {account}",
            f"INSERT INTO entry (account, amount) VALUES ({account}, {amount})",
        )

    def _change(self) -> str:
        draw = self._draw
        table = draw.choice(KEYED)
        key, other, number = draw.randint(1, _KEYS), draw.randint(1, _KEYS), draw.randint(1, 10**6)
        big = f"repeat('y{number}', 500)" if draw.random() < 0.2 else "big"
        statements = [
            f"INSERT INTO {table} (id, n, big) VALUES ({key}, {number}, repeat('z{number}', {draw.choice([1, 500])}))"
            " ON CONFLICT DO NOTHING",
            f"UPDATE {table} SET n = {number}, big = {big} WHERE id = {key}",
            f"UPDATE {table} SET n = {number} WHERE id BETWEEN {key} AND {key} + 9",
            f"DELETE FROM {table} WHERE id = {key}",
            f"UPDATE {table} SET id = {other}, big = {big} WHERE id = {key}"
            f" AND NOT EXISTS (SELECT FROM {table} WHERE id = {other})",
            f"WITH gone AS (DELETE FROM {table} WHERE id = {key} RETURNING *)"
            f" INSERT INTO {table} (id, n, note, big) SELECT id + {_KEYS}, n, note, big FROM gone"
            " ON CONFLICT DO NOTHING",
            f"INSERT INTO journal SELECT 'line', {number} FROM generate_series(1, {draw.randint(1, 3)})",
            f"INSERT INTO parted VALUES ({key}, {key % 2}, 'p') ON CONFLICT DO NOTHING",
            f"UPDATE parted SET part = 1 - part, note = 'moved {number}' WHERE id = {key}",
            f"DELETE FROM parted WHERE id = {key}",
        ]
        if draw.random() < 0.02:
            return draw.choice(["TRUNCATE plain_a, plain_b", "TRUNCATE parted", "TRUNCATE journal"])
        return draw.choice(statements)

    def _alteration(self) -> Sequence[tuple[str, bool]]:
        draw = self._draw
        table = draw.choice(KEYED)
        columns = self._columns[table]
        self._names += 1
        name = f"c{self._names}"
        touch = f"UPDATE {table} SET n = n + 1 WHERE id <= 20"
        kind = draw.choice(
            ["add", "add", "default", "drop", "again", "rename", "type", "volatile", "create", "rebuild"]
        )
        gone = columns.pop(draw.randrange(len(columns))) if columns and kind in ("drop", "again", "rename") else None
        if kind == "drop" and gone is not None:
            return [(touch, False), (f"ALTER TABLE {table} DROP COLUMN {gone}", False), (touch, False)]
        if kind == "again" and gone is not None:
            columns.append(gone)
            again = f"ALTER TABLE {table} DROP COLUMN {gone}, ADD COLUMN {gone} numeric(10, 2)"
            return [(again, False), (touch, False)]
        if kind == "rename" and gone is not None:
            columns.append(name)
            return [(f"ALTER TABLE {table} RENAME {gone} TO {name}", False), (touch, False)]
        if kind == "type":
            return [("ALTER TABLE wide ALTER n TYPE bigint", False), (touch, False)]
        if kind == "create":
            create = f"CREATE TABLE made_{name} (id integer PRIMARY KEY, note text)"
            return [(create, False), (f"INSERT INTO made_{name} VALUES (1, 'made'), (2, NULL)", False)]
        if kind == "rebuild":
            return [("DROP TABLE journal", False), ("CREATE TABLE journal (line text, n integer)", False)]
        default = {"default": " DEFAULT 'seven'", "volatile": " DEFAULT clock_timestamp()::text"}.get(kind, "")
        columns.append(name)
        add = f"ALTER TABLE {table} ADD COLUMN {name} text{default}"
        return [(touch, False), (add, draw.random() < 0.1), (touch, False)]


class Workload:
    """All writers of a seed."""

    def __init__(self, dsn: str, seed: int, writers: int = 3) -> None:
        self._writers = [Writer(dsn, seed, number) for number in range(writers)]

    def write(self, transactions: int) -> None:
        """Each writer runs so many transactions, all at once; returns when the last has. Raises what one fails with."""
        failures: list[BaseException] = []

        def work(writer: Writer) -> None:
            try:
                writer.write(transactions)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(writer,), daemon=True) for writer in self._writers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
