"""One table copied by several processes: exact when all goes well, and when a helper or the copying process dies."""
# ruff: noqa: S608 the tests write their own SQL

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from etl_core.config import CopyConfig
from etl_core.config_tables import read_tables
from etl_core.errors import EtlError, StateConflict, TransientError
from etl_core.identifiers import TableName
from etl_core.pipeline import Pipeline
from etl_core.replication import failpoints
from etl_core.replication.copied import Copied
from etl_core.state.shared_copy import OfferedRange

if TYPE_CHECKING:
    from tests.integration.replication.conftest import Lab, Running

PATIENCE = 120.0
NAME = TableName("public", "events")
PARTS = 6
ROWS = 3_000


@pytest.fixture
def events(lab: Lab) -> Lab:
    """A published table of six partitions, each a range of its own, with a numeric whose digits the copy counts."""
    lab.execute("CREATE TABLE events (id int PRIMARY KEY, v text, n numeric) PARTITION BY RANGE (id)")
    step = ROWS // PARTS
    for part in range(PARTS):
        lab.execute(
            f"CREATE TABLE events_{part} PARTITION OF events FOR VALUES FROM ({part * step}) TO ({part * step + step})"
        )
    lab.execute(f"INSERT INTO events SELECT g, 'value ' || g, g * 1e-12 FROM generate_series(0, {ROWS - 1}) g")
    lab.publish()
    return lab


@dataclass
class Held:
    """A copy that waits after its first range, with the others offered."""

    copying: Pipeline
    running: Running
    go_on: threading.Event


@dataclass
class Helping:
    """A helper that has staged its first range and waits before it says so."""

    result: Future[Any]
    go_on: threading.Event

    def join(self) -> Any:
        self.go_on.set()
        return self.result.result(PATIENCE)


@contextlib.contextmanager
def held_helper(lab: Lab) -> Iterator[Helping]:
    helper = lab.pipeline(copy=CopyConfig(connections_per_table=1))
    staged, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        staged.set()
        go_on.wait(PATIENCE)

    with failpoints.activated(failpoints.RANGE_STAGED, wait), ThreadPoolExecutor(1) as pool:
        result = pool.submit(lambda: helper.help_sync(NAME, "t"))
        try:
            assert staged.wait(PATIENCE)
            yield Helping(result, go_on)
        finally:
            go_on.set()


@contextlib.contextmanager
def held_copy(lab: Lab, token: str = "t") -> Iterator[Held]:  # noqa: S107
    copying = lab.pipeline(copy=CopyConfig(workers=1, connections_per_table=1))
    has_begun, go_on = threading.Event(), threading.Event()

    def wait(*_: object) -> None:
        has_begun.set()
        go_on.wait(PATIENCE)

    copying.observer.on_copy_progress = wait  # type: ignore[assignment, method-assign]
    with lab.running(copying, lambda: copying.sync([NAME], share=token)) as running:
        try:
            assert has_begun.wait(PATIENCE)
            yield Held(copying, running, go_on)
        finally:
            go_on.set()


def copied_rows(held: Held) -> int:
    held.go_on.set()
    [outcome] = held.running.join()
    assert isinstance(outcome, Copied), outcome
    return outcome.rows


def change_everything(lab: Lab) -> None:
    """While the copy runs: the stream has something to add to what the snapshot holds."""
    lab.execute("UPDATE events SET v = v || ' changed' WHERE id % 7 = 0")
    lab.execute("DELETE FROM events WHERE id % 11 = 0")


def test_a_helper_copies_what_is_left(events: Lab) -> None:
    helper = events.pipeline()
    with held_copy(events) as held:
        change_everything(events)
        helped = helper.help_sync(NAME, "t")
        assert helped is not None
        assert helped.rows == ROWS * (PARTS - 1) // PARTS
        assert copied_rows(held) == ROWS
    assert helper.help_sync(NAME, "t") is None
    assert events.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '%help%'") == [(0,)]
    events.assert_equal()


def test_a_helper_hides_columns_as_the_copy_does_or_does_not_help(events: Lab) -> None:
    settings = read_tables("tables", {"events": {"columns": {"hash": ["v"]}}})
    events.config = replace(events.config, tables=settings, hash_key="a key that is long enough")
    helper, other = events.pipeline(), events.pipeline(hash_key="another key, other hashes")
    with held_copy(events) as held:
        change_everything(events)
        with pytest.raises(TransientError, match="has changed since"):
            other.help_sync(NAME, "t")
        helped = helper.help_sync(NAME, "t")
        assert helped is not None
        assert helped.rows == ROWS * (PARTS - 1) // PARTS
        assert copied_rows(held) == ROWS
    pipeline = events.pipeline()
    events.caught_up(pipeline)
    [comparison] = pipeline.verify()
    assert comparison.is_equal, comparison
    assert events.rows("SELECT count(*) FROM public.events WHERE v LIKE 'value%'") == [(0,)]


