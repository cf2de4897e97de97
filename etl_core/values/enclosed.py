"""Lists whose elements stand without quotes, each from an opening to a closing bracket of its own.

`{[1,3),[5,9)}` is a multirange, `{{1,2},{3,4}}` an array of two dimensions.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from etl_core.identifiers import TableName
from etl_core.schema.table import Column
from etl_core.values.refusal import unreadable
from etl_core.values.text import Array, Positions, TextBytes, offsets_from_lengths, variable_width


def split_enclosed(
    part: TextBytes, opens: Positions, closes: Positions, delimiter: str, column: Column, table: TableName
) -> tuple[Positions, Array]:
    """The lists' offsets and, end to end, the texts of their elements with their brackets, none of them NULL.

    `opens` and `closes` are where in `part.data` the brackets of the elements are. Raises ValueOutOfRange where there
    is anything else than braces around each list and one `delimiter` between any two elements.
    """
    starts, ends, data = part.starts, part.ends, part.data
    if len(opens) != len(closes) or (ends - starts < len("{}")).any():
        raise unreadable(column, table)
    row = np.searchsorted(starts, opens, "right") - 1
    is_first, is_last = np.diff(row, prepend=-1) != 0, np.diff(row, append=len(starts)) != 0
    counts = np.bincount(row, minlength=len(starts))
    between = opens[~is_first] - 1
    if not (
        (data[starts] == ord("{")).all()
        and (data[ends - 1] == ord("}")).all()
        and (ends - starts == len("{}"))[counts == 0].all()
        and (closes > opens).all()
        and (opens[is_first] == starts[row[is_first]] + 1).all()
        and (closes[is_last] == ends[row[is_last]] - 2).all()
        and (between == closes[~is_last] + 1).all()
        and (data[between] == ord(delimiter)).all()
    ):
        raise unreadable(column, table)
    kept = np.ones(len(data), np.bool_)
    kept[starts] = kept[ends - 1] = kept[between] = False
    texts = variable_width(pa.string(), data[kept], offsets_from_lengths(closes - opens + 1), None)
    return offsets_from_lengths(part.spread(counts)), texts
