"""One call of the benchmarks: the server, the sizes, and what several of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.server import Server

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Result:
    """Figures by key, and what explains them."""

    figures: Mapping[str, float]
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Session:
    """`rows` is the size of a backlog, a table that is copied has twice as many; `runs` is how many pairs.

    `seconds`: how long transactions are made where a latency is measured; None: as long as that benchmark says.
    """

    server: Server
    directory: Path
    rows: int
    runs: int
    seconds: float | None = None
    _made: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, make: Callable[[], Made]) -> Made:
        """What `make` made under this name, now or before."""
        if name not in self._made:
            self._made[name] = make()
        made: Made = self._made[name]
        return made
