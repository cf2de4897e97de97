"""What the rows of a copy are in a log."""

from __future__ import annotations

from datetime import datetime

import pyarrow as pa

from etl_core.lsn import Lsn
from etl_core.schema.change_log import COMMITTED_AT, COPY, LSN, OP, SEQ

_COLUMNS = (OP, LSN, SEQ, COMMITTED_AT)


def stamped(rows: pa.RecordBatch, watermark: Lsn, taken_at: datetime) -> pa.RecordBatch:
    """Copied rows with the values of the log's columns: see AppendingCopy."""
    values = (COPY, int(watermark), 0, taken_at)
    for column, value in zip(_COLUMNS, values, strict=True):
        at = rows.schema.get_field_index(column.name)
        field = rows.schema.field(at)
        constant = pa.repeat(pa.scalar(value, field.type), rows.num_rows)
        rows = rows.set_column(at, field, constant)
    return rows
