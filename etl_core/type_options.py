"""The options of types: what a column's values become where more than one type may have them.

Each option has a word, said for the pipeline, for tables or for a column. What the words do to a column is
`etl_core.shape.retyping`'s.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Final, TypeAlias

from etl_core.config_values import config_error, did_you_mean, unknown_key, wrong_kind

NUMERIC, JSON, ARRAYS, ENUM, RANGE = "numeric", "json", "arrays", "enum", "range"
UNKNOWN, OUT_OF_RANGE = "unknown", "out_of_range"
AUTO, VARCHAR, DOUBLE, REFUSE, STRUCT = "auto", "varchar", "double", "refuse", "struct"

DECIMAL_DIGITS = 38
"""Of the widest DECIMAL that every destination has."""
_DECIMAL = re.compile(r"decimal\s*\(\s*(\d{1,4})\s*(?:,\s*(\d{1,4})\s*)?\)", re.IGNORECASE)


_LIST = re.compile(r"list\s*\(\s*(\d{1,4})\s*\)", re.IGNORECASE)
_DIMENSIONS = 6
"""Of PostgreSQL's arrays at most (MAXDIM)."""


class OutOfRange(StrEnum):
    """What becomes of a value that its type at the destination cannot hold: NaN, infinity, a year too far away.

    REFUSE stops the table. CLAMP makes it the nearest value there is; NaN, which is near to none, becomes NULL. -0
    becomes 0 by both of the others, as PostgreSQL holds the two for equal.
    """

    REFUSE = "refuse"
    NULL = "null"
    CLAMP = "clamp"


@dataclass(frozen=True, slots=True)
class Calendar:
    """Of dates and timestamps the days since 1970-01-01 from `first_day` to `last_day`, and no infinity; of times those
    before 24:00:00; of intervals so many months and days, either way.
    """

    first_day: int
    last_day: int
    months: int
    days: int


@dataclass(frozen=True, slots=True)
class ValueRange:
    """What a destination holds of values, where that is less than Arrow does.

    `calendar` is about dates, times and intervals, None where all of them are held. A destination without
    `negative_zero` cannot tell -0 of a floating-point number from 0.
    """

    calendar: Calendar | None = None
    negative_zero: bool = True


class EveryValue(Enum):
    """What a destination holds that reads PostgreSQL's text into PostgreSQL's own types: all that the source has."""

    EVERY_VALUE = "every value"


EVERY_VALUE: Final = EveryValue.EVERY_VALUE
Held: TypeAlias = ValueRange | EveryValue | None
"""What a destination holds of a type's values: None for those that Arrow has."""


DEFAULTS: Mapping[str, str] = {
    NUMERIC: AUTO,
    JSON: "json",
    ARRAYS: "list",
    ENUM: VARCHAR,
    RANGE: VARCHAR,
    UNKNOWN: "bytes",
    OUT_OF_RANGE: OutOfRange.REFUSE.value,
}
"""Every option, with the word it has where nothing is said."""

_WORDS: Mapping[str, tuple[str, ...]] = {
    NUMERIC: (AUTO, VARCHAR, DOUBLE),
    JSON: ("json", VARCHAR),
    ARRAYS: ("list", "json"),
    ENUM: (VARCHAR, ENUM),
    RANGE: (VARCHAR, STRUCT),
    UNKNOWN: ("bytes", VARCHAR, REFUSE),
    OUT_OF_RANGE: tuple(choice.value for choice in OutOfRange),
}


def words_of(option: str) -> tuple[str, ...]:
    """The words of `option`, but for those with numbers in them."""
    return _WORDS[option]


def decimal_digits(word: str) -> tuple[int, int] | None:
    """Precision and scale of `decimal(p,s)`, None for another word of `numeric`."""
    match = _DECIMAL.fullmatch(word)
    return None if match is None else (int(match[1]), int(match[2] or 0))


def list_dimensions(word: str) -> int | None:
    """n of `list(n)`, 1 for `list`, None for another word of `arrays`."""
    match = _LIST.fullmatch(word)
    return int(match[1]) if match else 1 if word == DEFAULTS[ARRAYS] else None


def read_types(where: str, given: object) -> Mapping[str, str]:
    """The words by option, each spelled in one way. Raises ConfigError with the dotted field."""
    if not isinstance(given, Mapping):
        raise wrong_kind(where, "a mapping", given)
    for option in given:
        if option not in DEFAULTS:
            raise unknown_key(f"{where}.{option}", list(DEFAULTS), hint=f"known here: {', '.join(DEFAULTS)}")
    return {option: read_word(f"{where}.{option}", option, word) for option, word in given.items()}


def read_word(where: str, option: str, given: object) -> str:
    """A word of `option`. None, as which YAML reads null, is `null` where there is that word."""
    words = _WORDS[option]
    word = OutOfRange.NULL.value if given is None and OutOfRange.NULL.value in words else given
    if not isinstance(word, str):
        raise wrong_kind(where, "text", word)
    if word in words:
        return word
    if option == ARRAYS:
        return _list_word(where, word)
    digits = decimal_digits(word) if option == NUMERIC else None
    if digits is None:
        known = ", ".join((*words, "decimal(p,s)") if option == NUMERIC else words)
        raise config_error(where, f"is {word!r}", hint=did_you_mean(word, words) or f"use {known}")
    precision, scale = digits
    if not (1 <= precision <= DECIMAL_DIGITS and scale <= precision):
        raise config_error(
            where,
            f"is {word!r}",
            hint=f"write decimal(p,s) with p from 1 to {DECIMAL_DIGITS} digits in all, s of them after the point",
        )
    return f"decimal({precision},{scale})"


def _list_word(where: str, word: str) -> str:
    count = list_dimensions(word)
    if count is None or not 1 <= count <= _DIMENSIONS:
        hint = f"use list, json, or list(n) for arrays that all have n dimensions, {_DIMENSIONS} at most"
        raise config_error(where, f"is {word!r}", hint=hint)
    return DEFAULTS[ARRAYS] if count == 1 else f"list({count})"
