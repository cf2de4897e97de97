"""What of a pipeline's status needs a person."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.replication.health import Health, judge
from etl_core.replication.status import PipelineStatus, seconds_to_limit
from etl_core.source.slot import SlotStatus
from etl_core.state.store import ReplicationProgress, StreamError, TableStatus
from etl_core.state.table_state import TableState

SLOT = SlotStatus(
    "etl_shop", "pgoutput", "shop", False, False, None, Lsn(100), Lsn(150), "reserved", 6000, False, None, None, 50
)
ORDERS = TableStatus(TableId(7), TableName("public", "orders"), TableState.READY, 1)
WELL = PipelineStatus([ORDERS], {}, ReplicationProgress(Lsn(150)), SLOT, None, slots=[SLOT])
LOST = replace(SLOT, name="etl_shop_7", wal_status="lost")
REFUSES = "the source refuses changes because of the publication"
AWAY = replace(WELL, slot=None, slots=(), source_error="cannot connect")


@pytest.mark.parametrize(
    ("known", "health", "reasons"),
    [
        (WELL, Health.HEALTHY, ()),
        (PipelineStatus([], {}, None, None, None), Health.HEALTHY, ()),
        (PipelineStatus([], {}, None, None, "cannot connect"), Health.HEALTHY, ()),  # nothing was replicated yet
        (replace(WELL, destination_error="held by process 7"), Health.HEALTHY, ()),
        (AWAY, Health.UNKNOWN, ("the source did not answer",)),
        (
            replace(AWAY, tables=[replace(ORDERS, state=TableState.ERRORED)]),
            Health.NEEDS_YOU,
            ("public.orders has stopped",),
        ),
        (
            replace(WELL, tables=[replace(ORDERS, waits_for="approve")]),
            Health.NEEDS_YOU,
            ("public.orders waits for approval",),
        ),
        (replace(WELL, slot=None, slots=()), Health.NEEDS_YOU, ("the slot does not exist: changes are not kept",)),
        (replace(WELL, slots=[SLOT, LOST]), Health.NEEDS_YOU, ("slot etl_shop_7 is lost",)),
        (
            replace(WELL, stream_error=StreamError("a right is missing", None, datetime.now(UTC))),
            Health.NEEDS_YOU,
            ("the stream has ended",),
        ),
        (
            replace(WELL, unsafe=["UNSAFE"]),
            Health.NEEDS_YOU,
            (REFUSES,),
        ),
        (
            replace(WELL, destination_error="no DuckDB file", destination_needs_you=True),
            Health.NEEDS_YOU,
            ("the destination cannot be read",),
        ),
    ],
)
def test_health(known: PipelineStatus, health: Health, reasons: tuple[str, ...]) -> None:
    verdict = judge(known)
    assert (verdict.health, verdict.reasons) == (health, reasons)


def test_wal_of_a_slot() -> None:
    assert SLOT.bytes_kept == 100
    assert seconds_to_limit(SLOT, 60.0) == 100
    assert seconds_to_limit(SLOT, None) is None
    assert seconds_to_limit(replace(SLOT, safe_wal_size=None), 60.0) is None
