"""Killed where a table stops, is repaired and taken in again, and where the catalog sets a table back; ends exact."""
# ruff: noqa: S608 the tests write their own SQL

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from etl_core.identifiers import TableName
from etl_core.replication import failpoints
from etl_core.state.table_state import TableState
from tests.integration.replication import refusing
from tests.integration.replication.conftest import PATIENCE, Lab, poll

if TYPE_CHECKING:
    from tests.integration.replication.conftest import Churn

MakeChurn = Callable[..., "Churn"]
MakeTables = Callable[..., None]
BAD = TableName("public", "bad")


class RefusingLab:
    """A lab whose processes refuse the changes of table `bad` while they are told to."""

    def __init__(self, lab: Lab, file: Path) -> None:
        self.lab = lab
        self._file = file

    def refuse(self, how: str = "named") -> None:
        self._file.write_text(how)

    def repair(self) -> None:
        self._file.unlink()

    def killed_at(self, failpoint: str, command: str = "run") -> None:
        process = self.lab.process(command, failpoint=f"{failpoint}:kill", module=refusing.__name__)
        assert process.wait(PATIENCE) == -signal.SIGKILL

    def stop_bad(self) -> None:
        """Has a process stop table `bad`, and ends it."""
        process = self.lab.process("run", module=refusing.__name__)
        with self.lab.unprepared() as pipeline:
            poll(lambda: pipeline.find(BAD).state is TableState.ERRORED, "the end of table bad")
        process.terminate()
        process.wait(PATIENCE)

    def assert_equal(self) -> None:
        pipeline = self.lab.pipeline()
        pipeline.sync()
        self.lab.assert_equal(pipeline)


@pytest.fixture
def refusing_lab(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RefusingLab:
    file = tmp_path / "refuses"
    monkeypatch.setenv(refusing.VARIABLE, str(file))
    return RefusingLab(lab, file)


@pytest.mark.parametrize(
    ("failpoint", "how"),
    [
        (failpoints.SLOT_COPIED, "named"),
        (failpoints.TABLE_STOPPED, "named"),
        (failpoints.TABLE_STOPPED, "unnamed"),
        (failpoints.GROUP_WRITTEN, "unnamed"),
    ],
)
def test_killed_twice_while_a_table_stops(
    refusing_lab: RefusingLab, churn: MakeChurn, churned: MakeTables, failpoint: str, how: str
) -> None:
    lab = refusing_lab.lab
    churned("bad", "good", "third")
    lab.publish()
    lab.synced().close()
    refusing_lab.refuse(how)
    with churn("bad", "good", "third"):
        for _ in range(2):
            refusing_lab.killed_at(failpoint)
    refusing_lab.repair()
    refusing_lab.assert_equal()


def test_killed_twice_after_a_table_without_changes_for_long_is_told_complete(
    refusing_lab: RefusingLab, churned: MakeTables
) -> None:
    lab = refusing_lab.lab
    churned("bad", "good", rows=20)
    lab.publish()
    pipeline = lab.synced()
    for _ in range(2):
        lab.execute("UPDATE good SET n = n + 1")
        lab.caught_up(pipeline)  # confirmed beyond the watermark of `bad`
        lab.execute("UPDATE bad SET n = n + 1")
        refusing_lab.refuse()
        refusing_lab.killed_at(failpoints.COMPLETE_TOLD)
        lab.execute("UPDATE bad SET n = n + 1")
        refusing_lab.repair()
        pipeline.close()
        pipeline = lab.pipeline()
        lab.assert_equal(pipeline)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (failpoints.CATCHUP_WRITTEN, failpoints.CATCHUP_WRITTEN),
        # What the first process leaves is what the second one begins after.
        (failpoints.SYNC_DONE_STORED, failpoints.READY_STORED),
        (failpoints.READY_STORED, failpoints.SLOT_DROPPED),
        (failpoints.SLOT_DROPPED, failpoints.SLOT_DROPPED),
    ],
)
def test_killed_twice_while_a_repaired_table_is_taken_in(
    refusing_lab: RefusingLab, churn: MakeChurn, churned: MakeTables, first: str, second: str
) -> None:
    lab = refusing_lab.lab
    churned("bad", "good")
    lab.publish()
    lab.synced().close()
    refusing_lab.refuse()
    with churn("bad", "good"):
        refusing_lab.stop_bad()
        refusing_lab.repair()
        for failpoint in (first, second):
            refusing_lab.killed_at(failpoint)
    refusing_lab.assert_equal()


@pytest.mark.parametrize(
    ("failpoint", "change", "undo"),
    [
        (failpoints.GAP_STORED, "ALTER PUBLICATION lab_pub DROP TABLE {}", "ALTER PUBLICATION lab_pub ADD TABLE {}"),
        (failpoints.TABLE_SET_BACK, "ALTER TABLE {} ALTER n TYPE bigint", "SELECT '{}'"),
    ],
)
def test_killed_twice_while_the_catalog_sets_tables_back(
    refusing_lab: RefusingLab, churn: MakeChurn, churned: MakeTables, failpoint: str, change: str, undo: str
) -> None:
    lab = refusing_lab.lab
    churned("a", "b", "good")
    lab.publish("TABLE a, b, good")
    lab.synced().close()
    with churn("good"):
        for table in ("a", "b"):
            lab.execute(change.format(table))
            lab.execute(f"UPDATE {table} SET n = n + 1")
            refusing_lab.killed_at(failpoint)
        for table in ("a", "b"):
            lab.execute(f"UPDATE {table} SET n = n + 1")
            lab.execute(undo.format(table))
    refusing_lab.assert_equal()


def test_killed_twice_after_the_position_was_moved(
    refusing_lab: RefusingLab, churn: MakeChurn, churned: MakeTables
) -> None:
    lab = refusing_lab.lab
    churned("a", "b")
    lab.publish()
    pipeline = lab.synced()
    for table in ("a", "b"):
        pipeline.resync(TableName("public", table))
    pipeline.close()
    with churn("a", "b"):
        for _ in range(2):
            refusing_lab.killed_at(failpoints.POSITION_MOVED, "stream")
    refusing_lab.assert_equal()
