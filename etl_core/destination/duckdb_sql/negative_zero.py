"""-0 where DuckDB writes Parquet: it is refused, unless the settings make it 0.

DuckDB 1.5 writes dictionaries that hold -0 and 0 as one value, the one that came first, and neither DuckLake's options
nor Iceberg's switch dictionaries off. No answer to a query would say that a -0 was lost, and `etl verify` would find a
row that differs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from etl_core.errors import ValueOutOfRange
from etl_core.identifiers import TableName
from etl_core.schema.table import Column
from etl_core.values.text import numbers_of, validity


def refuse_negative_zero(
    values: pa.Array[Any] | pa.ChunkedArray[Any], column: Column, table: TableName, product: str
) -> None:
    """Raises ValueOutOfRange for a column that has -0, also within its values."""
    chunks = values.chunks if isinstance(values, pa.ChunkedArray) else [values]
    if any(map(_has_negative_zero, chunks)):
        raise ValueOutOfRange(
            f"column {column.name} of {table} has a value -0, which may become 0 in the files of {product}",
            table=str(table),
            hint=f"types: {{out_of_range: clamp}} for the column makes it 0, which equals -0 in PostgreSQL; then: "
            f"etl resync {table}. In a key, add 0 to it at the source",
        )


def _has_negative_zero(values: pa.Array[Any]) -> bool:
    kind = values.type
    if pa.types.is_floating(kind):
        numbers = numbers_of(values, np.float32 if pa.types.is_float32(kind) else np.float64)
        found = np.signbit(numbers) & (numbers == 0)
        valid = validity(values)  # what is under NULL is no value
        return bool(np.any(found if valid is None else found & valid))
    if isinstance(values, pa.StructArray):
        return any(_has_negative_zero(values.field(at)) for at in range(kind.num_fields))
    if isinstance(values, pa.MapArray):
        return _has_negative_zero(values.keys) or _has_negative_zero(values.items)
    if isinstance(values, pa.ListArray | pa.FixedSizeListArray):
        return _has_negative_zero(values.flatten())
    return False
