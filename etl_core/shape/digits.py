"""The digits after the point of numerics by `types.numeric: auto`: decided by a copy, carried by the stream.

A column's numerics are DECIMAL(38,s) at the destination, all of one s, which is stored with the table's schema
(`Column.fraction_digits`). The stream never changes it: a value that has more digits has the table copied again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from etl_core.errors import TableError
from etl_core.schema import pg_types
from etl_core.schema.alterations import origins
from etl_core.schema.pg_types import numeric_precision, under_domains
from etl_core.schema.table import Column, TableSchema
from etl_core.shape.retyping import is_counted
from etl_core.shape.rules import Rules
from etl_core.type_options import DECIMAL_DIGITS
from etl_core.values.digits import LEAST_FRACTION, Digits, digits_in, fraction_digits
from etl_core.values.numeric import is_declared
from etl_core.write_mode import WriteMode


def carry_digits(schema: TableSchema, known: TableSchema, rules: Rules) -> TableSchema:
    """`schema`, as the source describes it, with the digits that the destination, which has the table as `known`, has.

    Text stays text. Of a new column it is what the rows of before hold that counts, or what it declared before.
    """
    origin = origins({column.name: column.attnum for column in known.columns}, schema.columns)
    before = {column.name: column for column in known.columns}

    def digits_of(column: Column) -> int | None:
        if not rules.counts_digits(column, schema):
            return None
        was = before[origin[column.name]] if column.name in origin else None
        if was is not None and is_counted(was):
            return was.fraction_digits
        declared = digits_in(column.missing_value or "") if was is None else _declared(was)
        decided = fraction_digits(declared)
        # A default that no DECIMAL holds is met when it is loaded.
        return LEAST_FRACTION if decided is None else decided

    return with_digits(schema, {column.name: digits_of(column) for column in schema.columns})


def columns_to_count(schema: TableSchema, stored: TableSchema | None, rules: Rules) -> tuple[Column, ...]:
    """The columns of which a copy must count the digits. `stored` is the table as the destination has it, if it does.

    Where rows of the past are kept that nobody can count any more, what is text stays text.
    """
    columns = tuple(column for column in schema.columns if rules.counts_digits(column, schema))
    if stored is None or rules.write_mode is WriteMode.MIRROR:
        return columns
    before = _before(schema, stored)
    return tuple(
        column
        for column in columns
        if column.name not in before
        or not is_counted(before[column.name])
        or before[column.name].fraction_digits is not None
    )


def decide_digits(
    schema: TableSchema, stored: TableSchema | None, rules: Rules, found: Mapping[str, Digits]
) -> TableSchema:
    """`schema` with the digits that hold what was found in each column, and no fewer than the destination had.

    Raises TableError for a column whose values no DECIMAL holds.
    """
    before = {} if stored is None else _before(schema, stored)
    keeps_past = rules.write_mode is not WriteMode.MIRROR
    decided: dict[str, int | None] = {}
    for name, digits in found.items():
        was = before.get(name)
        had = 0 if was is None else was.fraction_digits or _declared(was).fraction
        if keeps_past:
            digits = Digits(digits.whole, max(digits.fraction, had))
        decided[name] = fraction_digits(digits, max(LEAST_FRACTION, had))
        if decided[name] is None:
            raise _too_many(schema, name, found[name], digits.fraction)
    return with_digits(schema, decided)


def with_digits(schema: TableSchema, digits: Mapping[str, int | None]) -> TableSchema:
    """`schema` with the digits of each column by name; itself, where it has them."""
    if all(column.fraction_digits == digits.get(column.name) for column in schema.columns):
        return schema
    columns = tuple(replace(column, fraction_digits=digits.get(column.name)) for column in schema.columns)
    return replace(schema, columns=columns)


def _before(schema: TableSchema, stored: TableSchema) -> dict[str, Column]:
    """What the columns of `schema` that were there before were, by their names of now."""
    was = {column.name: column for column in stored.columns}
    origin = origins({column.name: column.attnum for column in stored.columns}, schema.columns)
    return {name: was[before] for name, before in origin.items()}


def _declared(column: Column) -> Digits:
    """Of a numeric(p,s) that 38 digits hold, or an array of them; of other types none."""
    base, modifier = under_domains(column.type, column.type_modifier)
    if base.element is not None:
        base, modifier = under_domains(base.element, modifier)
    if base.oid != pg_types.NUMERIC or not is_declared(modifier):
        return Digits()
    precision, scale = numeric_precision(modifier) or (0, 0)
    return Digits(max(precision - scale, 0), max(scale, 0))


def _too_many(schema: TableSchema, name: str, digits: Digits, fraction: int) -> TableError:
    """`fraction` are the digits after the point that the column must have, for rows of the past as well."""
    past = "" if fraction == digits.fraction else f", and {fraction} are kept for rows of the past"
    return TableError(
        f"column {name} of table {schema.name} holds numbers of up to {digits.whole} digits before the point and "
        f"{digits.fraction} after it{past}, and a DECIMAL has {DECIMAL_DIGITS} digits in all: the table is not copied",
        table=str(schema.name),
        hint=f"set types.numeric: varchar for column {name}, which loses nothing, or double, which rounds",
    )
