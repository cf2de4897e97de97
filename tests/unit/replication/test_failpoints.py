"""Failpoints: silent unless a test asked for them; ETL_FAILPOINTS gives a process real faults there."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from etl_core.cli import main
from etl_core.errors import ConfigError, DestinationUnavailable, PermanentError, TransientError
from etl_core.replication.failpoint_actions import ACTIONS, PLACES, activate_from_environment, parse_failpoints
from etl_core.replication.failpoints import ALL, BATCH_WRITTEN, CONFIRMED, activated, reach

ROOT = Path(__file__).parents[3]


def test_only_the_activated_place_acts_and_only_inside_the_block() -> None:
    reached: list[str] = []
    with activated(BATCH_WRITTEN, lambda: reached.append("written")):
        reach(CONFIRMED)
        reach(BATCH_WRITTEN)
    for name in ALL:
        reach(name)
    assert reached == ["written"]


def test_a_block_inside_another_gives_the_place_back() -> None:
    reached: list[str] = []
    with activated(CONFIRMED, lambda: reached.append("outer")):
        with activated(CONFIRMED, lambda: reached.append("inner")):
            reach(CONFIRMED)
        reach(CONFIRMED)
    assert reached == ["inner", "outer"]


def test_an_action_may_fail_the_place() -> None:
    def fail() -> None:
        raise OSError("disk full")

    with activated(CONFIRMED, fail), pytest.raises(OSError, match="disk full"):
        reach(CONFIRMED)
    reach(CONFIRMED)


def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="no failpoint 'nowhere'"), activated("nowhere", lambda: None):
        pass


def test_every_place_is_described() -> None:
    assert set(PLACES) == set(ALL)
    for place in PLACES.values():
        assert {"kill", "transient", "permanent", "delay"} <= set(place.actions)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("nowhere:kill", "no failpoint 'nowhere'"),
        ("confirmed", "'confirmed' has no action"),
        ("confirmed:explode", "no action 'explode'"),
        ("batch_decoded:lose_answer", "lose_answer makes no sense at batch_decoded"),
        ("batch_written:drop_connection", "drop_connection makes no sense at batch_written"),
        ("confirmed:kill:0", "'0' does not say which time"),
        ("confirmed:kill:soon", "'soon' does not say which time"),
        ("confirmed:kill:-1", "'-1' does not say which time"),
        ("confirmed:kill:1:2", "too many parts"),
        ("confirmed:delay", "'' is not the seconds"),
        ("confirmed:delay:nan", "'nan' is not the seconds"),
        ("confirmed:delay:-1", "'-1' is not the seconds"),
        ("batch_written:kill,", "no failpoint ''"),
    ],
)
def test_an_environment_that_cannot_be_honoured(text: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETL_FAILPOINTS", text)
    with pytest.raises(ConfigError, match=re.escape(sentence)) as caught:
        activate_from_environment()
    assert str(caught.value).startswith("ETL_FAILPOINTS: ")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "raised"),
    [
        ("batch_written:transient:2", TransientError),
        ("batch_written:permanent:2", PermanentError),
        ("batch_written:lose_answer:2", DestinationUnavailable),
        ("batch_written:delay:0:1,batch_written:lose_answer:2", DestinationUnavailable),
    ],
)
def test_an_error_is_raised_once_at_the_time_given(text: str, raised: type[Exception]) -> None:
    act = parse_failpoints(text)[BATCH_WRITTEN]
    act(None)
    with pytest.raises(raised, match="failpoint batch_written"):
        act(None)
    act(None)


def test_a_connection_is_dropped_at_both_ends() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        parse_failpoints("confirmed:drop_connection")[CONFIRMED](ours)
        assert theirs.recv(1) == b""
        assert ours.recv(1) == b""


def test_the_command_lists_places_and_actions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["failpoints"]) == 0
    said = capsys.readouterr().out
    for name in (*ALL, *ACTIONS):
        assert name in said


@pytest.mark.parametrize(("text", "reached"), [("confirmed:kill", 1), ("confirmed:kill:3", 3)])
def test_the_environment_kills_the_process_there(text: str, reached: int) -> None:
    script = (
        "from etl_core.replication.failpoints import *\n"
        "from etl_core.replication.failpoint_actions import activate_from_environment\n"
        "activate_from_environment()\n"
        "for _ in range(5):\n"
        "    reach(BATCH_WRITTEN)\n"
        "    print('*', end='', flush=True)\n"
        "    reach(CONFIRMED)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env={"ETL_FAILPOINTS": text, "PYTHONPATH": str(ROOT)}, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == b"*" * reached
