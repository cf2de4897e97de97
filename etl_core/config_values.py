"""The rules for single values of a pipeline's configuration: sizes, durations, limits, lists of tables.

Apart from `etl_core.config`, which loads libpq and SQLAlchemy: a Dagster code location checks its values with these
when it loads, which every run and every step waits for.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import TypeVar

from etl_core.errors import ConfigError

_T = TypeVar("_T")
_Choice = TypeVar("_Choice", bound=StrEnum)

WHOLE_URL = "URL"
"""The key under which a destination's options have its whole URL, which the type reads. No option can be called so."""

_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)
_SIZE_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
_DURATION_UNITS = {
    "": Decimal(1),
    "ms": Decimal("0.001"),
    "s": Decimal(1),
    "m": Decimal(60),
    "min": Decimal(60),
    "h": Decimal(3600),
}
_KINDS = {dict: "a mapping", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}


def config_error(where: str, what: str, *, hint: str | None = None) -> ConfigError:
    """The error for the dotted field `where`; its message is `where: what`."""
    return ConfigError(f"{where}: {what}", field=where, hint=hint)


class UnknownKey(ConfigError):
    """A key that is not known. `meant` is the known one that is most like it, if one is."""

    meant: str | None = None


def unknown_key(where: str, known: Collection[str], *, what: str = "is unknown", hint: str | None = None) -> UnknownKey:
    """The error for the dotted field `where`, whose last part is not in `known`; `hint` is for what is like none."""
    word = where.rpartition(".")[2]
    error = UnknownKey(f"{where}: {what}", field=where, hint=did_you_mean(word, known) or hint)
    error.meant = _closest(word, known)
    return error


def did_you_mean(word: str, known: Collection[str]) -> str | None:
    """A hint that names the known word most like `word`, if one is."""
    close = _closest(word, known)
    return None if close is None else f"did you mean {close}?"


def _closest(word: str, known: Collection[str]) -> str | None:
    return next(iter(difflib.get_close_matches(word, known, n=1)), None)


def parse_size(text: str | int) -> int:
    """Bytes: `1048576`, `64MiB` (2**20 each) or `64MB` (10**6 each); B, kB, KiB, GB, GiB too. Raises ConfigError."""
    match = _NUMBER.fullmatch(str(text).strip())
    if match is None or (unit := _SIZE_UNITS.get(match[2].lower())) is None:
        raise ConfigError(f"{text!r} is not a size", hint="write bytes, or a number with a unit: 1048576, 64MiB, 64MB")
    return int(Decimal(match[1]) * unit)


def parse_duration(text: str | float) -> float:
    """Seconds: `1.5`, `1s`, `500ms`, `2m` (or `2min`), `1h`. Raises ConfigError."""
    match = _NUMBER.fullmatch(str(text).strip())
    if match is None or (unit := _DURATION_UNITS.get(match[2].lower())) is None:
        raise ConfigError(
            f"{text!r} is not a duration", hint="write seconds, or a number with a unit: 1s, 500ms, 2m, 1h"
        )
    return float(Decimal(match[1]) * unit)


def wrong_kind(where: str, wanted: str, value: object) -> ConfigError:
    """The error for a value of another kind than `wanted`; it names the kind, not the value."""
    hint = "put it into quotes" if wanted == "text" and not isinstance(value, dict | list) else None
    return config_error(where, f"must be {wanted}, not {_KINDS.get(type(value), type(value).__name__)}", hint=hint)


def as_text(where: str, value: object) -> str:
    """The text of the dotted field `where`. Raises ConfigError, as those below do."""
    if not isinstance(value, str):
        raise wrong_kind(where, "text", value)
    return value


def as_integer(where: str, value: object) -> int:
    """A whole number, also as text, as an environment variable gives it."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]+", value):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong_kind(where, "a whole number", value)
    return value


def as_flag(where: str, value: object) -> bool:
    """True or false, also as text."""
    if value in ("true", "false"):
        return value == "true"
    if not isinstance(value, bool):
        raise wrong_kind(where, "true or false", value)
    return value


def as_quantity(where: str, parse: Callable[[str], _T], value: object) -> _T:
    """A number, or text with a unit, which `parse` reads."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise wrong_kind(where, "a number with a unit", value)
    text = value if isinstance(value, str) else f"{Decimal(str(value)):f}"
    return in_field(where, parse, text)


def as_choice(where: str, kind: type[_Choice], value: object) -> _Choice:
    """One of the words of `kind`."""
    if not isinstance(value, str):
        raise wrong_kind(where, "text", value)
    try:
        return kind(value)
    except ValueError:
        hint = did_you_mean(value, list(kind)) or f"use {', '.join(kind)}"
        raise config_error(where, f"is {value!r}", hint=hint) from None


def in_field(where: str, parse: Callable[[str], _T], text: str) -> _T:
    """What `parse` makes of `text`; its error names the field."""
    try:
        return parse(text)
    except ConfigError as error:
        raise config_error(where, str(error), hint=error.hint) from None


ALL_PUBLISHED = "leave it out for all that the publication publishes"


def check_tables(where: str, tables: Sequence[object], *, instead: str = ALL_PUBLISHED) -> None:
    """Raises ConfigError for a list that is empty or names a table twice."""
    if not tables:
        raise config_error(where, "is empty", hint=f"name a table, or {instead}")
    seen: set[object] = set()
    for index, table in enumerate(tables):
        if table in seen:
            raise config_error(f"{where}[{index}]", f"{table} is listed twice")
        seen.add(table)


@dataclass(frozen=True, slots=True)
class BatchConfig:
    """When a batch is written: after `max_rows` rows, `max_bytes` bytes or `max_age` seconds, whichever is first.

    `kept_wal` is how many bytes of WAL one table that stopped may keep on the source; 0 keeps none.
    """

    max_rows: int = 100_000
    max_bytes: int = 16 * 2**20
    max_age: float = 1.0
    kept_wal: int = 2**30

    def __post_init__(self) -> None:
        check_positive("batch.max_rows", self.max_rows)
        check_positive("batch.max_bytes", self.max_bytes)
        check_positive("batch.max_age", self.max_age)
        if self.kept_wal < 0:
            raise config_error("batch.kept_wal", f"must not be below 0, but is {self.kept_wal}")


@dataclass(frozen=True, slots=True)
class CopyConfig:
    """The initial copy: `workers` tables at once, each over `connections_per_table` connections."""

    workers: int = 4
    connections_per_table: int = 4

    def __post_init__(self) -> None:
        check_positive("copy.workers", self.workers)
        check_positive("copy.connections_per_table", self.connections_per_table)


def check_positive(where: str, value: float) -> None:
    """Raises ConfigError for what is not above 0, and for infinity."""
    if not 0 < value < float("inf"):
        raise config_error(where, f"must be greater than 0, not {value}")
