"""How often a table was copied again for one reason, from its history."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from etl_core.identifiers import TableId
from etl_core.replication.repeated_copies import copies_for
from etl_core.state.store import Transition
from etl_core.state.table_state import TableState as S

START = datetime(2026, 1, 1, tzinfo=UTC)
COPY = [(S.INIT, S.DATA_SYNC, None), (S.DATA_SYNC, S.FINISHED_COPY, None), (S.FINISHED_COPY, S.READY, None)]


def history(*moves: tuple[S, S, str | None], every: timedelta = timedelta(seconds=5)) -> list[Transition]:
    lines = [Transition(TableId(1), was, to, START + at * every, error) for at, (was, to, error) in enumerate(moves)]
    return lines[::-1]


def back(error: str | None, was: S = S.READY) -> tuple[S, S, str | None]:
    return was, S.INIT, error


def test_only_copies_for_the_same_reason_that_follow_each_other_count() -> None:
    assert copies_for("x", history(*COPY, back("x"))) == 1
    assert copies_for("x", history(*COPY, back("x"), *COPY, back("x"), *COPY, back("x"))) == 3
    assert copies_for("x", history(*COPY, back("x"), *COPY, back("y"), *COPY, back("x"))) == 1
    # One that fails while it catches up, whatever it was months ago.
    caught = (*COPY[:2], back("x", S.FINISHED_COPY))
    assert copies_for("x", history(*COPY, back("x"), *caught, *caught)) == 3
    # Neither a copy that died nor the end of a wait is another reason.
    waited = ((S.INIT, S.ERRORED, "x; it waits"), back("x; it waits", S.ERRORED))
    died = ((S.INIT, S.DATA_SYNC, None), back(None, S.DATA_SYNC))
    assert copies_for("x", history(*COPY, back("x"), *waited, *died, *COPY, back("x"))) == 2


def test_a_table_that_streamed_for_long_begins_anew() -> None:
    assert copies_for("x", history(*COPY, back("x"), *COPY, back("x"), every=timedelta(hours=2))) == 1
