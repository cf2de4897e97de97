"""What the rows of a copy are in a log."""

from __future__ import annotations

from datetime import datetime

import pyarrow as pa

from etl_core.lsn import Lsn
from etl_core.schema.change_log import COMMITTED_AT, COPY, LSN, OP, SEQ, TRUNCATE

_COLUMNS = (OP, LSN, SEQ, COMMITTED_AT)


def emptied(schema: pa.Schema, watermark: Lsn, taken_at: datetime) -> pa.RecordBatch:
    """The one row of a copy without rows: that the table was empty then, as after a TRUNCATE."""
    nothing = pa.RecordBatch.from_arrays([pa.nulls(1, field.type) for field in schema], schema=schema)
    return stamped(nothing, watermark, taken_at, TRUNCATE)


def stamped(rows: pa.RecordBatch, watermark: Lsn, taken_at: datetime, operation: str = COPY) -> pa.RecordBatch:
    """Copied rows with the values of the log's columns: see AppendingCopy."""
    values = (operation, int(watermark), 0, taken_at)
    for column, value in zip(_COLUMNS, values, strict=True):
        at = rows.schema.get_field_index(column.name)
        field = rows.schema.field(at)
        constant = pa.repeat(pa.scalar(value, field.type), rows.num_rows)
        rows = rows.set_column(at, field, constant)
    return rows
