"""How long to wait before the next try."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits that double from `first` to `longest` seconds, each shortened by up to a quarter at random.

    The randomness keeps a hundred workers that lost the same server from coming back in the same moment.
    """

    first: float = 0.2
    longest: float = 30.0
    tries: int = 8

    def waits(self) -> Iterator[float]:
        """One wait, in seconds, for every try after the first."""
        wait = min(self.first, self.longest)
        for _ in range(self.tries - 1):
            yield wait * (1 - random.random() / 4)  # noqa: S311 no secret depends on it
            wait = min(wait * 2, self.longest)
