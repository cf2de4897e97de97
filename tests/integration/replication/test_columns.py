"""Columns left out, renamed and transformed, by COPY and by the stream; and what becomes of changed settings."""
# ruff: noqa: S608 the tests write their own SQL

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import psycopg
import pytest

from etl_core.config import BatchConfig
from etl_core.config_tables import read_tables
from etl_core.errors import ConfigError, DestinationUnavailable, EtlError, TableError
from etl_core.identifiers import TableName
from etl_core.protocol.segment import Frames
from etl_core.replication import failpoints
from etl_core.replication.spool import Spool, SpooledFrames
from etl_core.shape.keyed_hash import HashKey
from etl_core.state.table_state import TableState

if TYPE_CHECKING:
    from tests.integration.replication.conftest import Churn, Lab, Watched

KEY = "a key that is long enough"
HASH = HashKey.of(KEY)


def tables(**columns: Mapping[str, Any]) -> dict[str, Any]:
    """Changes of the lab's configuration: `columns` by table."""
    settings = {f"public.{name}": {"columns": given} for name, given in columns.items()}
    return {"tables": read_tables("tables", settings), "hash_key": KEY}


def hashed(value: object) -> str:
    return HASH.hash_text(str(value).encode())


def assert_verified(pipeline: Watched) -> None:
    compared = pipeline.verify()
    assert compared
    assert [comparison for comparison in compared if not comparison.is_equal] == []


# --- what arrives ----------------------------------------------------------------------------------------------------

TYPES: dict[str, tuple[str, list[str]]] = {
    "big": ("bigint", ["0", "-9223372036854775808"]),
    "yes": ("boolean", ["true", "false"]),
    "money": ("numeric(12,4)", ["1.10", "-0.0001"]),
    "any": ("numeric", ["1.1000", "NaN"]),
    "real": ("float8", ["0.1", "-0", "Infinity"]),
    "day": ("date", ["2020-02-29", "infinity", "0044-03-15 BC"]),
    "at": ("timestamptz", ["2020-02-29 12:00:00.000001+05", "-infinity"]),
    "took": ("interval", ["1 year -2 days 03:04:05.6"]),
    "raw": ("bytea", ["\\x00ff"]),
    "id": ("uuid", ["5a3b1c4e-0000-4000-8000-00000000beef"]),
    "tags": ("text[]", ['{a,NULL,"b c"}']),
    "doc": ("jsonb", ['{"a": [1, null], "ä": "✗"}']),
    "fixed": ("char(4)", ["ab"]),
    "range": ("int4range", ["[1,5)"]),
    "text": ("text", ["", "ä✗", "x" * 300]),
}


def test_every_type_is_hashed_by_its_text_the_same_by_copy_and_by_stream(lab: Lab) -> None:
    """The oracle is PostgreSQL's own text of the value."""
    names = [f"c_{name}" for name in TYPES]
    defined = ", ".join(f"{name} {type_}" for name, (type_, _) in zip(names, TYPES.values(), strict=True))
    lab.execute(f"CREATE TABLE t (id int PRIMARY KEY, {defined})")
    longest = max(len(values) for _, values in TYPES.values())
    rows: list[list[str | None]] = [[values[at % len(values)] for _, values in TYPES.values()] for at in range(longest)]

    def insert(first: int) -> None:
        nulls: list[str | None] = [None] * len(names)
        for at, row in enumerate([*rows, nulls], first):
            lab.execute(f"INSERT INTO t VALUES ({', '.join(['%s'] * (len(names) + 1))})", [at, *row])

    insert(0)
    lab.publish()
    pipeline = lab.synced(**tables(t={"hash": names}))
    insert(100)
    lab.caught_up(pipeline)
    shown = ", ".join(
        f"CASE WHEN {name} IS NOT NULL THEN {_text(type_, name)} END"
        for name, (type_, _) in zip(names, TYPES.values(), strict=True)
    )
    with psycopg.connect(
        lab.database.dsn, options="-c timezone=UTC -c intervalstyle=iso_8601 -c extra_float_digits=1"
    ) as source:
        texts = source.execute(f"SELECT id, {shown} FROM t ORDER BY id").fetchall()
    expected = [(row[0], *(None if value is None else hashed(value) for value in row[1:])) for row in texts]
    found = lab.rows(f"SELECT id, {', '.join(names)} FROM public.t ORDER BY id")
    by_copy = [row[1:] for row in found if row[0] < 100]
    assert by_copy == [row[1:] for row in found if row[0] >= 100]
    assert [dict(zip(names, row[1:], strict=True)) for row in found] == [
        dict(zip(names, row[1:], strict=True)) for row in expected
    ]
    assert_verified(pipeline)


