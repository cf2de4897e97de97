"""Tables whose names change hands: renamed in place, whatever takes their name. PostgreSQL is the oracle."""
# ruff: noqa: S608 the tests write their own SQL

from __future__ import annotations

import contextlib
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import duckdb
import pytest

from etl_core.config_tables import read_tables
from etl_core.destination.aside import is_aside
from etl_core.errors import CopiedAgain, EtlError, StateConflict, TableAbsent, TransientError
from etl_core.identifiers import TableName
from etl_core.replication import failpoints
from etl_core.replication.copied import Copied
from etl_core.replication.followed import names_followed
from etl_core.source.doctor import examine
from etl_core.state.table_state import TableState
from etl_core.table_pattern import read_selection
from tests.integration.replication.conftest import PATIENCE, poll

if TYPE_CHECKING:
    from tests.integration.replication.conftest import Lab, Watched

NAMES = """
    SELECT c.oid::bigint, n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND c.oid >= 16384 AND n.nspname <> 'information_schema'
"""
KILLED_AT = [failpoints.BATCH_DECODED, failpoints.BATCH_WRITTEN, failpoints.PROGRESS_STORED, failpoints.CONFIRMED]

IN_PLACE = {
    "alone": ["ALTER TABLE {t} RENAME TO {t}_new"],
    "with_a_row": ["ALTER TABLE {t} RENAME TO {t}_new; INSERT INTO {t}_new VALUES (3, 'new')"],
    "twice": [
        "INSERT INTO {t} VALUES (3, 'old'); ALTER TABLE {t} RENAME TO {t}_new; UPDATE {t}_new SET a = 'x' WHERE id = 1",
        "ALTER TABLE {t}_new RENAME TO {t}_newer",
        "DELETE FROM {t}_newer WHERE id = 2",
    ],
    "there_and_back": [
        "ALTER TABLE {t} RENAME TO {t}_new; INSERT INTO {t}_new VALUES (3, 'new')",
        "ALTER TABLE {t}_new RENAME TO {t}; INSERT INTO {t} VALUES (4, 'old')",
    ],
    "moved": ["ALTER TABLE {t} SET SCHEMA other; UPDATE other.{t} SET a = a || '!'", "DELETE FROM other.{t}"],
    "moved_and_renamed": [
        "ALTER TABLE {t} RENAME TO {t}_new; ALTER TABLE {t}_new SET SCHEMA other",
        'ALTER TABLE other.{t}_new RENAME TO "{t} New"',
    ],
    "moved_with_its_schema": [
        "CREATE SCHEMA {t}_s; ALTER TABLE {t} SET SCHEMA {t}_s; INSERT INTO {t}_s.{t} VALUES (3, 's')",
        "ALTER SCHEMA {t}_s RENAME TO {t}_z; INSERT INTO {t}_z.{t} VALUES (4, 'z')",
    ],
    "spelled_otherwise": ['ALTER TABLE {t} RENAME TO "{t}_X"; INSERT INTO "{t}_X" VALUES (3, \'new\')'],
    "swapped": [
        "{swap}; INSERT INTO {t} VALUES (3, 'was u'); INSERT INTO {u} VALUES (4, 'was t')",
        "INSERT INTO {t} VALUES (5, 'was u')",
    ],
    "one_of_a_swap": ["{swap}", "INSERT INTO {u} VALUES (3, 'was t')"],
    "swap_of_quiet_ones": ["{swap}"],
    "swapped_and_back": [
        "INSERT INTO {t} VALUES (3, 't')",
        "{swap}; INSERT INTO {u} VALUES (4, 'was t')",
        "{swap}",
        "INSERT INTO {t} VALUES (5, 't'); UPDATE {u} SET a = 'u'",
    ],
    "taken_and_given_back": [
        "ALTER TABLE {t} RENAME TO {t}_x; ALTER TABLE {u} RENAME TO {t}; INSERT INTO {t} VALUES (3, 'u')",
        "ALTER TABLE {t} RENAME TO {u}; ALTER TABLE {t}_x RENAME TO {t}",
    ],
    "rotated": [
        "ALTER TABLE {t} RENAME TO {t}_x; ALTER TABLE {u} RENAME TO {t}; ALTER TABLE {v} RENAME TO {u};"
        "ALTER TABLE {t}_x RENAME TO {v}; INSERT INTO {t} VALUES (3, 'was u')",
        "INSERT INTO {v} VALUES (3, 'was t')",
    ],
}
SWAP = "ALTER TABLE {t} RENAME TO {t}_s; ALTER TABLE {u} RENAME TO {t}; ALTER TABLE {t}_s RENAME TO {u}"


