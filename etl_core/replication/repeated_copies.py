"""How often a table was copied again for one reason, as its history says, and when that is too often to go on at once.

A reason that a new copy takes away does not come again. One that comes again and again, as the columns of a table that
cannot be told at each try, would have the source read the whole table without an end.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from etl_core.state.store import Transition
from etl_core.state.table_state import COPIED, TableState

AT_ONCE = 3
"""How many copies for one reason are made without a wait: alterations may follow each other."""
_CURED_AFTER = timedelta(hours=1)
"""A table that was continued for so long since its copy was copied with success: the same reason is a new one then."""


def copies_for(reason: str, history: Sequence[Transition]) -> int:
    """How often the table was set back for `reason` alone, the last time included. `history` has the newest first."""
    count = 0
    moves = [move for move in history if move.to_state in (TableState.INIT, TableState.FINISHED_COPY)]
    for number, move in enumerate(moves):
        if move.to_state is not TableState.INIT or move.from_state not in COPIED:
            continue  # a copy that failed, or one that had waited
        if move.error != reason:
            break
        count += 1
        copied = next((one for one in moves[number + 1 :] if one.to_state is TableState.FINISHED_COPY), None)
        if copied is None or move.at - copied.at > _CURED_AFTER:
            break
    return count
