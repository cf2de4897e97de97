"""Many changes of one key to one final change, in columns.

Every row change becomes one or two events on keys: an insert or update *sets* its new key, a delete or an update that
changes the key leaves its old key *gone*. Sorted by key and time, the first event of a key tells whether the
destination has the row, the last one what becomes of it.

An update may leave TOASTed values unchanged (not in the WAL). Such a value is that of the previous event of
the same row, which stands under the old key if the update changed the key; the chain is followed by pointer
jumping. Where it reaches back before the first event, the destination holds the value, under the key at the
chain's beginning.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from etl_core.decode.split import Mask
from etl_core.errors import PermanentError
from etl_core.protocol.segment import INSERT, UPDATE, Indices

_NONE = -1


@dataclass(frozen=True, slots=True)
class Final:
    """The last word on every key.

    `inserted`, `upserted`: rows (numbers of new tuples) that survive; the destination has no row, or may have one,
    under their key. `deleted`: numbers of old tuples whose key ends gone. All ascending. The key may have come and gone
    here, so that the destination never had it: one that is written to without transactions may have its row from a try
    that was lost in the middle.
    """

    inserted: Indices
    upserted: Indices
    deleted: Indices
    last: Indices | None = None
    """If asked for, the new tuple that held the last values of each of `deleted`, or -1: the destination's row does."""


@dataclass(frozen=True, slots=True)
class Events:
    """The row changes of one relation, with their keys as small integers (equal number, equal key).

    `tag` per row change; `new_row`/`old_row` the row change of each new/old tuple (ascending); `new_key`/`old_key`
    its key; `old_of_new` for every new tuple the number of the old tuple of the same row change, or -1.
    """

    tag: NDArray[np.uint8]
    new_row: Indices
    new_key: Indices
    old_row: Indices
    old_key: Indices
    old_of_new: Indices


@dataclass(frozen=True, slots=True)
class _Timeline:
    """Events sorted by key, then time.

    An event's moment is 2 × its row change if a key is left, one more if it is set: within one row change the old key
    is left before the new one is set. `moment` and `first` (of its key) per event; `at` says where the event of each
    moment stands, `number` which tuple it belongs to; both mean nothing for a moment without an event.
    """

    moment: Indices
    first: Mask
    at: Indices
    number: Indices


def _timeline(events: Events, leaving: Indices) -> _Timeline:
    """`leaving` are the old tuples that leave their key."""
    moments = 2 * events.tag.size
    bits = moments.bit_length()
    left, set_ = 2 * events.old_row, 2 * events.new_row + 1
    # Key and moment in one number: sorting such is several times faster than a lexsort of two arrays.
    packed = np.concatenate([events.old_key[leaving] << bits | left[leaving], events.new_key << bits | set_])
    packed.sort()
    key = packed >> bits
    moment = packed & ((1 << bits) - 1)
    first = np.ones(key.size, np.bool_)
    first[1:] = key[1:] != key[:-1]
    at = np.empty(moments, np.int64)
    at[moment] = np.arange(moment.size)
    number = np.empty(moments, np.int64)
    number[left] = np.arange(left.size)
    number[set_] = np.arange(set_.size)
    return _Timeline(moment, first, at, number)


def collapse(events: Events, *, with_chains: bool, with_last: bool = False) -> tuple[Final, Chains | None]:
    """The final change of every key, and the chains by which unchanged values are found.

    Chains is None unless `with_chains`, or when each key has exactly one event, an insert or an update in place.
    """
    new_tag = events.tag[events.new_row]
    if events.old_row.size == 0 and _all_distinct(events.new_key):
        none = np.empty(0, np.int64)
        return Final(np.flatnonzero(new_tag == INSERT), np.flatnonzero(new_tag == UPDATE), none, none), None
    old_of_new = events.old_of_new
    with_old = old_of_new != _NONE
    moved = with_old.copy()
    moved[with_old] = events.old_key[old_of_new[with_old]] != events.new_key[with_old]
    # REPLICA IDENTITY FULL sends the old row with every update: only those that changed the key leave it.
    leaves = np.ones(events.old_row.size, np.bool_)
    leaves[old_of_new[with_old & ~moved]] = False
    line = _timeline(events, np.flatnonzero(leaves))

    starts = np.flatnonzero(line.first)
    ends = np.append(starts[1:], line.moment.size) - 1
    last = line.moment[ends]
    arrives = np.zeros(2 * events.tag.size, np.bool_)
    arrives[2 * events.new_row + 1] = (new_tag == INSERT) | moved
    in_destination = ~arrives[line.moment[starts]]
    survives = last & 1 == 1
    final = Final(
        _ascending(line.number[last[survives & ~in_destination]], events.new_row.size),
        _ascending(line.number[last[survives & in_destination]], events.new_row.size),
        _ascending(line.number[last[~survives]], events.old_row.size),
        _last_values(line, starts[~survives], ends[~survives]) if with_last else None,
    )
    return final, Chains(events, line, moved) if with_chains else None


def _last_values(line: _Timeline, starts: Indices, ends: Indices) -> Indices:
    """The new tuple before the event at each of `ends`, which is of the same key from `starts` on; -1 without one.

    In the order of the old tuples of those events.
    """
    found = np.full(ends.size, _NONE, np.int64)
    has_before = ends > starts
    before = line.moment[ends[has_before] - 1]
    if bool((before & 1 == 0).any()):
        raise PermanentError("a delete follows the delete of its row", hint="report this with the table's definition")
    found[has_before] = line.number[before]
    return found[np.argsort(line.number[line.moment[ends]])]


def _ascending(numbers: Indices, count: int) -> Indices:
    """Sorts distinct numbers below `count`."""
    chosen = np.zeros(count, np.bool_)
    chosen[numbers] = True
    return np.flatnonzero(chosen)


def _all_distinct(numbers: Indices) -> bool:
    if numbers.size == 0:
        return True
    # Numbers are dense, so counting beats sorting.
    return int(np.bincount(numbers).max()) == 1


class Chains:
    """Which new tuple comes before which, for the same row."""

    __slots__ = ("_previous",)

    def __init__(self, events: Events, line: _Timeline, moved: Mask) -> None:
        # The event before the update's own; the own one is that of leaving the old key if the update moved the row.
        own = 2 * events.new_row + 1
        own[moved] = 2 * events.old_row[events.old_of_new[moved]]
        at = line.at[own]
        has_before = ~line.first[at] & (events.tag[events.new_row] == UPDATE)
        before = line.moment[at[has_before] - 1]
        if bool((before & 1 == 0).any()):
            raise PermanentError(
                "an update follows the delete of its row", hint="report this with the table's definition"
            )
        self._previous = np.full(events.new_row.size, _NONE, np.int64)
        self._previous[has_before] = line.number[before]

    def resolve(self, unchanged: Mask) -> Indices:
        """For every new tuple, the one that holds its value of a column that is `unchanged` in some.

        Where that one is itself unchanged, it is the first of its chain and the destination holds the value.
        """
        points_at = np.arange(unchanged.size)
        follows = unchanged & (self._previous != _NONE)
        points_at[follows] = self._previous[follows]
        while True:
            further = points_at[points_at]
            if np.array_equal(further, points_at):
                return points_at
            points_at = further