def names_differ(lab: Lab, pipeline: Watched) -> bool:
    """Whether the store or the destination has a table under another name than the source has now."""
    source = {row[0]: TableName(*row[1:]) for row in lab.execute(NAMES)}
    stored = {status.table_id: pipeline.store.schema(status.table_id) for status in pipeline.store.tables()}
    kept = {table_id: schema[1].name for table_id, schema in stored.items() if schema is not None}
    if any(source.get(table_id, name) != name for table_id, name in kept.items()):
        return True
    rows = lab.rows("SELECT schema_name, table_name FROM duckdb_tables()")
    # Those of dropped tables whose names were taken stay where they are.
    ours = tuple(f"${table_id}" for table_id in kept)
    return any(is_aside(TableName(*row)) and row[1].endswith(ours) for row in rows)


def until_equal(lab: Lab, pipeline: Watched) -> None:
    """As a run does it: copies what is set back, and streams, until every table is ready, under its name of now."""
    while True:
        pipeline.stop.clear()
        for outcome in pipeline.sync():
            assert not isinstance(outcome, EtlError), outcome
        lab.caught_up(pipeline)
        is_ready = all(status.state is TableState.READY for status in pipeline.store.tables())
        if is_ready and not names_differ(lab, pipeline):
            return lab.assert_equal(pipeline)


@pytest.mark.parametrize("streaming", [pytest.param(True, id="streaming"), pytest.param(False, id="behind")])
def test_renamed_tables_keep_their_rows_and_are_not_copied(lab: Lab, streaming: bool) -> None:
    scripts: list[str] = []
    lab.execute("CREATE SCHEMA other")
    for case, given in IN_PLACE.items():
        names = {"t": case, "u": f"{case}_u", "v": f"{case}_v"}
        statements = [statement.replace("{swap}", SWAP) for statement in given]
        for name in [name for key, name in names.items() if f"{{{key}}}" in "".join(statements)]:
            lab.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, a text)")
            lab.execute(f"INSERT INTO {name} VALUES (1, '{name}'), (2, '{name}')")
        scripts += [statement.format(**names) for statement in statements]
    lab.publish()
    pipeline = lab.synced()
    if streaming:
        with lab.running(pipeline, pipeline.stream):
            for statement in scripts:
                lab.execute(statement)
            pipeline.observer.until_flushed(pipeline.current_lsn())
    else:
        for statement in scripts:
            lab.execute(statement)
    again = lab.pipeline()
    until_equal(lab, again)
    assert (pipeline.observer.errors, again.observer.errors) == ({}, {})
    told = again.observer.states + pipeline.observer.states
    assert not [state for state in told if state[1] in (TableState.INIT, TableState.ERRORED)]


def test_a_rotated_table_and_a_new_one_under_its_name(lab: Lab) -> None:
    """events becomes events_2024, and there is a new events: the one moves on with its rows, the other is copied."""
    lab.execute("CREATE TABLE events (id int PRIMARY KEY, a text); INSERT INTO events VALUES (1, 'old')")
    lab.publish()
    pipeline = lab.synced()
    with lab.running(pipeline):
        for year in ("2024", "2025"):
            lab.execute(
                f"INSERT INTO events VALUES (2, '{year}'); ALTER TABLE events RENAME TO events_{year};"
                "CREATE TABLE events (id int PRIMARY KEY, b int); INSERT INTO events VALUES (1, 1)"
            )
            lab.execute(f"INSERT INTO events_{year} VALUES (3); ALTER TABLE events ADD a text")
            pipeline.watch.wake()
            pipeline.observer.until_state("events", TableState.READY, times=2 if year == "2024" else 3)
    until_equal(lab, lab.pipeline())
    assert {status.name.name for status in pipeline.store.tables()} == {"events", "events_2024", "events_2025"}
    assert pipeline.observer.states.count(("events_2024", TableState.INIT)) == 0


def configure(lab: Lab, *entries: str) -> None:
    tables = read_selection("source.tables", entries, instead="").entries
    lab.config = replace(lab.config, source=replace(lab.config.source, tables=tables))


