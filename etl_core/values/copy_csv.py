"""Blocks of `COPY … (FORMAT csv)` → record batches.

Every column is read as text and then goes through `load`, also where pyarrow.csv could convert it by itself. That
costs 0.28 µs a row of 8 columns against 0.25 (pyarrow 26, 4 MB blocks), of about 1 µs that a row's copy costs in all,
and a value cannot look different from the same value in the stream.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv

from etl_core.errors import TableError
from etl_core.schema.table import TableSchema
from etl_core.values.arrow import arrow_schema
from etl_core.values.loading import load
from etl_core.values.text import Array

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def csv_column_types(schema: TableSchema) -> dict[str, pa.DataType]:
    """The types with which pyarrow.csv is to read the columns of `schema`: text, to be finished by `load_batch`."""
    return dict.fromkeys(schema.column_names, pa.string())


def read_csv(block: bytes | bytearray | memoryview | pa.Buffer, schema: TableSchema) -> pa.RecordBatch:
    """Whole rows of `COPY <columns of schema, in order> TO STDOUT (FORMAT csv)` as rows in their Arrow schema.

    An unquoted empty value is NULL, a quoted one is the empty text. The block may be empty, and is below 2 GiB.
    Raises ValueOutOfRange as `load` does, TableError if the block is not CSV with these columns.
    """
    if len(block) == 0:
        return pa.RecordBatch.from_pylist([], schema=arrow_schema(schema))
    source: Any = pa.BufferReader(_protected(block))
    try:
        raw = pa_csv.read_csv(
            source,
            pa_csv.ReadOptions(use_threads=False, block_size=len(block) + 16, column_names=list(schema.column_names)),
            # A one-column NULL is an empty line.
            pa_csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
            pa_csv.ConvertOptions(
                check_utf8=False,
                column_types=csv_column_types(schema),
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid:
        raise TableError(
            f"what COPY sent for table {schema.name} is not CSV with its {len(schema.columns)} columns",
            table=str(schema.name),
            hint=f"the table may have changed during the copy; copy it again: etl resync {schema.name}",
        ) from None
    return load_batch(raw, schema)


def load_batch(raw: pa.Table | pa.RecordBatch, schema: TableSchema) -> pa.RecordBatch:
    """Columns of text, in the order of `schema.columns`, → rows in the Arrow schema of `schema`."""
    columns = [load(_one_array(raw.column(index)), column, schema.name) for index, column in enumerate(schema.columns)]
    return pa.RecordBatch.from_arrays(columns, schema=arrow_schema(schema))


def _one_array(column: Array | pa.ChunkedArray[Any]) -> Array:
    if not isinstance(column, pa.ChunkedArray):
        return column
    chunks: list[Array] = column.chunks
    return chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)


def _protected(block: bytes | bytearray | memoryview | pa.Buffer) -> bytes | bytearray | memoryview | pa.Buffer:
    """pyarrow.csv takes a leading U+FEFF for a byte order mark and eats it; given two it eats one."""
    if memoryview(block)[:3] == _BYTE_ORDER_MARK:
        return _BYTE_ORDER_MARK + bytes(block)
    return block