def test_only_the_copy_of_that_token_is_helped_with(events: Lab) -> None:
    helper = events.pipeline()
    assert helper.help_sync(NAME, "t") is None
    with held_copy(events) as held:
        assert helper.help_sync(NAME, "another") is None
        assert copied_rows(held) == ROWS
    events.assert_equal()


def test_without_a_token_nothing_is_offered(events: Lab) -> None:
    pipeline = events.pipeline()
    pipeline.sync([NAME])
    assert pipeline.store.shared_copies.find(pipeline.find(NAME).table_id) is None
    events.assert_equal(pipeline)


def test_a_table_that_is_published_otherwise_by_now_is_not_helped_with(events: Lab) -> None:
    helper = events.pipeline()
    with held_copy(events) as held:
        events.execute("DROP PUBLICATION lab_pub")
        events.publish("TABLE events WHERE (id >= 0)")
        with pytest.raises(TransientError, match="has changed since"):
            helper.help_sync(NAME, "t")
        assert copied_rows(held) == ROWS


def test_what_a_failing_helper_had_goes_back(events: Lab) -> None:
    helper = events.pipeline()

    def fail() -> None:
        raise TransientError("the helper's disk is full")

    with held_copy(events) as held:
        with failpoints.activated(failpoints.RANGE_STAGED, fail), pytest.raises(TransientError, match="disk is full"):
            helper.help_sync(NAME, "t")
        assert [part.taker for part in ranges(held)] == [0] + [None] * (PARTS - 1)
        assert copied_rows(held) == ROWS
    events.assert_equal()


def ranges(held: Held) -> list[OfferedRange]:
    copies = held.copying.store.shared_copies
    offer = copies.find(held.copying.find(NAME).table_id)
    assert offer is not None
    return list(copies.ranges(offer))


_HELPER = """
import sys, threading
from etl_core.config_file import load_config
from etl_core.identifiers import TableName
from etl_core.pipeline import Pipeline
from etl_core.replication import failpoint_actions
failpoint_actions.activate_from_environment()
with Pipeline(load_config(sys.argv[1])) as pipeline:
    pipeline.help_sync(TableName("public", "events"), "t")
"""


def test_a_helper_is_killed(events: Lab) -> None:
    with held_copy(events) as held:
        killed = help_in_a_process(events, failpoints.RANGE_STAGED)
        assert killed == -signal.SIGKILL
        taken = [part for part in ranges(held) if not part.is_finished and part.taker]
        assert taken
        assert copied_rows(held) == ROWS
    events.assert_equal()


def help_in_a_process(lab: Lab, failpoint: str) -> int:
    file = lab.write_config()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "ETL_FAILPOINTS": f"{failpoint}:kill",
    }
    return subprocess.run([sys.executable, "-c", _HELPER, str(file)], env=environment, timeout=PATIENCE).returncode


def test_a_helper_that_was_taken_for_dead_does_no_harm(events: Lab) -> None:
    with held_copy(events) as held, held_helper(events) as helping:
        terminate_helpers(events)
        assert copied_rows(held) == ROWS  # with the helper's range, which it copied itself
        with pytest.raises(StateConflict):
            helping.join()
    events.assert_equal()


def terminate_helpers(lab: Lab) -> None:
    sessions = "FROM pg_stat_activity WHERE application_name LIKE '%help%'"
    lab.execute(f"SELECT pg_terminate_backend(pid) {sessions}")
    while lab.execute(f"SELECT count(*) {sessions}") != [(0,)]:
        pass


def test_the_copying_process_ends_while_others_help(events: Lab) -> None:
    with held_copy(events) as held, held_helper(events) as helping:
        held.copying.stop.set()
        held.go_on.set()
        [outcome] = held.running.join()
        assert isinstance(outcome, EtlError)
        with pytest.raises(StateConflict, match="is over"):
            helping.join()
    again = events.pipeline()
    [outcome] = again.sync([NAME], share="t")
    assert isinstance(outcome, Copied)
    events.assert_equal(again)


def test_nothing_is_published_before_a_helper_has_finished(events: Lab) -> None:
    with held_copy(events) as held, held_helper(events) as helping:
        held.go_on.set()
        while sum(not part.is_finished for part in ranges(held)) > 1:
            pass
        assert held.running.is_alive
        assert helping.join().rows == ROWS // PARTS
        assert copied_rows(held) == ROWS
    events.assert_equal()
