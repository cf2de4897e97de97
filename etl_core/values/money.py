"""money as a decimal: a whole number of 64 bits, and the decimals that the locale of its database gives it.

Our sessions have lc_monetary = C, in which the server prints the whole number with two decimals, whatever it means:
`$1,234.56` and `-$0.01`, or 123,456 and -1 yen. What the locale's own text would look like does not matter then.
https://github.com/postgres/postgres/blob/REL_18_STABLE/src/backend/utils/adt/cash.c (cash_out)
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from etl_core.identifiers import TableName
from etl_core.schema.table import Column
from etl_core.values.refusal import unreadable
from etl_core.values.text import (
    Array,
    Positions,
    TextBytes,
    bitmap,
    buffer_of,
    numbers_of,
    offsets_from_lengths,
    text_bytes,
    variable_width,
)

_DIGITS = 19
"""Those that 64 bits can have."""
_MARKS = b"$,."
_PRINTED_DECIMALS, _GROUP = 2, 3


def money_type(decimals: int) -> pa.DataType:
    """decimal128 with these decimals."""
    return pa.decimal128(_DIGITS, decimals)


def load_money(text: Array, arrow: pa.DataType, column: Column, table: TableName) -> Array:
    """The whole number with the decimal point where `arrow` has it."""
    part = text_bytes(text)
    lengths = np.diff(part.offsets) - part.spread(_marks(part, column, table))
    digits = np.frombuffer(part.data.tobytes().translate(None, _MARKS), np.uint8)
    try:
        whole = variable_width(pa.string(), digits, offsets_from_lengths(lengths), part.valid).cast(pa.int64())
    except pa.ArrowInvalid:
        raise unreadable(column, table) from None
    words = np.empty((len(part), 2), np.int64)  # 128 bits, the low half first
    words[:, 0] = numbers_of(whole, np.int64)
    words[:, 1] = words[:, 0] >> 63
    return pa.Array.from_buffers(arrow, len(part), [bitmap(part.valid), buffer_of(words)])


def _marks(part: TextBytes, column: Column, table: TableName) -> Positions:
    """How many characters of each value that is not NULL are neither a sign nor a digit. All stand where they must."""
    data, starts, ends = part.data, part.starts, part.ends
    if (ends - starts < len("$0.00")).any():
        raise unreadable(column, table)
    is_negative = data[starts] == ord("-")
    dollar, point = starts + is_negative, ends - _PRINTED_DECIMALS - 1
    lengths = point - dollar - 1  # of the digits before the point, with a comma before every three of them
    commas = np.flatnonzero(data == ord(","))
    row = np.searchsorted(part.offsets, commas, "right") - 1
    before_point = part.offsets[row + 1] - _PRINTED_DECIMALS - 1 - commas
    groups: Positions = lengths // (_GROUP + 1)
    if not (
        (data[dollar] == ord("$")).all()
        and (data[point] == ord(".")).all()
        and np.count_nonzero(data == ord("$")) == np.count_nonzero(data == ord(".")) == len(starts)
        and np.count_nonzero(data == ord("-")) == np.count_nonzero(is_negative)
        and (lengths % (_GROUP + 1) != 0).all()
        and (before_point % (_GROUP + 1) == 0).all()
        and len(commas) == groups.sum()
    ):
        raise unreadable(column, table)
    return groups + len("$.")
