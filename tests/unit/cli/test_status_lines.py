"""What `etl status` says about tables."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from etl_core.cli.status import status_lines
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.replication.status import PipelineStatus
from etl_core.state.store import ReplicationProgress, TableStatus
from etl_core.state.table_state import TableState


@pytest.mark.parametrize(
    ("state", "watermark", "is_ahead"),
    [
        (TableState.READY, 300, True),
        (TableState.READY, 200, False),
        (TableState.FINISHED_COPY, 300, False),  # it is not streamed yet, which its state says
    ],
)
def test_a_table_that_readers_see_further_than_the_others_is_named(
    state: TableState, watermark: int, is_ahead: bool
) -> None:
    table = TableStatus(TableId(7), TableName("public", "orders"), state, 1)
    known = PipelineStatus(
        [table], {table.table_id: Lsn(watermark)}, ReplicationProgress(Lsn(200)), None, source_error="away"
    )
    said = "\n".join(status_lines(known, datetime.now(UTC)))
    assert (f"ahead of the other tables until the stream has passed {Lsn(watermark)}" in said) == is_ahead


def test_where_the_source_refuses_changes_is_said_shortly() -> None:
    unsafe = [f"UNSAFE: table public.t{number} has no key" for number in range(7)]
    known = PipelineStatus([], {}, ReplicationProgress(Lsn(200)), None, source_error=None, unsafe=unsafe)
    said = [line for line in status_lines(known, datetime.now(UTC)) if line.startswith("source")]
    assert said == [*(f"source       {sentence}" for sentence in unsafe[:5]), "source       and 2 more: etl doctor"]
