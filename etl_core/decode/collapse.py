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

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from etl_core.decode.split import INSERT, UPDATE, Indices, Mask
from etl_core.errors import PermanentError
from etl_core.values.text import Array

_NONE = -1


@dataclass(frozen=True, slots=True)
class Final:
    """The last word on every key.

    `inserted`, `upserted`: rows (numbers of new tuples) that survive; the destination has no row, or may have one,
    under their key. `deleted`: numbers of old tuples whose key ends gone and is in the destination. All ascending.
    """

    inserted: Indices
    upserted: Indices
    deleted: Indices


@dataclass(frozen=True, slots=True)
class Events:
    """The row changes of one relation, with their keys as small integers (equal number, equal key).

    `tag` per row change; `new_row`/`old_row` the row change of each new/old tuple (ascending); `new_key`/`old_key`
    its key.
    """

    tag: NDArray[np.uint8]
    new_row: Indices
    new_key: Indices
    old_row: Indices
    old_key: Indices


def number_keys(new: Sequence[Array], old: Sequence[Array]) -> tuple[Indices, Indices]:
    """Numbers the keys of new and old tuples, so that equal keys get equal numbers.

    The keys are given as one array of text per key column. Texts are compared, as PostgreSQL compares bytes when it
    decides whether an update changed the key: two spellings of one number are two keys.
    """
    combined: Indices | None = None
    for new_column, old_column in zip(new, old, strict=True):
        both = pa.chunked_array([new_column, old_column]).combine_chunks()
        codes = both.dictionary_encode().indices
        if codes.null_count:
            raise PermanentError(
                "a key column holds NULL",
                hint="give the table a primary key, or a REPLICA IDENTITY index over NOT NULL columns",
            )
        numbers = codes.to_numpy().astype(np.int64)
        if combined is None:
            combined = numbers
        else:
            _, combined = np.unique(combined * (int(numbers.max(initial=0)) + 1) + numbers, return_inverse=True)
    if combined is None:
        raise ValueError("a key has at least one column")
    count = len(new[0])
    return combined[:count], combined[count:]


@dataclass(frozen=True, slots=True)
class _Timeline:
    """Events sorted by key, then time. `at_new`/`at_old` say where the event of each new/old tuple stands."""

    key: Indices
    row: Indices
    tuple_number: Indices
    sets: Mask
    first: Mask
    at_new: Indices
    at_old: Indices


def _timeline(events: Events, leaving: Indices) -> _Timeline:
    # `leaving` are the old tuples that leave their key. Within one row change the old key is left before the new
    # one is set.
    key = np.concatenate([events.old_key[leaving], events.new_key])
    time = np.concatenate([2 * events.old_row[leaving], 2 * events.new_row + 1])
    number = np.concatenate([leaving, np.arange(events.new_row.size)])
    sets = np.zeros(key.size, np.bool_)
    sets[leaving.size :] = True
    order = np.lexsort((time, key))
    key, time, number, sets = key[order], time[order], number[order], sets[order]
    first = np.ones(key.size, np.bool_)
    first[1:] = key[1:] != key[:-1]
    position = np.empty(key.size, np.int64)
    position[order] = np.arange(key.size)
    at_old = np.full(events.old_row.size, _NONE, np.int64)
    at_old[leaving] = position[: leaving.size]
    return _Timeline(key, time >> 1, number, sets, first, position[leaving.size :], at_old)


def _old_of_new(events: Events) -> Indices:
    """For every new tuple the number of the old tuple of the same row change, or -1."""
    by_row = np.full(events.tag.size, _NONE, np.int64)
    by_row[events.old_row] = np.arange(events.old_row.size)
    return by_row[events.new_row]


def collapse(events: Events) -> tuple[Final, Chains | None]:
    """The final change of every key, and the chains by which unchanged values are found.

    Chains is None when each key has exactly one event, an insert or an update in place.
    """
    new_tag = events.tag[events.new_row]
    if events.old_row.size == 0 and _all_distinct(events.new_key):
        return (
            Final(np.flatnonzero(new_tag == INSERT), np.flatnonzero(new_tag == UPDATE), np.empty(0, np.int64)),
            None,
        )
    old_tuple = _old_of_new(events)
    with_old = old_tuple != _NONE
    moved = with_old.copy()
    moved[with_old] = events.old_key[old_tuple[with_old]] != events.new_key[with_old]
    # REPLICA IDENTITY FULL sends the old row with every update: only those that changed the key leave it.
    stays = np.zeros(events.old_row.size, np.bool_)
    stays[old_tuple[with_old & ~moved]] = True
    line = _timeline(events, np.flatnonzero(~stays))

    starts = np.flatnonzero(line.first)
    ends = np.append(starts[1:], line.key.size) - 1
    arrives = np.zeros(line.key.size, np.bool_)
    arrives[line.at_new] = (new_tag == INSERT) | moved
    in_destination = ~arrives[starts]
    survives = line.sets[ends]
    final = Final(
        np.sort(line.tuple_number[ends[survives & ~in_destination]]),
        np.sort(line.tuple_number[ends[survives & in_destination]]),
        np.sort(line.tuple_number[ends[~survives & in_destination]]),
    )
    return final, Chains(events, line, moved, old_tuple, new_tag)


def _all_distinct(numbers: Indices) -> bool:
    if numbers.size == 0:
        return True
    # Numbers are dense, so counting beats sorting.
    return int(np.bincount(numbers).max()) == 1


class Chains:
    """Which new tuple comes before which, for the same row."""

    __slots__ = ("_previous",)

    def __init__(
        self, events: Events, line: _Timeline, moved: Mask, old_tuple: Indices, new_tag: NDArray[np.uint8]
    ) -> None:
        own = line.at_new.copy()
        own[moved] = line.at_old[old_tuple[moved]]
        before = own - 1
        has_before = ~line.first[own] & (new_tag == UPDATE)
        previous = np.full(events.new_row.size, _NONE, np.int64)
        set_before = has_before.copy()
        set_before[has_before] = line.sets[before[has_before]]
        previous[set_before] = line.tuple_number[before[set_before]]
        if bool((has_before & ~set_before).any()):
            raise PermanentError(
                "an update follows the delete of its row", hint="report this with the table's definition"
            )
        self._previous = previous

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