def _text(type_: str, name: str) -> str:
    """The output function's text; a cast to text trims a char(n) and spells a boolean out."""
    return f"format('%s', {name})" if type_ != "boolean" else f"CASE WHEN {name} THEN 't' ELSE 'f' END"


def test_random_changes_arrive_equal_whatever_the_columns_are(
    lab: Lab, churn: Callable[..., Churn], churned: Callable[..., None]
) -> None:
    """Unchanged TOASTed values, moved keys, deleted and repeated ones; beside a copy, and streamed."""
    shapes: dict[str, dict[str, Any]] = {
        "a": {"hash": ["id"], "exclude": ["big"]},
        "b": {"hash": ["big"], "mask": ["note"], "rename": {"n": "number", "id": "key"}},
        "c": {"null": ["big"], "truncate": {"note": 3, "n": 1}},
        "d": {"include": ["id", "big"], "hash": ["id"]},
        "e": {},
    }
    churned(*shapes)
    lab.publish()
    pipeline = lab.pipeline(**tables(**shapes))
    with churn(*shapes), lab.running(pipeline):
        pipeline.observer.until_ready(*shapes)
        pipeline.observer.until(lambda: len(pipeline.observer.flushes) > 20, "twenty batches")
    lab.caught_up(pipeline)
    assert_verified(pipeline)
    expected = counted(lab.execute("SELECT id, n FROM a"), lambda row: (hashed(row[0]), row[1]))
    assert counted(lab.rows("SELECT id, n FROM public.a"), tuple) == expected
    ours = lab.execute("SELECT id, n, note, big FROM b")
    expected = counted(
        ours,
        lambda row: (row[0], row[1], None if row[2] is None else "***", None if row[3] is None else hashed(row[3])),
    )
    assert counted(lab.rows("SELECT key, number, note, big FROM public.b"), tuple) == expected
    ours = lab.execute("SELECT id, left(n::text, 1), left(note, 3) FROM c")
    assert counted(lab.rows("SELECT id, n, note FROM public.c"), tuple) == counted(ours, tuple)
    assert lab.rows("SELECT count(big) FROM public.c") == [(0,)]


def counted(rows: Any, spelled: Callable[[Any], Any]) -> dict[Any, int]:
    found: dict[Any, int] = {}
    for row in rows:
        found[spelled(row)] = found.get(spelled(row), 0) + 1
    return found


def test_hashed_columns_of_two_tables_join(lab: Lab) -> None:
    lab.execute("CREATE TABLE users (id int PRIMARY KEY, email text); INSERT INTO users VALUES (1, 'ada'), (2, 'bob')")
    lab.execute("CREATE TABLE orders (id bigint PRIMARY KEY, user_id bigint, by varchar(20))")
    lab.publish()
    pipeline = lab.synced(**tables(users={"hash": ["id", "email"]}, orders={"hash": ["user_id", "by"]}))
    lab.execute("INSERT INTO orders VALUES (7, 2, 'bob'), (8, 1, 'ada'), (9, 3, 'eve')")
    lab.caught_up(pipeline)
    joined = lab.rows(
        "SELECT o.id FROM public.users u JOIN public.orders o ON o.user_id = u.id AND o.by = u.email ORDER BY 1"
    )
    assert joined == [(7,), (8,)]


