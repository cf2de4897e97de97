"""PostgreSQL's geometric types as structs of doubles, and lists of points.

https://www.postgresql.org/docs/current/datatype-geometric.html. The texts hold nothing but numbers between brackets and
commas, in a fixed order.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from etl_core.identifiers import TableName
from etl_core.schema.table import Column
from etl_core.values.family import Loader
from etl_core.values.refusal import unreadable
from etl_core.values.text import (
    Array,
    Positions,
    TextBytes,
    bitmap,
    buffer_of,
    fixed_width,
    numbers_of,
    offsets_from_lengths,
    text_bytes,
    variable_width,
)

_STRUCTURE = b"()[]{}<>,"
_IS_STRUCTURE = np.isin(np.arange(256), np.frombuffer(_STRUCTURE, np.uint8))


def _doubles(*names: str) -> pa.StructType:
    return pa.struct([pa.field(name, pa.float64()) for name in names])


POINT = _doubles("x", "y")
LINE = _doubles("a", "b", "c")
"""a·x + b·y + c = 0."""
TWO_POINTS = _doubles("x1", "y1", "x2", "y2")
"""lseg; and box, whose first corner is the upper right one."""
CIRCLE = _doubles("x", "y", "radius")
POLYGON = pa.list_(POINT)
PATH = pa.struct([pa.field("closed", pa.bool_()), pa.field("points", POLYGON)])


def shaped(pattern: str) -> Loader:
    """The loader of a type whose text is `pattern`, in which each 0 is a number: `(0,0)`."""
    structure = np.frombuffer(pattern.replace("0", "").encode(), np.uint8)
    is_number = np.array([part == "0" for part in _gaps(pattern)])

    def load(text: Array, arrow: pa.DataType, column: Column, table: TableName) -> Array:
        part = text_bytes(text)
        found = np.flatnonzero(_IS_STRUCTURE[part.data])
        if len(found) != len(part.starts) * len(structure):
            raise unreadable(column, table)
        places = found.reshape(-1, len(structure))
        if not (
            (part.data[places] == structure).all()
            and np.array_equal(places[:, 0], part.starts)
            and np.array_equal(places[:, -1], part.ends - 1)
        ):
            raise unreadable(column, table)
        lengths = np.diff(places, axis=1) - 1
        if ((lengths > 0) != is_number).any():
            raise unreadable(column, table)
        numbers = _numbers(part, lengths[:, is_number].ravel(), column, table).reshape(-1, arrow.num_fields)
        children = [fixed_width(pa.float64(), part.spread(numbers[:, at]), None) for at in range(arrow.num_fields)]
        return pa.Array.from_buffers(arrow, len(part), [bitmap(part.valid)], children=children)

    return load


def _gaps(pattern: str) -> list[str]:
    """What stands after each structural character but the last."""
    gaps: list[str] = []
    for character in pattern[:-1]:
        if character == "0":
            gaps[-1] = "0"
        else:
            gaps.append("")
    return gaps


def load_polygon(text: Array, arrow: pa.DataType, column: Column, table: TableName) -> Array:
    """`((0,0),(1,1))` as a list of points."""
    part = text_bytes(text)
    _refuse_short(part, column, table)
    if not ((part.data[part.starts] == ord("(")) & (part.data[part.ends - 1] == ord(")"))).all():
        raise unreadable(column, table)
    return _points(part, arrow, column, table)


def load_path(text: Array, arrow: pa.DataType, column: Column, table: TableName) -> Array:
    """The same, and whether it is closed: `[(0,0),(1,1)]` is not."""
    part = text_bytes(text)
    _refuse_short(part, column, table)
    first, last = part.data[part.starts], part.data[part.ends - 1]
    closed = first == ord("(")
    if not np.where(closed, last == ord(")"), (first == ord("[")) & (last == ord("]"))).all():
        raise unreadable(column, table)
    is_closed = pa.Array.from_buffers(pa.bool_(), len(part), [None, bitmap(part.spread(closed))])
    points = _points(part, POLYGON, column, table)
    return pa.Array.from_buffers(arrow, len(part), [bitmap(part.valid)], children=[is_closed, points])


def _refuse_short(part: TextBytes, column: Column, table: TableName) -> None:
    if (part.ends - part.starts < len("()")).any():
        raise unreadable(column, table)


def _points(part: TextBytes, arrow: pa.DataType, column: Column, table: TableName) -> Array:
    """Each value is a bracket, then `(x,y)` and one more character, for each of its points."""
    is_structure = _IS_STRUCTURE[part.data]
    is_structure[part.starts] = False
    found = np.flatnonzero(is_structure)
    counts = np.diff(np.searchsorted(found, part.offsets))
    filled = counts if part.valid is None else counts[part.valid]
    if (filled % 4).any() or (filled == 0).any():
        raise unreadable(column, table)
    places = found.reshape(-1, 4)
    bytes_ = part.data[places]
    counts, filled = counts // 4, filled // 4
    last = np.cumsum(filled) - 1
    separators = np.full(len(places), ord(","), np.uint8)
    separators[last] = bytes_[last, 3]
    before = np.empty(len(places), np.int64)  # where the point follows on something
    before[1:] = places[:-1, 3]
    before[last[:-1] + 1] = part.starts[1:]
    before[:1] = part.starts[:1]
    lengths = np.diff(places, axis=1)[:, :2] - 1
    if not (
        (bytes_[:, 0] == ord("(")).all()
        and (bytes_[:, 1] == ord(",")).all()
        and (bytes_[:, 2] == ord(")")).all()
        and (bytes_[:, 3] == separators).all()
        and (places[:, 3] == places[:, 2] + 1).all()
        and (places[:, 0] == before + 1).all()
        and np.array_equal(places[last, 3], part.ends - 1)
        and (lengths > 0).all()
    ):
        raise unreadable(column, table)
    numbers = _numbers(part, lengths.ravel(), column, table).reshape(-1, 2)
    axes = [fixed_width(pa.float64(), np.ascontiguousarray(numbers[:, at]), None) for at in range(2)]
    points = pa.Array.from_buffers(POINT, len(places), [None], children=axes)
    buffers = [bitmap(part.valid), buffer_of(offsets_from_lengths(counts).astype(np.int32))]
    return pa.Array.from_buffers(arrow, len(part), buffers, children=[points])


def _numbers(part: TextBytes, lengths: Positions, column: Column, table: TableName) -> npt.NDArray[np.float64]:
    """The numbers between the structure, of these lengths, in order."""
    digits = np.frombuffer(part.data.tobytes().translate(None, _STRUCTURE), np.uint8)
    try:
        found = variable_width(pa.string(), digits, offsets_from_lengths(lengths), None).cast(pa.float64())
    except pa.ArrowInvalid:
        raise unreadable(column, table) from None
    return numbers_of(found, np.float64)
