"""Text representations → Arrow arrays, one type family per module, vectorised.

`load` is the way in for the stream, `read_csv` for COPY; both end in the same functions, so that a value looks
the same whichever way it came. The text is what the server prints with `DateStyle = ISO`,
`IntervalStyle = iso_8601`, `TimeZone = UTC`, `bytea_output = hex`, `extra_float_digits = 3` and
`client_encoding = UTF8`.
"""

from __future__ import annotations

from etl_core.values.copy_csv import csv_column_types, load_batch, read_csv
from etl_core.values.loading import load, load_missing

__all__ = ["csv_column_types", "load", "load_batch", "load_missing", "read_csv"]
