"""Cells to Arrow arrays: the values of all columns of one type are gathered and cast together.

A column costs a dozen calls, whatever is in it: with a few rows of each of many tables that is more than its values
cost. So the columns of one type, of all tables, are laid end to end, loaded as one and cut apart again, which copies
nothing. Of a long table the texts of all columns are gathered by blocks of rows first, each of which fits into a
processor's cache: column by column, every line of memory would be fetched once for each value in it (measured, 100
columns: 25 to 32 ns a value, by blocks 14, and 3 to lay them end to end).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from etl_core.decode.split import Cells, gather
from etl_core.identifiers import TableName
from etl_core.schema.table import Column, PgType
from etl_core.values import load
from etl_core.values.text import Array

_BLOCK_ROWS = 1 << 12
_SHORT = 64
"""Bytes of a value, on average: longer ones are not copied once more, for there is little else to their cost."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The values of `cells`, which are of `column`."""

    cells: Cells
    column: Column
    table: TableName


def load_cells(data: NDArray[np.uint8], wanted: Sequence[Wanted]) -> list[Array]:
    """One array for each, in their order; those of one type may be slices of one array.

    Raises ValueOutOfRange, see `values.load`, for the first one of a type that holds such a value.
    """
    groups: dict[tuple[PgType, int], list[int]] = {}
    for number, one in enumerate(wanted):
        groups.setdefault((one.column.type, one.column.type_modifier), []).append(number)
    blocks = dict(_gather_by_blocks(data, wanted))
    found: dict[int, Array] = {}
    for numbers in groups.values():
        found.update(zip(numbers, _load_group(data, wanted, numbers, blocks), strict=True))
    return [found[number] for number in range(len(wanted))]


def _load_group(
    data: NDArray[np.uint8], wanted: Sequence[Wanted], numbers: Sequence[int], blocks: Mapping[int, Sequence[Array]]
) -> list[Array]:
    def load_some(some: Sequence[int]) -> Array:
        first = wanted[some[0]]
        return load(_texts(data, wanted, some, blocks), first.column, first.table)

    if len(numbers) == 1:
        return [load_some(numbers)]
    try:
        together = load_some(numbers)
    except Exception:
        # One of them is at fault, and has to be named.
        return [load_some([number]) for number in numbers]
    arrays, first = [], 0
    for number in numbers:
        count = len(wanted[number].cells)
        arrays.append(together.slice(first, count))
        first += count
    return arrays


def _texts(
    data: NDArray[np.uint8], wanted: Sequence[Wanted], numbers: Sequence[int], blocks: Mapping[int, Sequence[Array]]
) -> Array:
    """The texts of those numbered `numbers`, end to end."""
    parts: list[Array] = []
    for has_blocks, some in groupby(numbers, blocks.__contains__):
        if has_blocks:
            parts += (text for number in some for text in blocks[number])
        else:
            parts.append(gather(data, [wanted[number].cells for number in some]))
    return parts[0] if len(parts) == 1 else pa.concat_arrays(parts)


def _gather_by_blocks(data: NDArray[np.uint8], wanted: Sequence[Wanted]) -> Iterator[tuple[int, list[Array]]]:
    """For the columns of long tables with short values the texts of each block of rows; they share memory."""
    for (_, rows), some in groupby(
        range(len(wanted)), lambda number: (wanted[number].table, len(wanted[number].cells))
    ):
        numbers = list(some)
        columns = [wanted[number].cells for number in numbers]
        if rows < 2 * _BLOCK_ROWS or len(columns) == 1 or _span(columns) > _SHORT * rows * len(columns):
            continue
        texts: list[list[Array]] = [[] for _ in numbers]
        for first in range(0, rows, _BLOCK_ROWS):
            block = [cells.slice(first, first + _BLOCK_ROWS) for cells in columns]
            together = gather(data, block)
            count = len(block[0])
            for at, column in enumerate(texts):
                column.append(together.slice(at * count, count))
        yield from zip(numbers, texts, strict=True)


def _span(columns: Sequence[Cells]) -> int:
    """How many bytes lie between the first and the last value."""
    return int(columns[-1].end[-1]) - int(columns[0].start[0])
