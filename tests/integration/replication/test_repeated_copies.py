"""A table that needs a new copy again and again, for one reason, waits ever longer between them; the others go on."""
# ruff: noqa: S608 the tests write their own SQL

from __future__ import annotations

from typing import TYPE_CHECKING

from etl_core.errors import EtlError
from etl_core.identifiers import TableName
from etl_core.replication.copied import Copied
from etl_core.replication.repeated_copies import AT_ONCE
from etl_core.state.table_state import TableState

if TYPE_CHECKING:
    from tests.integration.replication.conftest import Lab


def test_copies_for_the_same_reason_wait(lab: Lab) -> None:
    for table in ("t", "flows"):
        lab.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, n int); INSERT INTO {table} VALUES (1, 1)")
    lab.publish()
    pipeline = lab.synced()

    def needs_a_copy() -> Copied | EtlError:
        lab.execute("ALTER TABLE t ALTER n TYPE int USING n + 1")
        pipeline.prepare()
        [outcome] = pipeline.sync()
        lab.execute("UPDATE flows SET n = n + 1")
        lab.caught_up(pipeline)
        return outcome

    for _ in range(AT_ONCE):
        assert isinstance(needs_a_copy(), Copied)
    outcome = needs_a_copy()
    assert isinstance(outcome, EtlError)
    assert "3 copies for this reason did not help" in str(outcome)
    status = pipeline.find(TableName("public", "t"))
    assert (status.state, status.attempts, status.error) == (TableState.ERRORED, AT_ONCE, str(outcome))
    assert status.retry_at is not None
    assert "etl resync public.t" in str(status.hint)
    # Whoever starts a process wants to know, and whoever asks for a copy has it.
    pipeline.close()
    pipeline = lab.synced()
    assert isinstance(needs_a_copy(), EtlError)
    pipeline.resync(TableName("public", "t"))
    assert [type(one) for one in pipeline.sync()] == [Copied]
    lab.assert_equal(pipeline)
