"""Arrays as JSON: of any number of dimensions, which may be another one in each row.

Numbers and truth values are JSON's own, but for NaN and infinity; any other element is a JSON string of the text that
PostgreSQL prints of it. An array whose indexes do not begin at 1 is a JSON string as a whole, `"[0:1]={1,2}"`: those of
JSON's arrays have no other beginning.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl_core.identifiers import TableName
from etl_core.schema import pg_types
from etl_core.schema.pg_types import base_type
from etl_core.schema.table import Column, PgType
from etl_core.values.arrays import CLOSE, NULL, meant_bytes, reads
from etl_core.values.refusal import unreadable
from etl_core.values.text import (
    Array,
    Bytes,
    Positions,
    TextBytes,
    as_string,
    nulled,
    offsets_from_lengths,
    text_bytes,
    variable_width,
)

_NUMBERS = frozenset(
    {pg_types.INT2, pg_types.INT4, pg_types.INT8, pg_types.FLOAT4, pg_types.FLOAT8, pg_types.NUMERIC, pg_types.OID}
)
_FIRST_PRINTABLE = 0x20
_QUOTE, _BACKSLASH = ord('"'), ord("\\")


def load_array_json(text: Array, array: PgType, column: Column, table: TableName) -> Array:
    """A string array of JSON. Of `array` the element and the delimiter count."""
    part = text_bytes(text)
    starts, ends = part.starts, part.ends
    if len(starts) == 0:
        return as_string(text)
    if (ends - starts < len("{}")).any() or (part.data[ends - 1] != ord("}")).any():
        raise unreadable(column, table)
    has_bounds = part.data[starts] == ord("[")
    if not (has_bounds | (part.data[starts] == ord("{"))).all():
        raise unreadable(column, table)
    if not has_bounds.any():
        return _as_json(part, array)
    strings, is_whole, is_list = as_string(text), part.spread(has_bounds), part.spread(~has_bounds)
    lists = _as_json(text_bytes(nulled(strings, ~is_list)), array)
    merged: Array = pc.coalesce(lists, _as_strings(text_bytes(nulled(strings, ~is_whole))))
    return merged


def _as_json(part: TextBytes, array: PgType) -> Array:
    data = part.data
    if not len(data):
        return variable_width(pa.string(), data, part.offsets, part.valid)
    places, meaning = meant_bytes(data, array.delimiter)
    is_structure = meaning <= CLOSE
    places, meaning = places[is_structure], meaning[is_structure]
    data = data.copy()
    data[places] = np.frombuffer(b",[]", np.uint8)[meaning - 1]
    follows = np.flatnonzero(meaning[:-1] != CLOSE)
    begins, ends = places[follows] + 1, places[follows + 1]
    is_there = (ends > begins) & (part.data[begins] != _QUOTE)
    begins, ends = begins[is_there], ends[is_there]
    is_null = reads(part.data, begins, ends - begins, NULL)
    for at in range(len(NULL)):
        data[begins[is_null] + at] |= 0x20  # in small letters
    begins, ends = begins[~is_null], ends[~is_null]
    oid = 0 if array.element is None else base_type(array.element).oid
    expansion = _Expansion(data)
    expansion.escape_control()
    if oid == pg_types.BOOL:
        expansion.replace(begins[data[begins] == ord("t")], b"true")
        expansion.replace(begins[data[begins] == ord("f")], b"false")
    elif oid in _NUMBERS:
        is_word = data[ends - 1] > ord("9")
        expansion.quote(begins[is_word], ends[is_word])
    else:
        expansion.quote(begins, ends)
    return expansion.strings(part)


def _as_strings(part: TextBytes) -> Array:
    """Each value as one JSON string."""
    expansion = _Expansion(part.data)
    expansion.escape_control()
    for character in (_QUOTE, _BACKSLASH):
        expansion.replace(np.flatnonzero(part.data == character), bytes([_BACKSLASH, character]))
    expansion.quote(part.starts, part.ends)
    return expansion.strings(part)


class _Expansion:
    """Bytes, some of which become several."""

    def __init__(self, data: Bytes) -> None:
        self._data = data
        self._lengths = np.ones(len(data), np.int64)
        self._opens = np.zeros(len(data), np.bool_)
        self._closes = np.zeros(len(data), np.bool_)
        self._words: list[tuple[Positions, bytes]] = []

    def replace(self, places: Positions, word: bytes) -> None:
        """The byte at each place by `word`."""
        self._lengths[places] = len(word)
        self._words.append((places, word))

    def escape_control(self) -> None:
        """Characters that may not be in a JSON string."""
        control = np.flatnonzero(self._data < _FIRST_PRINTABLE)
        for code in np.unique(self._data[control]).tolist():
            self.replace(control[self._data[control] == code], b"\\u%04x" % code)

    def quote(self, begins: Positions, ends: Positions) -> None:
        """A quote before each of `begins`, and after the byte before each of `ends`."""
        self._opens[begins] = True
        self._closes[ends - 1] = True

    def strings(self, part: TextBytes) -> Array:
        """The values of `part`, whose bytes these were."""
        offsets = offsets_from_lengths(self._lengths + self._opens + self._closes)
        places = offsets[:-1] + self._opens
        found = np.empty(offsets[-1], np.uint8)
        found[places] = self._data
        for at, word in self._words:
            for number, character in enumerate(word):
                found[places[at] + number] = character
        found[offsets[:-1][self._opens]] = _QUOTE
        found[offsets[1:][self._closes] - 1] = _QUOTE
        return variable_width(pa.string(), found, offsets[part.offsets], part.valid)
