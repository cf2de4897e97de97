"""What a command line says, once it is understood."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from etl_core.identifiers import TableName
from etl_core.table_pattern import TablePattern
from etl_core.trigger_action import TriggerAction

CONFIG = Path("etl.yaml")
"""The configuration where none is named."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """A command line that was understood. `seconds` is `--for`; `tables` are those named or matched, none for all.

    `file` is where a backup goes, a `sources.yml`, or a configuration to be checked. `schema` is the table whose
    versions are shown. `ddl_trigger` is what becomes of the event trigger. `source` and `to` are the connection string
    and the destination's URL of `etl init`, which may hold passwords. `shell` is the one to be completed in.
    """

    command: str
    config: Path = CONFIG
    verbose: int = 0
    quiet: bool = False
    tables: Sequence[TableName | TablePattern] = ()
    all: bool = False
    until_caught_up: bool = False
    seconds: float | None = None
    json: bool = False
    yes: bool = False
    file: Path | None = None
    schema: TableName | None = None
    ddl_trigger: TriggerAction | None = None
    source: str | None = None
    to: str | None = None
    shell: str | None = None

    @property
    def is_bounded(self) -> bool:
        """Whether a stream is to end by itself."""
        return self.until_caught_up or self.seconds is not None