def test_a_configured_table_is_followed_and_so_is_another_one_under_its_name(lab: Lab) -> None:
    """By names, by patterns; while it runs and while nothing does; until the configuration leaves it out."""
    for name in ("old", "other", "t_1"):
        lab.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, a text); INSERT INTO {name} VALUES (1, '{name}')")
    lab.publish()
    configure(lab, "old", "other", "t_*", "!hidden_*")
    pipeline = lab.synced()

    def called() -> set[str]:
        return {status.name.name for status in pipeline.store.tables()}

    with lab.running(pipeline):
        lab.execute("ALTER TABLE old RENAME TO new; INSERT INTO new VALUES (2, 'new')")
        pipeline.watch.wake()
        pipeline.observer.until(lambda: bool(pipeline.observer.notices), "the notice")
        lab.execute("CREATE TABLE old (b int PRIMARY KEY); INSERT INTO old VALUES (5)")
        pipeline.watch.wake()
        pipeline.observer.until_state("old", TableState.READY, times=2)
    assert "write public.new in source.tables" in pipeline.observer.notices[0]
    with lab.unprepared() as deciding:
        assert deciding.find(TableName("public", "new")) != deciding.find(TableName("public", "old"))
    lab.execute("ALTER TABLE t_1 RENAME TO u_1; ALTER TABLE other RENAME TO o; INSERT INTO u_1 VALUES (2, 'u')")
    selection = lab.config.source.selection
    findings = examine(
        lab.database.dsn,
        pipeline=lab.config.pipeline,
        publication="lab_pub",
        selection=selection,
        names_now=partial(names_followed, pipeline.store, selection),
    )
    assert not [finding.message for finding in findings if "has no table" in finding.message]
    pipeline = lab.pipeline()
    until_equal(lab, pipeline)
    assert called() == {"new", "old", "o", "u_1"}
    with lab.unprepared() as deciding:  # as a person types it, who knows the name of before
        assert deciding.find(TableName("public", "other")) == deciding.find(TableName("public", "o"))
    assert not pipeline.observer.errors
    # Names change hands; what is taken out of the configuration goes, and what is put into it is what is called so now.
    lab.execute(SWAP.format(t="new", u="u_1"))
    until_equal(lab, lab.pipeline())
    configure(lab, "new", "other", "t_*", "!hidden_*")
    pipeline = lab.pipeline()
    assert called() == {"new", "o"}  # called u_1 and old when they were selected
    configure(lab, "old", "!u_*", "public.*")
    pipeline = lab.pipeline()
    until_equal(lab, pipeline)
    assert called() == {"new", "old", "o"}
    lab.execute("ALTER TABLE o RENAME TO u_2")
    pipeline = lab.pipeline()
    assert called() == {"new", "old"}


def test_a_table_with_hidden_columns_stops_when_it_is_renamed(lab: Lab) -> None:
    """Without a row, too: nobody has said that they may be seen under the new name."""
    lab.execute("CREATE TABLE t (id int PRIMARY KEY, secret text); INSERT INTO t VALUES (1, 'seen by nobody')")
    lab.publish()
    settings = read_tables("tables", {"public.t": {"columns": {"exclude": ["secret"]}}})
    pipeline = lab.synced(tables=settings)
    with lab.running(pipeline):
        lab.execute("ALTER TABLE t RENAME TO u")
        for _ in range(2):  # the second look proves that the stream has passed the first
            pipeline.watch.wake()
        pipeline.observer.until(lambda: "u" in pipeline.observer.errors, "the table stops")
    assert "by its old name" in str(pipeline.observer.errors["u"])
    with duckdb.connect(lab.path) as destination:
        assert destination.execute("SELECT * FROM public.t").fetchall() == [(1,)]


def test_killed_at_each_boundary_of_a_rename(lab: Lab) -> None:
    lab.execute("CREATE TABLE t (id serial PRIMARY KEY, a text); CREATE TABLE u (id serial PRIMARY KEY, a text)")
    lab.execute("INSERT INTO t (a) VALUES ('t'); INSERT INTO u (a) VALUES ('u')")
    lab.publish()
    lab.synced()
    swap = SWAP.format(t="t", u="u")
    for number, failpoint in enumerate(KILLED_AT):
        lab.execute(f"{swap}; INSERT INTO t (a) VALUES ('{number}')")
        lab.execute("INSERT INTO u (a) SELECT a FROM t" if number % 2 else "SELECT")
        assert lab.process("run", failpoint=f"{failpoint}:kill").wait(PATIENCE) == -signal.SIGKILL
    until_equal(lab, lab.pipeline())


