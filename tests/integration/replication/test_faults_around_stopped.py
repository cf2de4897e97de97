"""Where a table stops, is repaired and taken in again, each place fails once: it is tried again, and ends exact."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from etl_core.batch import WriteBatch
from etl_core.destination.duckdb.destination import DuckDBDestination
from etl_core.errors import DestinationError, EtlError
from etl_core.identifiers import TableName
from etl_core.replication import copy, failpoints, stopped_tables
from etl_core.replication.failpoint_actions import LOSE_ANSWER, PERMANENT, PLACES, TRANSIENT, parse_failpoints

if TYPE_CHECKING:
    from tests.integration.replication.conftest import Lab

PLACES_AROUND = (
    failpoints.SLOT_RECORDED,
    failpoints.GROUP_WRITTEN,
    failpoints.SLOT_COPIED,
    failpoints.COMPLETE_TOLD,
    failpoints.TABLE_STOPPED,
    failpoints.CATCHUP_WRITTEN,
    failpoints.SYNC_DONE_STORED,
    failpoints.READY_STORED,
    failpoints.SLOT_DROPPED,
    failpoints.TABLE_SET_BACK,
    failpoints.GAP_STORED,
    failpoints.POSITION_MOVED,
)
ROUNDS = 8
TRIES = 8


class Refusing(DuckDBDestination):
    """Refuses batches with changes of table `bad`, without naming it, until told otherwise."""

    is_refusing = False

    def write(self, batch: WriteBatch) -> None:
        parts = list(batch.parts)
        if self.is_refusing and any(part.schema.name.name == "bad" for part in parts):
            raise DestinationError("a value that cannot be written")
        super().write(replace(batch, parts=parts))


@pytest.mark.parametrize("action", [TRANSIENT, PERMANENT, LOSE_ANSWER])
def test_each_place_fails_once(
    lab: Lab, churned: Callable[..., None], monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    monkeypatch.setattr(stopped_tables, "FIRST_RETRY", timedelta(0))
    monkeypatch.setattr(copy, "RETRY_AFTER", timedelta(0))
    tables = ("bad", "good", "third")
    churned(*tables, rows=20)
    lab.publish(f"TABLE {', '.join(tables)}")
    destination = Refusing(lab.path, lab.config.pipeline)
    pipeline = lab.synced(destination=destination)
    places = {place for place in PLACES_AROUND if action in PLACES[place].actions}
    left = set(places)

    def fail_at(place: str) -> Callable[[], None]:
        act = parse_failpoints(f"{place}:{action}")[place]

        def fail() -> None:
            if place in left:
                left.remove(place)
                act(None)

        return fail

    def again(step: Callable[[], object]) -> None:
        """What `etl run` does after an error that passes, and a person after another."""
        for _ in range(TRIES):
            with contextlib.suppress(EtlError):
                pipeline.prepare()
                step()
                return
        raise AssertionError("it does not come to an end")

    def stream() -> None:
        pipeline.stream(until=pipeline.current_lsn())

    def copy_and_stream() -> None:
        pipeline.sync()
        stream()

    with contextlib.ExitStack() as stack:
        for place in places:
            stack.enter_context(failpoints.activated(place, fail_at(place)))
        for _ in range(ROUNDS):
            lab.execute("UPDATE good SET n = n + 1")
            again(stream)  # confirmed beyond the watermark of `bad`
            destination.is_refusing = True
            lab.execute("UPDATE bad SET n = n + 1; UPDATE good SET n = n + 1; UPDATE third SET n = n + 1")
            again(stream)
            lab.execute("UPDATE bad SET n = n + 1")
            destination.is_refusing = False
            again(copy_and_stream)
            lab.execute("ALTER TABLE third ALTER note TYPE text USING note || '.'")
            again(copy_and_stream)
            lab.execute("ALTER PUBLICATION lab_pub DROP TABLE good")
            again(pipeline.prepare)
            lab.execute("UPDATE good SET n = n + 1; ALTER PUBLICATION lab_pub ADD TABLE good")
            again(copy_and_stream)
            for table in tables:
                pipeline.resync(TableName("public", table))
            lab.execute("UPDATE third SET n = n + 1")
            again(stream)
            again(copy_and_stream)
            if not left:
                break
    assert not left
    lab.assert_equal(pipeline)
