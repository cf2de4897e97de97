"""What Snowflake holds of dates and times: https://docs.snowflake.com/en/sql-reference/data-types-datetime"""

from __future__ import annotations

from etl_core.type_options import Calendar, ValueRange

CALENDAR = Calendar(first_day=-719_162, last_day=2_932_896, months=2**31, days=2**31)
"""Dates from 0001-01-01 to 9999-12-31; intervals are text."""
RANGE = ValueRange(CALENDAR)
