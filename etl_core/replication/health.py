"""Whether a pipeline goes on by itself: what `etl status` ends with, for people, scripts and schedulers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from etl_core.replication.status import PipelineStatus
from etl_core.state.store import TableStatus
from etl_core.state.table_state import TableState


class Health(StrEnum):
    """How it is."""

    HEALTHY = "healthy"
    """Nothing waits for a person. Whether somebody streams at the moment is not judged: it may be run in turns."""
    NEEDS_YOU = "needs_you"
    """Something stays as it is until a person acts, or is tried again and may fail again."""
    UNKNOWN = "unknown"
    """The source did not answer, and nothing that is known needs a person."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A pipeline's health, and why it is not HEALTHY, a sentence each."""

    health: Health
    reasons: tuple[str, ...] = ()


def judge(known: PipelineStatus) -> Verdict:
    """Of what is known of a pipeline."""
    needs = []
    if known.stream_error is not None:
        needs.append("the stream has ended")
    if known.progress is not None and known.source_error is None and known.slot is None:
        needs.append("the slot does not exist: changes are not kept")
    needs += [f"slot {slot.name} is lost" for slot in known.slots if slot.is_lost]
    needs += [f"{table.name} {_need(table)}" for table in known.tables if _need(table)]
    if known.unsafe:
        needs.append("the source refuses changes because of the publication")
    if known.destination_needs_you:
        needs.append("the destination cannot be read")
    if needs:
        return Verdict(Health.NEEDS_YOU, tuple(needs))
    if known.source_error is not None and known.tables:
        return Verdict(Health.UNKNOWN, ("the source did not answer",))
    return Verdict(Health.HEALTHY)


def _need(table: TableStatus) -> str | None:
    if table.waits_for is not None:
        return "waits for approval"
    return "has stopped" if table.state is TableState.ERRORED else None
