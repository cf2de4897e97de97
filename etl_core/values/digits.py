"""How many digits numbers have, and the DECIMAL that holds them: what `types.numeric: auto` decides by."""

from __future__ import annotations

import re
from dataclasses import dataclass

from etl_core.type_options import DECIMAL_DIGITS

LEAST_FRACTION = 9
"""Digits after the point that a column has while they fit, whatever its values: most later values fit, too."""
_NUMBER = re.compile(r"-?(\d+)(?:\.(\d+))?")


@dataclass(frozen=True, slots=True)
class Digits:
    """The most digits that any of some numbers has before the point, and after it without the last zeros."""

    whole: int = 0
    fraction: int = 0


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
