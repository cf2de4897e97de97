"""When a stream run is started, in every situation the supervisor can meet."""

from dataclasses import replace

import pytest

from etl_dagster.stream.supervisor import (
    LAUNCH_GRACE,
    LONGEST_PAUSE,
    START_GRACE,
    Situation,
    StreamRun,
    decide,
    standby_margin,
)

LEASE = 900.0
NOTHING = Situation("etl_shop", (), None, 0, 0.0, 0, None)
STREAMING = StreamRun("11111111-aaaa", age=100.0, running=90.0, has_session=True, has_turn=True)
STANDBY = StreamRun("22222222-bbbb", age=3.0, running=1.0, has_session=True)


def after(run: StreamRun) -> str:
    return f"etl_shop:after:{run.run_id}"


def test_the_first_run_is_started_once() -> None:
    decision = decide(NOTHING, lease=LEASE)
    assert decision.run_key == "etl_shop:after:nothing"
    assert decide(NOTHING, lease=LEASE) == decision


def test_a_run_that_ended_has_a_successor_of_its_own() -> None:
    assert decide(replace(NOTHING, latest_run_id="x"), lease=LEASE).run_key == "etl_shop:after:x"


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (STREAMING, "streams; its lease has 810 s"),
        (replace(STREAMING, has_turn=False, has_session=False, running=START_GRACE - 1), "is connecting"),
        (replace(STREAMING, has_turn=False, has_session=False, running=None, age=LAUNCH_GRACE - 1), "is starting"),
    ],
)
def test_a_run_in_flight_is_left_alone(run: StreamRun, says: str) -> None:
    decision = decide(replace(NOTHING, runs=(run,), latest_run_id=run.run_id, active_pid=7), lease=LEASE)
    assert decision.run_key is None
    assert "11111111" in decision.reason
    assert says in decision.reason


@pytest.mark.parametrize(
    "run",
    [
        replace(STREAMING, has_turn=False, has_session=False),
        replace(STREAMING, has_turn=False, has_session=False, running=START_GRACE + 1),
        replace(STREAMING, has_turn=False, has_session=False, running=None, age=LAUNCH_GRACE + 1),
    ],
)
def test_a_run_whose_process_is_gone_is_replaced(run: StreamRun) -> None:
    decision = decide(replace(NOTHING, runs=(run,), latest_run_id=run.run_id), lease=LEASE)
    assert decision.run_key == after(run)
    assert "is gone" in decision.reason


def test_a_killed_run_is_replaced_though_the_server_has_not_noticed_its_walsender() -> None:
    dead = replace(STREAMING, has_turn=False, has_session=False)
    decision = decide(replace(NOTHING, runs=(dead,), latest_run_id=dead.run_id, active_pid=7), lease=LEASE)
    assert decision.run_key == after(dead)


def test_a_successor_is_started_before_the_lease_is_over_and_only_one() -> None:
    old = replace(STREAMING, running=LEASE - standby_margin(LEASE))
    situation = replace(NOTHING, runs=(old,), latest_run_id=old.run_id, active_pid=7)
    assert decide(situation, lease=LEASE).run_key == after(old)
    both = replace(situation, runs=(STANDBY, old), latest_run_id=STANDBY.run_id)
    decision = decide(both, lease=LEASE)
    assert decision.run_key is None
    assert "takes over" in decision.reason


def test_a_successor_that_died_standing_by_is_replaced() -> None:
    old = replace(STREAMING, running=LEASE)
    dead = replace(STANDBY, has_session=False, running=START_GRACE + 1)
    decision = decide(replace(NOTHING, runs=(dead, old), latest_run_id=dead.run_id, active_pid=7), lease=LEASE)
    assert decision.run_key == after(dead)