def test_columns_come_and_go_at_the_source(lab: Lab) -> None:
    """What older rows hold of a new column is transformed, too."""
    lab.execute("CREATE TABLE t (id int PRIMARY KEY, a text, gone text); INSERT INTO t VALUES (1, 'a', 'g')")
    lab.publish()
    settings: dict[str, Any] = {
        "tables": read_tables(
            "tables",
            {"public.*": {"columns": {"hash": ["tier", "gone"], "mask": ["a"], "exclude": ["note"]}}},
        ),
        "hash_key": KEY,
    }
    # `tier` and `note` are not there yet: the settings fit once another table has them.
    lab.execute("CREATE TABLE other (id int PRIMARY KEY, tier text, note text)")
    pipeline = lab.synced(**settings)
    lab.execute("ALTER TABLE t ADD tier text DEFAULT 'gold', ADD note text DEFAULT 'secret'")
    lab.execute("INSERT INTO t (id, a) VALUES (2, 'b'); ALTER TABLE t DROP gone; INSERT INTO t VALUES (3, NULL, 'tin')")
    lab.caught_up(pipeline)
    assert lab.rows("SELECT id, a, tier FROM public.t ORDER BY id") == [
        (1, "***", hashed("gold")),
        (2, "***", hashed("gold")),
        (3, None, hashed("tin")),
    ]
    assert [row[0] for row in lab.rows("DESCRIBE public.t")] == ["id", "a", "tier"]
    assert_verified(pipeline)
    assert pipeline.observer.errors == {}
    again = lab.pipeline(**settings)
    assert {status.state for status in again.store.tables()} == {TableState.READY}, "nothing is copied again"


def test_columns_change_in_place_beside_those_that_are_hidden(lab: Lab) -> None:
    """Renamed, swapped and wider ones, and another key: what the destination is told is about its own columns."""
    lab.execute(
        "CREATE TABLE t (id int PRIMARY KEY, email varchar(10), n numeric(5,2), a text, b text, note text, code text"
        " NOT NULL UNIQUE); INSERT INTO t VALUES (1, 'ada', 1.5, 'a', 'b', 'note', 'c1')"
    )
    lab.publish()
    settings = tables(t={"hash": ["email", "id"], "truncate": {"n": 3}, "exclude": ["note"], "rename": {"a": "x"}})
    pipeline = lab.synced(**settings)
    row = "INSERT INTO t VALUES ({}, 'ada', 1.5, 'a', 'b', 'note', 'c{}')"
    for number, change in enumerate(
        (
            "ALTER TABLE t ALTER email TYPE varchar(20), ALTER n TYPE numeric(8,2)",
            "ALTER TABLE t RENAME b TO c",
            "ALTER TABLE t DROP note",
            "ALTER TABLE t RENAME code TO label",
            "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (label)",
        ),
        2,
    ):
        lab.execute(change)
        text = row.format(number, number)
        lab.execute(text if number < 4 else text.replace(", 'note'", ""))
        lab.execute(f"UPDATE t SET n = {number}, c = 'changed' WHERE id = 1" if number > 2 else "SELECT 1")
        lab.caught_up(pipeline)
        assert_verified(pipeline)
    assert pipeline.observer.errors == {}
    assert lab.rows("SELECT id, email, n, x, c, label FROM public.t ORDER BY label") == [
        (hashed(1), hashed("ada"), "6.0", "a", "changed", "c1"),
        *((hashed(number), hashed("ada"), "1.5", "a", "b", f"c{number}") for number in range(2, 7)),
    ]


# --- what is hidden --------------------------------------------------------------------------------------------------


class Artefacts:
    """Everything that the process has written, or could: looked at while it runs and at the end."""

    def __init__(self, folder: Path, planted: bytes, visible: bytes) -> None:
        self._folder = folder
        self._planted = planted
        self._visible = visible
        self.has_seen_visible = False
        self.leaks: set[str] = set()
        self.looked = 0
        self.has_lost_an_answer = False

    def look(self, *_: object) -> None:
        self.looked += 1
        for file in self._folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # staged, and discarded meanwhile
                if file.is_file():
                    self.examine(file.name, file.read_bytes())

    def examine(self, name: str, content: bytes) -> None:
        self.has_seen_visible |= self._visible in content
        if self._planted in content or self._planted.hex().encode() in content:
            self.leaks.add(name)