class Shuffled:
    """Tables that take each other's names; each method gives statements that PostgreSQL accepts."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._free = [f"{namespace}.t{number}" for namespace in ("public", "other") for number in range(9)]
        self._random.shuffle(self._free)
        self.names = [self._free.pop() for _ in range(6)]
        self._rows = iter(range(1, 1_000_000))

    def create(self, name: str) -> str:
        # An index moves with its table to another schema, where another one may have the name that it would be given.
        key = f"key_{next(self._rows)}"
        return f"CREATE TABLE {name} (id int CONSTRAINT {key} PRIMARY KEY, a text); {self._insert(name)}"

    def rows(self) -> Iterator[str]:
        for name in self._random.sample(self.names, k=self._random.randint(0, 3)):
            yield self._insert(name)
            yield self._random.choice(
                [f"UPDATE {name} SET a = '{name}'", f"DELETE FROM {name} WHERE id % 3 = 0", "SELECT"]
            )

    def _insert(self, name: str) -> str:
        number = next(self._rows)
        return f"INSERT INTO {name} (id, a) VALUES ({number}, '{name} {number}'), (-{number}, 'x')"

    def change(self) -> str:
        ways: list[Callable[[], str]] = [self._rename, self._rename, self._rename, self._swap, self._rotate]
        return self._random.choice([*ways, self._recreate, self._alter])()

    def _moved(self, before: str, after: str) -> str:
        (origin, _), (namespace, target) = before.split("."), after.split(".")
        return (
            f"ALTER TABLE {before} RENAME TO moving; ALTER TABLE {origin}.moving SET SCHEMA {namespace};"
            f"ALTER TABLE {namespace}.moving RENAME TO {target}"
        )

    def _rename(self) -> str:
        at, to = self._random.randrange(len(self.names)), self._random.randrange(len(self._free))
        before, after = self.names[at], self._free[to]
        self.names[at], self._free[to] = after, before
        return self._moved(before, after)

    def _swap(self) -> str:
        one, other = self._random.sample(self.names, k=2)
        return ";".join([self._moved(one, "other.s"), self._moved(other, one), self._moved("other.s", other)])

    def _rotate(self) -> str:
        """A name goes from table to table, and the last one gets a new one."""
        one, other = self._random.sample(self.names, k=2)
        free = self._free.pop()
        self._free.append(other)
        self.names[self.names.index(other)] = free
        return ";".join([self._moved(one, free), self._moved(other, one)])

    def _recreate(self) -> str:
        name = self._random.choice(self.names)
        return f"DROP TABLE {name}; {self.create(name)}"

    def _alter(self) -> str:
        """A column of before comes and goes, or is changed."""
        name, number = self._random.choice(self.names), next(self._rows)
        comes = f"ALTER TABLE {name} ADD c{number} int DEFAULT 7; {self._insert(name)}"
        goes = f"ALTER TABLE {name} DROP c{number}; {self._insert(name)}"
        return self._random.choice([comes, f"{comes}; {goes}"])


@pytest.mark.parametrize("seed", range(2))
def test_any_names_end_equal(lab: Lab, seed: int) -> None:
    shuffled = Shuffled(seed)
    lab.execute("CREATE SCHEMA other")
    for name in shuffled.names:
        lab.execute(shuffled.create(name))
    lab.publish()
    pipeline = lab.synced()
    chosen = random.Random(seed)

    def shuffle() -> None:
        with lab.connect() as connection:
            connection.autocommit = True
            for _ in range(12):
                script = [*shuffled.rows(), shuffled.change(), *shuffled.rows(), shuffled.change(), *shuffled.rows()]
                statements = [statement for part in script for statement in part.split(";")]
                if chosen.random() < 0.5:
                    statements = ["BEGIN", *statements, "COMMIT"]
                for statement in statements:
                    connection.execute(statement.encode())

    if seed % 2:
        with lab.running(pipeline):
            shuffle()
            pipeline.observer.until_flushed(pipeline.current_lsn())
    else:
        shuffle()
    again = lab.pipeline()
    until_equal(lab, again)
    errors = pipeline.observer.errors | again.observer.errors
    assert [
        error for error in errors.values() if not isinstance(error, CopiedAgain | TableAbsent | TransientError)
    ] == []


def test_a_quiet_table_whose_name_a_copy_took_and_gave_back(lab: Lab) -> None:
    """It was put aside for the copy of another table, and nothing but the destination says so afterwards."""
    for table in ("t", "u", "other"):
        lab.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, a text); INSERT INTO {table} VALUES (1, '{table}')")
    lab.publish()
    pipeline = lab.synced()
    status = pipeline.find(TableName("public", "u"))
    with lab.running(pipeline, pipeline.stream), lab.unprepared() as copying:

        def is_copied() -> bool:
            with contextlib.suppress(StateConflict):  # the stream takes in what was copied before
                copying.copy_later(copying.store.table(status.table_id) or status)
                return isinstance(copying.copy(copying.store.table(status.table_id) or status), Copied)
            return False

        lab.execute("INSERT INTO other VALUES (2, 'x')")
        pipeline.observer.until_flushed(pipeline.current_lsn())  # it has begun
        for _ in range(2):
            lab.execute(SWAP.format(t="t", u="u"))
            poll(is_copied, "a copy of u")
        poll(lambda: all(one.state is TableState.READY for one in pipeline.store.tables()), "that u is taken in")

        def is_called_as_ever() -> bool:
            pipeline.watch.wake()
            return not names_differ(lab, pipeline)

        poll(is_called_as_ever, "that no table waits under a name of ours")
    assert lab.rows("SELECT a FROM public.t UNION ALL SELECT a FROM public.u") == [("t",), ("u",)]
    lab.assert_equal(pipeline)