def test_a_run_in_the_queue_is_waited_for_however_long_it_stands_there() -> None:
    queued = StreamRun("33333333-cccc", age=7200.0, running=None, has_session=False, is_queued=True)
    alone = decide(replace(NOTHING, runs=(queued,), latest_run_id=queued.run_id), lease=LEASE)
    assert alone.run_key is None
    assert "run 33333333, has been in the queue for 7200 s" in alone.reason
    assert "max_concurrent_runs" in alone.reason
    old = replace(STREAMING, running=LEASE)
    behind = decide(replace(NOTHING, runs=(queued, old), latest_run_id=queued.run_id, active_pid=7), lease=LEASE)
    assert behind.run_key is None
    assert "run 11111111 streams; its successor, run 33333333" in behind.reason
    just = decide(replace(NOTHING, runs=(replace(queued, age=3.0),), latest_run_id="x"), lease=LEASE)
    assert just.reason == "run 33333333 is starting"


def test_what_streams_elsewhere_is_left_alone_and_named() -> None:
    assert "another Dagster" in decide(replace(NOTHING, other_sessions=1), lease=LEASE).reason
    decision = decide(replace(NOTHING, active_pid=4711), lease=LEASE)
    assert decision.run_key is None
    assert "4711" in decision.reason


def test_runs_that_fail_are_started_ever_less_often() -> None:
    failing = replace(NOTHING, latest_run_id="x", failures=3, since_failure=5.0)
    decision = decide(failing, lease=LEASE)
    assert decision.run_key is None
    assert "in 15 s" in decision.reason
    assert decide(replace(failing, since_failure=20.0), lease=LEASE).run_key is not None
    assert decide(replace(failing, failures=50, since_failure=LONGEST_PAUSE), lease=LEASE).run_key is not None


def test_the_run_that_has_the_lock_is_the_one_that_streams() -> None:
    """The older one lost its connection, and its successor began to stream; it is not named, and starts nothing."""
    old = replace(STREAMING, running=LEASE, has_turn=False)
    new = replace(STANDBY, running=100.0, has_turn=True)
    decision = decide(replace(NOTHING, runs=(new, old), latest_run_id=new.run_id, active_pid=7), lease=LEASE)
    assert (decision.run_key, decision.reason) == (None, "run 22222222 streams; its lease has 800 s to go")
    late = replace(new, running=LEASE)
    decision = decide(replace(NOTHING, runs=(late, old), latest_run_id=late.run_id, active_pid=7), lease=LEASE)
    assert decision.run_key == after(late), "an older run is nobody's successor"


def test_between_two_turns_nobody_is_said_to_stream() -> None:
    old = replace(STREAMING, running=LEASE, has_turn=False)
    decision = decide(replace(NOTHING, runs=(STANDBY, old), latest_run_id=STANDBY.run_id), lease=LEASE)
    assert decision.reason == "run 11111111 is about to end, run 22222222 takes over from it"


@pytest.mark.parametrize("runs", [(), (replace(STREAMING, running=LEASE),)], ids=["nothing streams", "an old run does"])
def test_after_a_permanent_error_no_run_is_started_until_something_changes(runs: tuple[StreamRun, ...]) -> None:
    error = "publication shop_pub publishes no such table → add it"
    failed = replace(NOTHING, runs=runs, latest_run_id="99999999-x", failures=1, since_failure=9e9, standstill=error)
    decision = decide(failed, lease=LEASE)
    assert decision.run_key is None
    assert error in decision.reason
    assert "run 99999999 failed, and so would another" in decision.reason
    assert ("streams on past its lease" in decision.reason) == bool(runs)
    assert decide(replace(failed, standstill=None), lease=LEASE).run_key == "etl_shop:after:99999999-x"


def test_successors_that_fail_are_started_ever_less_often_while_the_old_run_streams() -> None:
    old = replace(STREAMING, running=LEASE)
    failing = replace(NOTHING, runs=(old,), latest_run_id="x", failures=3, since_failure=5.0, active_pid=7)
    decision = decide(failing, lease=LEASE)
    assert decision.run_key is None
    assert "run 11111111 streams on past its lease" in decision.reason
    assert "in 15 s" in decision.reason
    assert decide(replace(failing, since_failure=20.0), lease=LEASE).run_key is not None


def test_a_pipeline_that_was_torn_down_is_not_begun_again() -> None:
    decision = decide(replace(NOTHING, is_torn_down=True), lease=LEASE)
    assert decision.run_key is None
    assert "was torn down" in decision.reason
