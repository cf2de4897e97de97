"""Random alterations with rows between them: whatever is done to a table, it ends equal to the source without a person.

PostgreSQL is the oracle. Half of the tables are altered in one transaction each, the others statement by statement,
both while a stream runs and while none does.
"""
# ruff: noqa: S608 the tests write their own SQL

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from etl_core.errors import CopiedAgain, EtlError
from etl_core.identifiers import TableName
from etl_core.policies import SchemaChanges, TablePolicy
from etl_core.state.table_state import TableState

if TYPE_CHECKING:
    from tests.integration.replication.conftest import Lab, Watched

TABLES = 16


class Altered:
    """One table and what it has become; each method gives a statement that PostgreSQL accepts."""

    def __init__(self, name: str, seed: int, *, ignored: bool = False) -> None:
        """`ignored`: alterations most of which can be ignored."""
        self.name = name
        self._ignored = ignored
        self._random = random.Random(seed)
        self._gone: list[str] = []
        self._fresh = iter(f"x{number}" for number in range(1_000))
        self._rows = iter(range(1, 1_000_000))
        self._keys = {"id": "int", "k": "int"}
        """Unique and not null; the first of them is the key."""
        self._columns = {"a": "int", "b": "text", "c": "varchar(4)", "d": "numeric(6,2)"}

    def create(self) -> str:
        columns = ", ".join(f"{name} {kind}" for name, kind in self._columns.items())
        return f"CREATE TABLE {self.name} (id int PRIMARY KEY, k int NOT NULL UNIQUE, {columns})"

    def rows(self) -> Iterator[str]:
        yield self._insert()
        for statement in self._random.sample([self._insert, self._update, self._delete, self._move], k=2):
            yield statement()

    def alteration(self) -> str:
        ways: list[Callable[[], str | None]] = [
            self._add,
            self._drop,
            self._rename,
            self._rename,
            self._swap,
            self._retype,
            self._retype,
            self._compute,
            self._other_key,
            self._other_identity,
            self._truncate,
        ]
        if self._ignored:
            rare = (self._retype, self._other_key)
            ways = [way for way in ways if way not in rare] * 3 + [*rare]
        while True:
            statement = self._random.choice(ways)()
            if statement is not None:
                return statement

    def _insert(self) -> str:
        number = next(self._rows)
        values = {name: str(number) for name in self._keys}
        values |= {name: self._value(kind) for name, kind in self._columns.items()}
        return f"INSERT INTO {self.name} ({', '.join(values)}) VALUES ({', '.join(values.values())})"

    def _update(self) -> str:
        if not self._columns:
            return self._move()
        name = self._random.choice(list(self._columns))
        where = f"{next(iter(self._keys))} % 3 = {self._random.randrange(3)}"
        return f"UPDATE {self.name} SET {name} = {self._value(self._columns[name])} WHERE {where}"

    def _delete(self) -> str:
        return f"DELETE FROM {self.name} WHERE {next(iter(self._keys))} % 5 = {self._random.randrange(5)}"

    def _move(self) -> str:
        key = next(iter(self._keys))
        return f"UPDATE {self.name} SET {key} = -{key} WHERE {key} % 4 = {self._random.randrange(4)}"

    def _value(self, kind: str) -> str:
        if self._random.random() < 0.2:
            return "NULL"
        number = self._random.randrange(100)
        return f"'{number}'" if kind.startswith(("text", "varchar")) else str(number)

    def _add(self) -> str:
        name, kind = self._name(), self._random.choice(["int", "text", "varchar(4)", "numeric(6,2)"])
        default = self._random.choice(["", f" DEFAULT {self._value(kind)}", " DEFAULT (random() * 50)::int"])
        self._columns[name] = kind
        return f"ALTER TABLE {self.name} ADD {name} {kind}{default}"

    def _name(self) -> str:
        """A new one, or one that a column of before had."""
        name = self._random.choice([next(self._fresh), *self._gone])
        if name in self._gone:
            self._gone.remove(name)
        return name

    def _drop(self) -> str | None:
        if not self._columns:
            return None
        name = self._random.choice(list(self._columns))
        del self._columns[name]
        self._gone.append(name)
        return f"ALTER TABLE {self.name} DROP {name}"

    def _rename(self) -> str:
        before = self._random.choice([*self._keys, *self._columns])
        after = self._name()
        self._gone.append(before)
        self._keys = {after if name == before else name: kind for name, kind in self._keys.items()}
        self._columns = {after if name == before else name: kind for name, kind in self._columns.items()}
        return f"ALTER TABLE {self.name} RENAME {before} TO {after}"

    def _swap(self) -> str | None:
        if len(self._columns) < 2:
            return None
        one, other = self._random.sample(list(self._columns), k=2)
        self._columns[one], self._columns[other] = self._columns[other], self._columns[one]
        rename = f"ALTER TABLE {self.name} RENAME"
        return f"{rename} {one} TO swapped; {rename} {other} TO {one}; {rename} swapped TO {other}"

    def _retype(self) -> str | None:
        wider = {"int": "bigint", "varchar(4)": "varchar(9)", "varchar(9)": "text", "numeric(6,2)": "numeric(9,2)"}
        columns = [name for name, kind in self._columns.items() if kind in wider]
        if not columns:
            return None
        name = self._random.choice(columns)
        self._columns[name] = wider[self._columns[name]]
        return f"ALTER TABLE {self.name} ALTER {name} TYPE {self._columns[name]}"

    def _compute(self) -> str | None:
        columns = [name for name, kind in self._columns.items() if kind == "text"]
        if not columns:
            return None
        name = self._random.choice(columns)
        return f"ALTER TABLE {self.name} ALTER {name} TYPE text USING {name} || '.'"

    def _other_key(self) -> str:
        old, new = self._keys
        self._keys = {new: self._keys[new], old: self._keys[old]}
        return (
            f"ALTER TABLE {self.name} DROP CONSTRAINT {self.name}_pkey;"
            f"ALTER TABLE {self.name} ADD CONSTRAINT {self.name}_pkey PRIMARY KEY ({new});"
            f"CREATE UNIQUE INDEX ON {self.name} ({old}); ALTER TABLE {self.name} ALTER {old} SET NOT NULL"
        )

    def _other_identity(self) -> str:
        return f"ALTER TABLE {self.name} REPLICA IDENTITY {self._random.choice(['FULL', 'DEFAULT'])}"

    def _truncate(self) -> str | None:
        return f"TRUNCATE {self.name}" if self._random.random() < 0.3 else None


