"""Cells to Arrow arrays: the values of all columns of one type are gathered and cast together.

A column costs a dozen calls, whatever is in it: with a few rows of each of many tables that is more than its values
cost. So the columns of one type, of all tables, are laid end to end, loaded as one and cut apart again, which copies
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from etl_core.decode.split import Cells, gather
from etl_core.identifiers import TableName
from etl_core.schema.table import Column, PgType
from etl_core.type_options import Held, OutOfRange
from etl_core.values import load
from etl_core.values.text import Array


@dataclass(frozen=True, slots=True)
class Wanted:
    """The values of `cells`, which are of `column`."""

    cells: Cells
    column: Column
    table: TableName


def load_cells(data: NDArray[np.uint8], wanted: Sequence[Wanted]) -> list[Array]:
    """One array for each, in their order; those of one type may be slices of one array.

    Raises ValueOutOfRange, see `values.load`, for the first column of the first type that has one.
    """
    groups: dict[tuple[PgType, int, OutOfRange, Held], list[int]] = {}
    for number, one in enumerate(wanted):
        column = one.column
        loaded_by = column.type, column.type_modifier, column.out_of_range, column.value_range
        groups.setdefault(loaded_by, []).append(number)
    found: dict[int, Array] = {}
    for numbers in groups.values():
        found.update(zip(numbers, _load_group(data, [wanted[number] for number in numbers]), strict=True))
    return [found[number] for number in range(len(wanted))]


def _load_group(data: NDArray[np.uint8], members: Sequence[Wanted]) -> list[Array]:
    if len(members) > 1:
        try:
            together = _load(data, members)
        except Exception:
            return [_load(data, [member]) for member in members]
        arrays, first = [], 0
        for member in members:
            arrays.append(together.slice(first, len(member.cells)))
            first += len(member.cells)
        return arrays
    return [_load(data, members)]


def _load(data: NDArray[np.uint8], members: Sequence[Wanted]) -> Array:
    text = gather(data, [member.cells for member in members])
    return load(text, members[0].column, members[0].table)
