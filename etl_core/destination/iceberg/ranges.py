"""What is read of dates and times in every engine that reads Iceberg."""

from __future__ import annotations

from etl_core.type_options import ValueRange

RANGE = ValueRange(first_day=-719_162, last_day=2_932_896, months=2**31 - 1, days=2**31 - 1)
"""Dates from 0001-01-01 to 9999-12-31. Values beyond it are stored where they are not infinite."""
