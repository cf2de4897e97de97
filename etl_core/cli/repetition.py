"""Failures that repeat: said at once, then ever less often, so that one line does not fill a log."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from etl_core.cli.texts import duration, plural
from etl_core.errors import EtlError

FIRST_PAUSE = 10.0
"""Seconds between the first two lines about the same failure. Each pause is twice the one before it …"""
LONGEST_PAUSE = 600.0
"""… up to this one."""
_AT_ONCE = 0.05
"""A wait, in seconds, too short to be told."""
_REMEMBERED = 100


@dataclass(slots=True)
class _Told:
    at: float
    pause: float
    unsaid: int = 0


class Repetition:
    """Of failures that are tried again, which are to be said, and in which words. `clock` gives growing seconds.

    Failures that differ in numbers only, such as the server process that has the slot, are the same.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._told: dict[str, _Told] = {}

    def sentence(self, error: EtlError, wait: float) -> str | None:
        """What to say of `error`, tried again after `wait` seconds; None if it was said lately."""
        now, key = self._clock(), re.sub(r"[0-9A-F]+/[0-9A-F]+|\d+", "0", str(error))
        told = self._told.pop(key, None)
        if told is None or now >= told.at + 2 * told.pause:
            self._remember(key, _Told(now, FIRST_PAUSE))
            return _sentence(error, wait, "")
        if now < told.at + told.pause:
            told.unsaid += 1
            self._remember(key, told)
            return None
        self._remember(key, _Told(now, min(2 * told.pause, LONGEST_PAUSE)))
        return _sentence(error, wait, f" ({plural(told.unsaid + 1, 'time')} in {duration(now - told.at)})")

    def _remember(self, key: str, told: _Told) -> None:
        self._told[key] = told
        if len(self._told) > _REMEMBERED:
            del self._told[next(iter(self._told))]


def _sentence(error: EtlError, wait: float, how_often: str) -> str:
    again = "trying again" if wait < _AT_ONCE else f"trying again in {duration(wait)}"
    return f"{error}{how_often}; {again}" + (f" → {error.hint}" if error.hint else "")
