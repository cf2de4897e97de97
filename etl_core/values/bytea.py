"""bytea in its hex format: `\\x` and two digits per byte.

https://www.postgresql.org/docs/current/datatype-binary.html#DATATYPE-BINARY-BYTEA-HEX-FORMAT
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from etl_core.identifiers import TableName
from etl_core.schema.table import Column
from etl_core.values.refusal import unreadable
from etl_core.values.text import Array, Bytes, offsets_from_lengths, text_bytes, variable_width

_INVALID = 0x100


def _pairs() -> npt.NDArray[np.uint16]:
    """The byte that two characters, read as a native 16-bit number, stand for; _INVALID if none."""
    table = np.full(1 << 16, _INVALID, np.uint16)
    for digits in (b"0123456789abcdef", b"0123456789ABCDEF"):
        text = np.array([(high, low) for high in digits for low in digits], np.uint8)
        table[text.view(np.uint16).ravel()] = np.arange(256, dtype=np.uint16)
    return table


_PAIRS = _pairs()
_PREFIX = np.frombuffer(rb"\x", np.uint16)[0]


def load_bytea(text: Array, _arrow: pa.DataType, column: Column, table: TableName) -> Array:
    """Every value has an even length, so the whole column is one row of pairs, of which the prefixes go."""
    part = text_bytes(text)
    lengths = np.diff(part.offsets)
    if (lengths & 1).any() or (part.ends - part.starts < 2).any():
        raise unreadable(column, table)
    pairs = part.data.view(np.uint16)
    prefixes = part.starts >> 1
    if (pairs[prefixes] != _PREFIX).any():
        raise unreadable(column, table)
    kept = np.ones(len(pairs), np.bool_)
    kept[prefixes] = False
    offsets = offsets_from_lengths(np.maximum(lengths - 2, 0) >> 1)
    return variable_width(pa.binary(), decode_pairs(pairs[kept], column, table), offsets, part.valid)


def decode_pairs(pairs: npt.NDArray[np.uint16], column: Column, table: TableName) -> Bytes:
    """The bytes that pairs of digits stand for, of either case but not of both."""
    decoded = _PAIRS[pairs]
    if (decoded == _INVALID).any():
        raise unreadable(column, table)
    return decoded.astype(np.uint8)
