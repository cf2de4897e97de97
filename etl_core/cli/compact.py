"""`etl compact [TABLE…]`: the tables of a lake have few large files again."""

from __future__ import annotations

from etl_core.cli.arguments import Arguments
from etl_core.cli.chosen import chosen_tables
from etl_core.cli.exit_status import DONE, FAILED
from etl_core.cli.failures import say
from etl_core.cli.texts import put
from etl_core.control import PipelineControl
from etl_core.destination.compaction import Compacted
from etl_core.destination.protocol import CompactingDestination
from etl_core.errors import ConfigError


def compact(pipeline: PipelineControl, arguments: Arguments) -> int:
    destination = pipeline.destination
    if not isinstance(destination, CompactingDestination):
        raise ConfigError(
            f"etl compact merges the files of a lake, and destination type {pipeline.config.destination.type} keeps its"
            " tables in order by itself",
            hint="there is nothing to do",
        )
    named = [status.name for status in chosen_tables(pipeline, arguments, lambda _: True)]
    status = DONE
    for each in destination.compact(named or None):
        if each.error is None:
            put(f"{each.table} {_told(each)}")
        else:
            say(f"{each.table} was not compacted, and is as it was: {each.error}", each.error.hint)
            status = FAILED
    return status


def _told(compacted: Compacted) -> str:
    if compacted.files is None:
        return "is compacted"
    return f"is compacted: {compacted.files} files were replaced" if compacted.files else "has few files already"
