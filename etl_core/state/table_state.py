"""The states of a table and the arrows between them: one literal table, one function that reads it.

The codes are PostgreSQL's own (`pg_subscription_rel.srsubstate`) where they exist.
"""

from __future__ import annotations

from enum import StrEnum

from etl_core.errors import PermanentError


class TableState(StrEnum):
    INIT = "i"
    """Known, to be copied."""
    DATA_SYNC = "d"
    """The initial copy is running."""
    FINISHED_COPY = "f"
    """Published with its snapshot's LSN; changes since then are to be caught up."""
    SYNC_DONE = "s"
    """Caught up; its sync slot is about to be dropped."""
    READY = "r"
    """The main stream applies its changes."""
    ERRORED = "e"
    """Stopped with a reason; the other tables go on."""
    PAUSED = "p"
    """Stopped by a person."""


class IllegalTransition(PermanentError):
    """The table below has no such arrow."""


COPIED = frozenset({TableState.FINISHED_COPY, TableState.SYNC_DONE, TableState.READY})
"""The destination has a copy of the table that the stream continues, or is about to."""

# Every state may go to INIT (a re-copy was asked for, or a crashed copy starts again), ERRORED and PAUSED.
_ALWAYS = frozenset({TableState.INIT, TableState.ERRORED, TableState.PAUSED})

TRANSITIONS: dict[TableState, frozenset[TableState]] = {
    TableState.INIT: _ALWAYS | {TableState.DATA_SYNC},
    TableState.DATA_SYNC: _ALWAYS | {TableState.FINISHED_COPY},
    TableState.FINISHED_COPY: _ALWAYS | {TableState.SYNC_DONE, TableState.READY},
    TableState.SYNC_DONE: _ALWAYS | {TableState.READY},
    TableState.READY: _ALWAYS,
    # Its changes were kept since: it catches up.
    TableState.ERRORED: _ALWAYS | {TableState.FINISHED_COPY},
    TableState.PAUSED: _ALWAYS,
}


def check_transition(current: TableState, to: TableState) -> None:
    """Raises IllegalTransition unless the arrow `current` → `to` exists."""
    if to not in TRANSITIONS[current]:
        raise IllegalTransition(f"a table cannot go from {current.name} to {to.name}")
