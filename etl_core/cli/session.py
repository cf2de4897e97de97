"""What a long command works with. Its results are printed when the display is gone."""

from __future__ import annotations

from dataclasses import dataclass, field

from etl_core.cli.arguments import Arguments
from etl_core.cli.display import Display
from etl_core.cli.interrupt import Interrupt
from etl_core.cli.texts import put
from etl_core.pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class Session:
    """One run of a long command. `results` go to stdout at its end, line by line."""

    pipeline: Pipeline
    arguments: Arguments
    display: Display
    interrupt: Interrupt
    results: list[str] = field(default_factory=list)

    def print_results(self) -> None:
        for line in self.results:
            put(line)
