"""What the server cannot send: one table's bytes stop that table; a failing row filter is told, and stops before it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from etl_core.errors import EtlError, SourceUnavailable, StreamBlocked, TableError, ValueOutOfRange
from etl_core.pipeline import Pipeline
from etl_core.state.table_state import TableState
from etl_core.testing.database import Database, Postgres
from tests.integration.replication.conftest import Lab, Running


@pytest.fixture
def ascii_lab(postgres: Postgres, tmp_path: Path) -> Iterator[Lab]:
    """A lab whose database checks no encoding."""
    postgres.start()
    database = Database(postgres, f"ascii_{tmp_path.name[-12:]}".lower())
    with psycopg.connect(postgres.local_dsn(), autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0").format(
                sql.Identifier(database.name)
            )
        )
    lab = Lab(database, tmp_path)
    yield lab
    lab.close()
    database.drop()


def streamed(lab: Lab, pipeline: Pipeline) -> None:
    pipeline.stream(until=pipeline.current_lsn())


def test_bytes_that_are_no_text_stop_their_table_alone(ascii_lab: Lab) -> None:
    lab = ascii_lab
    lab.execute(
        "CREATE TABLE good (id int PRIMARY KEY, v text); INSERT INTO good VALUES (1, E'na\\303\\257ve');"
        "CREATE TABLE copied (id int PRIMARY KEY, v text); INSERT INTO copied VALUES (1, E'caf\\351');"
        "CREATE TABLE streamed (id int PRIMARY KEY, v varchar(9)[]);"
        "CREATE TABLE keyed (k text PRIMARY KEY);"
        "CREATE TABLE hidden (id int PRIMARY KEY, v bytea); INSERT INTO hidden VALUES (1, '\\xe9')"
    )
    lab.publish()
    pipeline = lab.pipeline()
    [failed] = [result for result in pipeline.sync() if isinstance(result, EtlError)]
    assert isinstance(failed, ValueOutOfRange)
    assert "column v of table public.copied holds text that is not valid UTF-8" in str(failed)
    lab.execute(
        "INSERT INTO streamed VALUES (1, '{a}'); INSERT INTO streamed VALUES (2, ARRAY['b', E'caf\\351']);"
        "INSERT INTO keyed VALUES ('a'); INSERT INTO keyed VALUES (E'\\351');"
        "INSERT INTO good VALUES (2, 'after')"
    )
    streamed(lab, pipeline)
    assert lab.rows("SELECT * FROM public.good ORDER BY 1") == [(1, "naïve"), (2, "after")]
    states = {status.name.name: (status.state, status.error or "") for status in pipeline.store.tables()}
    for table, column in (("streamed", "v"), ("keyed", "k")):
        state, error = states[table]
        assert state is TableState.ERRORED
        assert f"column {column} of table public.{table} holds text that is not valid UTF-8" in error
    assert states["good"][0] is states["hidden"][0] is TableState.READY
    # Corrected and copied again.
    lab.execute(
        "UPDATE copied SET v = convert_from(convert(convert_to(v, 'SQL_ASCII'), 'LATIN1', 'UTF8'), 'SQL_ASCII')"
    )
    pipeline.resync(pipeline.store.tables()[0].name)
    assert pipeline.store.tables()[0].name.name == "copied"
    assert not [result for result in pipeline.sync() if isinstance(result, TableError)]
    streamed(lab, pipeline)
    assert lab.rows("SELECT * FROM public.copied") == [(1, "café")]


def test_a_filter_that_fails_is_told_and_what_came_before_arrives(lab: Lab) -> None:
    lab.execute("CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL); CREATE TABLE u (id int PRIMARY KEY)")
    lab.execute("INSERT INTO t VALUES (1, 1)")
    lab.execute("CREATE PUBLICATION lab_pub FOR TABLE t WHERE (10 / n > 0), TABLE u")
    pipeline = lab.synced()
    lab.execute("INSERT INTO u VALUES (1)")
    lab.execute("BEGIN; INSERT INTO u VALUES (2); INSERT INTO t VALUES (4711, 0); COMMIT")
    lab.execute("INSERT INTO u VALUES (3)")
    for _ in range(2):  # each try meets it again
        with pytest.raises(StreamBlocked, match="division by zero") as blocked:
            streamed(lab, pipeline)
        assert "22012" in str(blocked.value)
        assert "4711" not in str(blocked.value)
        assert "the row filter of public.t fails" in (blocked.value.hint or "")
        assert lab.rows("SELECT id FROM public.u") == [(1,)]
        known = pipeline.status().stream_error
        assert known is not None
        assert (known.error, known.hint, known.is_permanent) == (str(blocked.value), blocked.value.hint, False)


def test_an_administrators_command_is_told_as_what_it_is(lab: Lab) -> None:
    lab.execute("CREATE TABLE t (id int PRIMARY KEY)")
    lab.publish()
    pipeline = lab.synced()
    running = Running(pipeline, pipeline.stream)
    lab.execute("INSERT INTO t VALUES (1)")
    pipeline.observer.until(lambda: bool(pipeline.observer.flushes), "a flush")
    lab.execute(
        "SELECT pg_terminate_backend(active_pid, 60000) FROM pg_replication_slots WHERE slot_name = %s",
        [pipeline.source.main_slot],
    )
    with pytest.raises(SourceUnavailable, match="terminating connection due to administrator command"):
        running.join()
    assert pipeline.status().stream_error is None  # it passes by itself


def test_an_error_that_is_over_is_not_shown(lab: Lab) -> None:
    lab.execute("CREATE TABLE t (id int PRIMARY KEY)")
    lab.publish()
    pipeline = lab.synced()
    pipeline.store.save_stream_error("it was refused", "grant the right", is_permanent=True)
    known = pipeline.status().stream_error
    assert known is not None
    assert (known.error, known.hint) == ("it was refused", "grant the right")
    lab.caught_up(pipeline)
    assert pipeline.status().stream_error is None