def until_equal(lab: Lab, pipeline: Watched) -> None:
    """As a run does it: copies what is set back, and streams, until every table is ready."""
    while True:
        for outcome in pipeline.sync():
            assert not isinstance(outcome, EtlError), outcome
        lab.caught_up(pipeline)
        if all(status.state is TableState.READY for status in pipeline.store.tables()):
            return lab.assert_equal(pipeline)


def altered(lab: Lab, pipeline: Watched, tables: Sequence[Altered], seed: int, *, streaming: bool) -> None:
    """Alters the tables and writes to them, beside a stream or while none runs."""

    def alter() -> None:
        with lab.connect() as connection:
            connection.autocommit = True
            for number, table in enumerate(tables):
                script = [*table.rows()]
                for _ in range(random.Random(seed * TABLES + number).randint(1, 8)):
                    script += [table.alteration(), *table.rows()]
                script = [statement for part in script for statement in part.split(";")]
                if number % 2:
                    script = ["BEGIN", *script, "COMMIT"]
                for statement in script:
                    connection.execute(statement.encode())

    if streaming:
        with lab.running(pipeline, pipeline.stream):
            alter()
            pipeline.observer.until_flushed(pipeline.current_lsn())
    else:
        alter()


@pytest.mark.parametrize("streaming", [pytest.param(True, id="streaming"), pytest.param(False, id="behind")])
@pytest.mark.parametrize("seed", range(3))
def test_any_alterations_end_equal(lab: Lab, seed: int, streaming: bool) -> None:
    tables = [Altered(f"t{number}", seed * TABLES + number) for number in range(TABLES)]
    for table in tables:
        lab.execute(table.create())
        for statement in (*table.rows(), *table.rows()):
            lab.execute(statement)
    lab.publish()
    pipeline = lab.synced()
    altered(lab, pipeline, tables, seed, streaming=streaming)
    again = lab.pipeline()
    until_equal(lab, again)
    errors = pipeline.observer.errors | again.observer.errors
    assert all(isinstance(error, CopiedAgain) for error in errors.values()), errors


@pytest.mark.parametrize("streaming", [pytest.param(True, id="streaming"), pytest.param(False, id="behind")])
def test_any_alterations_that_are_ignored_leave_the_columns_of_before(lab: Lab, streaming: bool) -> None:
    """What is still a column at the source, by its number, has the source's values; some tables wait for a person."""
    seed = 100
    tables = [Altered(f"t{number}", seed * TABLES + number, ignored=True) for number in range(TABLES)]
    for table in tables:
        lab.execute(table.create())
        for statement in (*table.rows(), *table.rows()):
            lab.execute(statement)
    lab.publish()
    lab.config = replace(lab.config, policy=TablePolicy(SchemaChanges.IGNORE))
    pipeline = lab.synced()
    columns = {table.name: lab.rows(f"DESCRIBE public.{table.name}") for table in tables}
    numbers = {table.name: attnums(lab, table.name) for table in tables}
    altered(lab, pipeline, tables, seed, streaming=streaming)
    pipeline.stop.clear()
    for _ in range(3):
        pipeline.sync()
        lab.caught_up(pipeline)
    statuses = {status.name.name: status for status in pipeline.store.tables()}
    flowing = [name for name, status in statuses.items() if status.state is TableState.READY]
    assert {statuses[name].waits_for for name in statuses if name not in flowing} == {"ignore"}
    assert len(flowing) >= TABLES // 2
    assert len(pipeline.ignored()) > TABLES // 4
    assert all(one.is_equal for one in pipeline.verify([TableName("public", name) for name in flowing]))
    for name, described in columns.items():
        assert lab.rows(f"DESCRIBE public.{name}") == described
    for name in flowing:
        now = {number: column for column, number in attnums(lab, name).items()}
        stay = {column: now[number] for column, number in numbers[name].items() if number in now}
        ours, theirs = (", ".join(f'"{column}"' for column in some) for some in (stay, stay.values()))
        assert Counter(lab.rows(f"SELECT {ours} FROM public.{name}")) == Counter(
            lab.execute(f"SELECT {theirs} FROM {name}")
        )


def attnums(lab: Lab, table: str) -> dict[str, int]:
    query = "SELECT attname, attnum FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"
    return dict(lab.execute(query, [table]))
