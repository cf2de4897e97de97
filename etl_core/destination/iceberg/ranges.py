"""What is read in every engine that reads Iceberg, and what DuckDB writes: its files have -0 as 0."""

from __future__ import annotations

from etl_core.type_options import Calendar, ValueRange

RANGE = ValueRange(
    Calendar(first_day=-719_162, last_day=2_932_896, months=2**31 - 1, days=2**31 - 1), negative_zero=False
)
"""Dates from 0001-01-01 to 9999-12-31. Values beyond it are stored where they are not infinite."""
