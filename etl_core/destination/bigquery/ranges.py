"""What BigQuery holds of dates, times and intervals.

https://cloud.google.com/bigquery/docs/reference/standard-sql/data-types
"""

from __future__ import annotations

from etl_core.type_options import Calendar, ValueRange

CALENDAR = Calendar(first_day=-719_162, last_day=2_932_896, months=120_000, days=3_660_000)
"""Dates from 0001-01-01 to 9999-12-31."""
RANGE = ValueRange(CALENDAR)
