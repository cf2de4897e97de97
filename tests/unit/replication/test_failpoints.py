"""Failpoints: silent unless a test asked for them; a real SIGKILL when the environment does."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from etl_core.replication.failpoints import (
    ALL,
    BATCH_WRITTEN,
    CONFIRMED,
    activate_from_environment,
    activated,
    reach,
)

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


@pytest.mark.parametrize("text", ["nowhere", "nowhere:2", "confirmed:0", "confirmed:soon", "confirmed:-1"])
def test_an_environment_that_cannot_be_honoured(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETL_FAILPOINT", text)
    with pytest.raises(ValueError, match="ETL_FAILPOINT"):
        activate_from_environment()


@pytest.mark.parametrize(("text", "reached"), [("confirmed", 1), ("confirmed:3", 3)])
def test_the_environment_kills_the_process_there(text: str, reached: int) -> None:
    script = (
        "from etl_core.replication.failpoints import *\n"
        "activate_from_environment()\n"
        "for _ in range(5):\n"
        "    reach(BATCH_WRITTEN)\n"
        "    print('*', end='', flush=True)\n"
        "    reach(CONFIRMED)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env={"ETL_FAILPOINT": text, "PYTHONPATH": str(ROOT)}, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == b"*" * reached
