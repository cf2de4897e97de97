"""One call of the benchmarks: the server, the sizes, and what several of them share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.load import SHAPES
from benchmarks.server import KINDS, Kind, Server, running_tls_server

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
    `shapes` of load and `kinds` of connection: where a benchmark measures several. `open` ends what was started.
    """

    server: Server
    directory: Path
    rows: int
    runs: int
    seconds: float | None = None
    shapes: tuple[str, ...] = tuple(SHAPES)
    kinds: tuple[Kind, ...] = KINDS
    open: ExitStack = field(default_factory=ExitStack)
    _made: dict[str, Any] = field(default_factory=dict)

    def server_for(self, kinds: Collection[Kind]) -> Server:
        """The server that takes all these kinds of connection; one with TLS is started when it is first needed."""
        if "tls" not in kinds:
            return self.server
        return self.once("tls server", lambda: self.open.enter_context(running_tls_server()))

    def once(self, name: str, make: Callable[[], Made]) -> Made:
        """What `make` made under this name, now or before."""
        if name not in self._made:
            self._made[name] = make()
        made: Made = self._made[name]
        return made
