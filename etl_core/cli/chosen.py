"""The tables that a command is about: by name, by pattern, or all."""

from __future__ import annotations

from collections.abc import Callable

from etl_core.cli.arguments import Arguments
from etl_core.control import PipelineControl
from etl_core.errors import ConfigError
from etl_core.identifiers import TableName
from etl_core.state.store import TableStatus
from etl_core.state.table_state import TableState


def chosen_tables(
    pipeline: PipelineControl, arguments: Arguments, concerns: Callable[[TableStatus], bool]
) -> list[TableStatus]:
    """Those that are named, as they are; of those that a pattern matches, or of all, the ones it `concerns`.

    Each is there once. Raises ConfigError for a name or pattern that is no table's, before anything is done to one.
    """
    known = pipeline.store.tables()
    found = {status.table_id: status for status in known if arguments.all and concerns(status)}
    for entry in arguments.tables:
        if isinstance(entry, TableName):
            status = pipeline.find(entry)
            found[status.table_id] = status
            continue
        matched = [status for status in known if entry.matches(status.name)]
        if not matched:
            names = ", ".join(str(status.name) for status in known[:8]) or "none"
            raise ConfigError(
                f"no table of pipeline {pipeline.config.pipeline} matches {entry}", hint=f"its tables: {names}"
            )
        found.update({status.table_id: status for status in matched if concerns(status)})
    return list(found.values())


def is_not_paused(status: TableStatus) -> bool:
    """What is paused is taken up again by a person who names it, or by `etl resume`."""
    return status.state is not TableState.PAUSED