@pytest.fixture
def spools(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What lies on the disk behind each piece that was spooled."""
    found: list[bytes] = []
    real = Spool.put

    def put(spool: Spool, frames: Frames) -> SpooledFrames:
        spooled = real(spool, frames)
        descriptor = spool._file.fileno()
        found.append(os.pread(descriptor, os.fstat(descriptor).st_size, 0))
        return spooled

    monkeypatch.setattr(Spool, "put", put)
    return found


def test_hidden_values_are_on_no_disk_and_in_no_log(
    lab: Lab, tmp_path: Path, spools: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """By COPY and by stream, in a spooled transaction, and where the destination or a value fails."""
    caplog.set_level(logging.DEBUG)
    planted, visible = secrets.token_hex(24), secrets.token_hex(24)
    artefacts = Artefacts(tmp_path, planted.encode(), visible.encode())
    lab.execute(
        "CREATE TABLE users (id int PRIMARY KEY, email text, phone text, born text, note text, zip text, shown text,"
        " amount numeric(5,2))"
    )
    lab.execute("ALTER TABLE users ALTER email SET STORAGE EXTERNAL, ALTER note SET STORAGE EXTERNAL")
    lab.execute("CREATE TABLE spare (id int PRIMARY KEY)")
    secret = f"'{planted}' || i"
    values = f"i, {secret}, {secret}, {secret}, {secret}, 'abc' || {secret}, '{visible}' || i, 1"
    lab.execute(f"INSERT INTO users SELECT {values} FROM generate_series(1, 50) i")
    lab.publish()
    columns = {
        "hash": ["email"],
        "mask": ["phone"],
        "null": ["born"],
        "exclude": ["note"],
        "truncate": {"zip": 3},
    }

    def look_and_lose_an_answer() -> None:
        artefacts.look()
        if not artefacts.has_lost_an_answer:
            artefacts.has_lost_an_answer = True
            raise DestinationUnavailable("the answer was lost")

    with ExitStack() as stack:
        for point in (failpoints.COPY_STAGED, failpoints.COPY_PUBLISHED, failpoints.BATCH_DECODED):
            stack.enter_context(failpoints.activated(point, artefacts.look))
        stack.enter_context(failpoints.activated(failpoints.BATCH_WRITTEN, look_and_lose_an_answer))
        pipeline = lab.synced(
            **tables(users=columns),
            batch=BatchConfig(max_bytes=64 << 10),
        )
        lab.execute(f"INSERT INTO users SELECT {values} FROM generate_series(51, 60) i")
        lab.execute(f"UPDATE users SET email = repeat('{planted}', 100), note = repeat('{planted}', 90) WHERE id < 5")
        lab.execute("UPDATE users SET amount = 2 WHERE id < 5; UPDATE users SET id = 1000 WHERE id = 3")
        lab.caught_up(pipeline)
        in_one_transaction(
            lab,
            f"INSERT INTO users SELECT {values} FROM generate_series(2000, 5000) i",
            "TRUNCATE spare",  # what was before it goes to the spool
            f"INSERT INTO users SELECT {values} FROM generate_series(5001, 9000) i",
            "TRUNCATE spare",
        )
        lab.caught_up(pipeline)
        assert len(spools) > 1
        lab.execute(f"ALTER TABLE users ADD tier text DEFAULT '{visible}'")
        lab.execute(f"INSERT INTO users SELECT {values} FROM generate_series(9001, 9010) i")
        lab.caught_up(pipeline)
        assert_verified(pipeline)
        lab.execute(f"INSERT INTO users SELECT {values} FROM generate_series(9011, 9020) i")
        lab.execute("UPDATE users SET amount = 'NaN' WHERE id = 9012")
        lab.caught_up(pipeline)
    assert pipeline.find(TableName("public", "users")).state is TableState.ERRORED, "it cannot hold NaN"
    artefacts.look()
    for number, spooled in enumerate(spools):
        artefacts.examine(f"spool {number}", spooled)
    for name, text in told(pipeline, caplog).items():
        artefacts.examine(name, text.encode())
    assert artefacts.looked > 5
    assert pipeline.observer.retries, "an answer was lost"
    assert artefacts.has_seen_visible, "the look would find what is there"
    assert artefacts.leaks == set()
    # DuckDB compresses texts, so that it is also asked.
    with duckdb.connect(lab.path) as connection:
        for schema, table in connection.execute("SELECT schema_name, table_name FROM duckdb_tables()").fetchall():
            found = connection.execute(f'SELECT * FROM "{schema}"."{table}"').fetchall()
            assert planted not in repr(found), f"{schema}.{table}"
    assert lab.rows("SELECT DISTINCT phone, born, zip FROM public.users") == [("***", None, "abc")]


def in_one_transaction(lab: Lab, *statements: str) -> None:
    with psycopg.connect(lab.database.dsn) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def told(pipeline: Watched, caplog: pytest.LogCaptureFixture) -> dict[str, str]:
    watch, statuses = pipeline.observer, pipeline.store.tables()
    return {
        "log": caplog.text,
        "errors": repr([(str(error), error.hint) for error in (*watch.errors.values(), *watch.retries)]),
        "told": repr((watch.notices, watch.waiting, statuses, pipeline.config)),
    }


def test_a_pipeline_that_hides_nothing_spools_as_it_did(lab: Lab, spools: list[bytes]) -> None:
    planted = secrets.token_hex(24)
    lab.execute("CREATE TABLE users (id int PRIMARY KEY, email text); CREATE TABLE spare (id int PRIMARY KEY)")
    lab.publish()
    pipeline = lab.synced(**tables(users={"rename": {"email": "mail"}}), batch=BatchConfig(max_bytes=64 << 10))
    in_one_transaction(
        lab, f"INSERT INTO users SELECT i, '{planted}' FROM generate_series(1, 5000) i", "TRUNCATE spare"
    )
    lab.caught_up(pipeline)
    assert any(planted.encode() in spooled for spooled in spools), "which shows that the look above would find it"
    assert_verified(pipeline)


# --- settings that change --------------------------------------------------------------------------------------------


def test_other_settings_have_the_table_copied_again_and_no_other(lab: Lab) -> None:
    lab.execute("CREATE TABLE users (id int PRIMARY KEY, email text); INSERT INTO users VALUES (1, 'ada')")
    lab.execute("CREATE TABLE others (id int PRIMARY KEY, email text); INSERT INTO others VALUES (1, 'bob')")
    lab.publish()
    lab.synced()
    lab.execute("INSERT INTO users VALUES (2, 'eve')")

    hiding = lab.pipeline(**tables(users={"hash": ["email"]}))
    states = {status.name.name: status.state for status in hiding.store.tables()}
    assert states == {"users": TableState.INIT, "others": TableState.READY}
    said = "public.users is copied again: the settings of its columns were changed"
    assert str(hiding.observer.errors["users"]) == said
    assert hiding.find(TableName("public", "users")).error == said
    assert [outcome for outcome in hiding.sync() if isinstance(outcome, EtlError)] == []
    lab.caught_up(hiding)
    assert lab.rows("SELECT email FROM public.users ORDER BY id") == [(hashed("ada"),), (hashed("eve"),)]

    same = lab.pipeline(**tables(users={"hash": ["email"]}))
    assert same.observer.errors == {}
    for other in ({"hash_key": KEY + "!"}, {"tables": ()}):
        changed = lab.pipeline(**{**tables(users={"hash": ["email"]}), **other})
        assert "users" in changed.observer.errors
        changed.sync()
        lab.caught_up(changed)
        assert_verified(changed)
    assert lab.rows("SELECT email FROM public.users ORDER BY id") == [("ada",), ("eve",)]


def test_what_is_not_known_of_a_copy_has_it_made_again(lab: Lab) -> None:
    lab.execute("CREATE TABLE users (id int PRIMARY KEY, email text); INSERT INTO users VALUES (1, 'ada')")
    lab.publish()
    settings = tables(users={"hash": ["email"]})
    pipeline = lab.synced(**settings)
    pipeline.store.save_shape(pipeline.store.tables()[0].table_id, "lost")
    again = lab.pipeline(**settings)
    assert again.store.tables()[0].state is TableState.INIT


def test_a_stream_with_other_settings_does_not_go_on_with_the_copy(lab: Lab) -> None:
    """A process of an older configuration must not write what the newer one hides."""
    lab.execute("CREATE TABLE users (id int PRIMARY KEY, email text); INSERT INTO users VALUES (1, 'ada')")
    lab.publish()
    older = lab.synced()
    newer = lab.pipeline(**tables(users={"hash": ["email"]}))
    assert [outcome for outcome in newer.sync() if isinstance(outcome, EtlError)] == []
    lab.execute("INSERT INTO users VALUES (2, 'eve')")
    lab.caught_up(older)
    assert "by other settings" in str(older.observer.errors["users"])
    assert lab.rows("SELECT email FROM public.users") == [(hashed("ada"),)]
    assert older.find(TableName("public", "users")).state is TableState.INIT


def test_a_hidden_column_that_is_renamed_is_not_shown(lab: Lab) -> None:
    lab.execute("CREATE TABLE users (id int PRIMARY KEY, email text); INSERT INTO users VALUES (1, 'ada')")
    lab.publish()
    pipeline = lab.synced(**tables(users={"hash": ["email"]}))
    lab.execute("ALTER TABLE users RENAME email TO mail; INSERT INTO users VALUES (2, 'eve')")
    lab.caught_up(pipeline)
    status = pipeline.find(TableName("public", "users"))
    if status.state is TableState.INIT:  # the catalog was looked at first
        [outcome] = pipeline.sync()
        assert isinstance(outcome, TableError)
        status = pipeline.find(TableName("public", "users"))
    assert status.state is TableState.ERRORED
    assert "column email was renamed to mail, and the settings have it by its old name" in (status.error or "")
    assert lab.rows("SELECT email FROM public.users") == [(hashed("ada"),)]
    # A start with the old settings changes nothing; one with the new name brings the table back.
    assert lab.pipeline(**tables(users={"hash": ["email"]})).store.tables()[0].state is not TableState.READY
    corrected = lab.pipeline(**tables(users={"hash": ["mail"]}))
    assert [outcome for outcome in corrected.sync() if isinstance(outcome, EtlError)] == []
    lab.caught_up(corrected)
    assert lab.rows("SELECT mail FROM public.users ORDER BY id") == [(hashed("ada"),), (hashed("eve"),)]


def test_a_hidden_column_whose_name_changes_hands_within_a_transaction_is_not_shown(lab: Lab) -> None:
    """The catalog is ahead of every Relation message of the transaction, so names tell nothing."""
    lab.execute("CREATE TABLE t (a int PRIMARY KEY, b text, c text); INSERT INTO t VALUES (1, 'b', 'SECRET')")
    lab.publish()
    pipeline = lab.synced(**tables(t={"exclude": ["c"]}))
    with lab.connect() as connection:
        for statement in (
            "ALTER TABLE t DROP b",
            "ALTER TABLE t RENAME c TO b",
            "ALTER TABLE t ADD d text",
            "UPDATE t SET d = 'd'",
            "ALTER TABLE t RENAME b TO y",
            "ALTER TABLE t ADD e text",
        ):
            connection.execute(statement.encode())
    lab.caught_up(pipeline)
    assert pipeline.find(TableName("public", "t")).state is not TableState.READY
    again = lab.pipeline(**tables(t={"exclude": ["c"]}))
    for outcome in again.sync():
        assert isinstance(outcome, TableError)
    assert lab.rows("SELECT * FROM public.t") == [(1, "b")]
    assert b"SECRET" not in lab.path.read_bytes()


def test_settings_that_were_changed_and_changed_back_are_not_taken_for_those_of_the_copy(lab: Lab) -> None:
    lab.execute("CREATE TABLE users (id int PRIMARY KEY, email text); INSERT INTO users VALUES (1, 'ada')")
    lab.publish()
    hashing, nothing = tables(users={"hash": ["email"]}), tables()
    lab.caught_up(lab.synced(**hashing))
    lab.execute("ALTER TABLE users DROP email; INSERT INTO users VALUES (2)")
    lab.caught_up(lab.pipeline(**hashing))
    lab.caught_up(lab.pipeline(**nothing))  # comes to the same while there is no such column
    lab.execute("ALTER TABLE users ADD email text; INSERT INTO users VALUES (3, 'plain')")
    lab.caught_up(lab.pipeline(**nothing))
    again = lab.pipeline(**hashing)
    assert again.find(TableName("public", "users")).state is TableState.INIT
    again.sync()
    lab.caught_up(again)
    assert lab.rows("SELECT email FROM public.users WHERE id = 3") == [(hashed("plain"),)]


def test_a_column_that_is_included_by_its_name_and_renamed(lab: Lab) -> None:
    lab.execute("CREATE TABLE users (id int PRIMARY KEY, email text, n int); INSERT INTO users VALUES (1, 'ada', 1)")
    lab.publish()
    pipeline = lab.synced(**tables(users={"include": ["id", "email"]}))
    lab.execute("ALTER TABLE users RENAME email TO mail; INSERT INTO users VALUES (2, 'eve', 2)")
    lab.caught_up(pipeline)
    stopped = pipeline.find(TableName("public", "users"))
    assert "the settings have it by its old name" in (stopped.error or "")
    corrected = lab.pipeline(**tables(users={"include": ["id", "mail"]}))
    assert [outcome for outcome in corrected.sync() if isinstance(outcome, EtlError)] == []
    lab.caught_up(corrected)
    assert lab.rows("SELECT id, mail FROM public.users ORDER BY id") == [(1, "ada"), (2, "eve")]


def test_settings_that_fit_no_table_are_refused_before_anything_is_made(lab: Lab) -> None:
    lab.execute("CREATE TABLE users (id int PRIMARY KEY, email text)")
    lab.publish()
    for columns, what in (
        ({"users": {"hash": ["emial"]}}, r"tables.public.users.columns.hash\[0\]: emial is no published column"),
        ({"user": {"hash": ["email"]}}, "tables.public.user: no table of the pipeline has that name"),
        ({"users": {"mask": ["id"]}}, r"mask\[0\]: column id is in the key"),
    ):
        with pytest.raises(ConfigError, match=what):
            lab.pipeline(**tables(**columns))
    assert lab.slots() == set()


def test_settings_that_fitted_once_stop_nothing_later(lab: Lab) -> None:
    """A table or a column that is dropped is no reason to stop all others."""
    lab.execute("CREATE TABLE users (id int PRIMARY KEY, email text); CREATE TABLE gone (id int PRIMARY KEY, a text)")
    lab.publish()
    settings = tables(users={"hash": ["email"]}, gone={"hash": ["a"]})
    pipeline = lab.synced(**settings)
    lab.execute("ALTER TABLE users DROP email; DROP TABLE gone; INSERT INTO users VALUES (1)")
    lab.caught_up(pipeline)
    lab.pipeline(**settings)
    again = lab.pipeline(**settings)
    told = " ".join(again.observer.notices)
    assert "email is no published column of public.users" in told
    assert "tables.public.gone: no table of the pipeline has that name" in told
    lab.caught_up(again)
    assert again.find(TableName("public", "users")).state is TableState.READY
    with pytest.raises(ConfigError, match="no table of the pipeline"):
        lab.pipeline(**tables(users={"rename": {"id": "key"}}, gone={"hash": ["a"]}))
