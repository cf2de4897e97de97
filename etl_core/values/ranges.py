"""Values within the range that a destination has of them, where that is less than Arrow's."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from etl_core.type_options import Calendar, OutOfRange, ValueRange
from etl_core.values.text import Array, Mask, bitmap, fixed_width, numbers_of, validity, view_buffer

DAY = 86_400_000_000
"""Microseconds."""
INTERVAL = np.dtype([("months", np.int32), ("days", np.int32), ("nanoseconds", np.int64)])
"""A value of Arrow's month_day_nano_interval."""


def within(values: Array, policy: OutOfRange, limits: ValueRange) -> Array:
    """The values, with NULL or the nearest one within `limits` for each that is beyond; `policy` is not REFUSE."""
    if not limits.negative_zero:
        values = without_negative_zero(values)
    return values if limits.calendar is None else _within_calendar(values, policy, limits.calendar)


def without_negative_zero(values: Array) -> Array:
    """The same values, but 0 for each -0 in them; the array itself where there is none."""
    kind = values.type
    if pa.types.is_floating(kind):
        numbers = numbers_of(values, np.float32 if pa.types.is_float32(kind) else np.float64)
        if not (np.signbit(numbers) & (numbers == 0)).any():
            return values
        return fixed_width(kind, np.add(numbers, 0.0, dtype=numbers.dtype), validity(values))
    if isinstance(values, pa.StructArray):
        fields = [values.field(at) for at in range(kind.num_fields)]
        found = [without_negative_zero(each) for each in fields]
        if all(new is old for new, old in zip(found, fields, strict=True)):
            return values
        return pa.Array.from_buffers(kind, len(values), [bitmap(validity(values))], children=found)
    if isinstance(values, pa.ListArray | pa.FixedSizeListArray):
        elements = values.values
        found_there = without_negative_zero(elements)
        if found_there is elements:
            return values
        buffers = values.buffers()[: 1 if pa.types.is_fixed_size_list(kind) else 2]
        return pa.Array.from_buffers(kind, len(values), buffers, offset=values.offset, children=[found_there])
    return values


def has_floats(kind: pa.DataType) -> bool:
    """Whether values of the type are floating-point numbers, or have some."""
    return pa.types.is_floating(kind) or any(has_floats(kind.field(at).type) for at in range(kind.num_fields))


def _within_calendar(values: Array, policy: OutOfRange, limits: Calendar) -> Array:
    kind = values.type
    if pa.types.is_interval(kind):
        return _within_intervals(values, policy, limits)
    if pa.types.is_date(kind):
        return _within(values, numbers_of(values, np.int32), (limits.first_day, limits.last_day), policy)
    if pa.types.is_timestamp(kind):
        bounds = limits.first_day * DAY, (limits.last_day + 1) * DAY - 1
        return _within(values, numbers_of(values, np.int64), bounds, policy)
    if pa.types.is_time(kind):
        return _within(values, numbers_of(values, np.int64), (0, DAY - 1), policy)
    return values


def _within(
    values: Array, numbers: NDArray[np.int32] | NDArray[np.int64], bounds: tuple[int, int], policy: OutOfRange
) -> Array:
    beyond: Mask = (numbers < bounds[0]) | (numbers > bounds[1])
    if not beyond.any():
        return values
    return fixed_width(values.type, np.clip(numbers, *bounds), _left(values, beyond, policy))


def _within_intervals(values: Array, policy: OutOfRange, limits: Calendar) -> Array:
    first, size = values.offset * INTERVAL.itemsize, len(values) * INTERVAL.itemsize
    parts = view_buffer(values.buffers()[1], np.uint8)[first : first + size].view(INTERVAL).copy()
    months = np.clip(parts["months"], -limits.months, limits.months)
    days = np.clip(parts["days"], -limits.days, limits.days)
    beyond: Mask = (months != parts["months"]) | (days != parts["days"])
    if not beyond.any():
        return values
    parts["months"], parts["days"] = months, days
    return fixed_width(values.type, parts, _left(values, beyond, policy))


def _left(values: Array, beyond: Mask, policy: OutOfRange) -> Mask | None:
    """Which of the values are not NULL in the end."""
    valid = validity(values)
    if policy is OutOfRange.CLAMP:
        return valid
    return ~beyond if valid is None else valid & ~beyond
