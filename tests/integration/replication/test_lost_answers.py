"""The state store does what it is asked, and its answer is lost: the engine finds out, and ends exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import pytest

from etl_core.errors import EtlError, TransientError
from etl_core.identifiers import TableName
from etl_core.state.sql_store import open_store
from etl_core.state.store import StateStore
from etl_core.testing.hostile import LosingStore

if TYPE_CHECKING:
    from tests.integration.replication.conftest import Lab

CALLS = (
    "migrate",
    "record_slot",
    "save_source_identity",
    "add_table",
    "transition",
    "transition_all",
    "finish_copies",
    "save_schema",
    "forget_slot",
    "claim_progress",
    "save_progress",
)


@pytest.mark.parametrize("call", CALLS)
def test_an_answer_of_the_store_is_lost(lab: Lab, churned: Callable[..., None], call: str) -> None:
    churned("a", "b", rows=5)
    lab.publish()
    losing = LosingStore(open_store(lab.config.state.url, lab.config.pipeline), [call])
    lab.callback(losing.close)
    store = cast(StateStore, losing)

    def again_if_lost(step: Callable[[], object]) -> None:
        try:
            step()
        except TransientError:
            assert losing.lost
            step()  # what `etl run` does, or the person who starts it again

    def streamed() -> None:
        pipeline = lab.pipeline(store=store)
        copies = [*pipeline.sync(), *pipeline.sync([TableName("public", "a")])]  # both together, one alone
        failed = [outcome for outcome in copies if isinstance(outcome, EtlError)]
        if failed:
            raise failed[0]
        lab.execute(
            "INSERT INTO a SELECT i, i, 'later', NULL FROM generate_series(1000, 1099) i ON CONFLICT DO NOTHING"
        )
        pipeline.stream(until=pipeline.current_lsn())
        lab.execute("UPDATE a SET n = n + 1; ALTER TABLE b ADD COLUMN more text; UPDATE b SET more = 'x'")
        pipeline.stream(until=pipeline.current_lsn())

    again_if_lost(streamed)
    assert losing.lost == [call]
    lab.assert_equal()
