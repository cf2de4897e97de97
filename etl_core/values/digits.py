"""How many digits numbers have, and the DECIMAL that holds them: what `types.numeric: auto` decides by."""

from __future__ import annotations

import re
from dataclasses import dataclass

from etl_core.identifiers import TableName
from etl_core.type_options import DECIMAL_DIGITS

LEAST_FRACTION = 9
"""Digits after the point that a column has while they fit, whatever its values: most later values fit, too."""
_CAME = re.compile(
    r"(?P<column>.+): (?P<count>\d+) digits (?P<where>before|after) the point came, and DECIMAL\(", re.DOTALL
)
_NUMBER = re.compile(r"-?(\d+)(?:\.(\d+))?")


@dataclass(frozen=True, slots=True)
class Digits:
    """The most digits that any of some numbers has before the point, and after it without the last zeros."""

    whole: int = 0
    fraction: int = 0

    def also(self, other: Digits) -> Digits:
        """Of both numbers; these alone where 38 digits do not hold both."""
        both = Digits(max(self.whole, other.whole), max(self.fraction, other.fraction))
        return both if both.whole + both.fraction <= DECIMAL_DIGITS else self


def tell_more_digits(table: TableName, column: str, came: Digits, precision: int, scale: int) -> str:
    """Why a table is copied again: a number came that its DECIMAL does not hold. `digits_told` reads it."""
    is_fraction = came.fraction > scale
    count, where, has = (came.fraction, "after", scale) if is_fraction else (came.whole, "before", precision - scale)
    return (
        f"{_told(table)}{column}: {count} digits {where} the point came, and DECIMAL({precision},{scale}) holds {has}"
    )


def digits_told(reason: str | None, table: TableName) -> tuple[str, Digits] | None:
    """The column of the table, and the digits that came, of such a reason; None of another one.

    The number may be gone when the table is copied for it, and come again.
    """
    if reason is None or not reason.startswith(_told(table)):
        return None
    match = _CAME.match(reason, len(_told(table)))
    if match is None:
        return None
    count = int(match["count"])
    return match["column"], Digits(fraction=count) if match["where"] == "after" else Digits(whole=count)


def _told(table: TableName) -> str:
    return f"table {table}: column "


def digits_in(text: str) -> Digits:
    """Of the numbers in PostgreSQL's text of a numeric, or of an array of them; NaN and infinity have none."""
    found = _NUMBER.findall(text)
    return Digits(
        max((len(whole.lstrip("0")) for whole, _ in found), default=0),
        max((len(fraction.rstrip("0")) for _, fraction in found), default=0),
    )


def fraction_digits(digits: Digits, least: int = LEAST_FRACTION) -> int | None:
    """The s of the DECIMAL(38,s) that holds numbers of such digits, `least` while they fit; None if none holds them."""
    if digits.whole + digits.fraction > DECIMAL_DIGITS:
        return None
    return max(digits.fraction, min(least, DECIMAL_DIGITS - digits.whole))
