"""Record batches as the lines that COPY reads in its text format: `\\N` is NULL, and four characters are escaped.

Not CSV: a server before 18 takes a line of `\\.` within a quoted value for the end of the data.
https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-FILE-FORMATS
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl_core.values.text import Array, one_text, own_bytes, view_buffer

_ESCAPES = (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r"))
_BYTES = 16 << 20
"""Of one piece, about: the text of a string array has 2 GB at most, and escapes may double it."""


def copy_lines(batch: pa.RecordBatch) -> Iterator[memoryview]:
    """The lines of all rows, in pieces of whole lines. Columns that are not text are numbers."""
    if not batch.num_rows:
        return
    rows = max(1, int(batch.num_rows * _BYTES // max(batch.nbytes, 1)))
    for start in range(0, batch.num_rows, rows):
        yield _lines(batch.slice(start, rows))


def _lines(batch: pa.RecordBatch) -> memoryview:
    null, tab, end, nothing = (one_text(text)[0].cast(pa.large_string()) for text in ("\\N", "\t", "\n", ""))
    columns: list[Any] = [pc.fill_null(_escaped(column), null) for column in batch.columns]
    joined = columns[0] if len(columns) == 1 else pc.binary_join_element_wise(*columns, tab)
    lines: Array = pc.binary_join_element_wise(joined, end, nothing)
    _, offsets, data = lines.buffers()
    ends = view_buffer(offsets, np.int64)
    first, last = int(ends[lines.offset]), int(ends[lines.offset + len(lines)])
    return memoryview(b"" if data is None else data)[first:last]


def _escaped(column: Array) -> Array:
    if not pa.types.is_string(column.type):
        return column.cast(pa.large_string())
    texts = column.cast(pa.large_string())
    data = own_bytes(column)
    for character, escape in _ESCAPES:
        if (data == ord(character)).any():
            texts = pc.replace_substring(texts, character, escape)
    return texts
