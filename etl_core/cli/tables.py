"""`etl resync`, `etl pause` and `etl resume`: what a person decides about single tables."""

from __future__ import annotations

from collections.abc import Callable

from etl_core.cli.arguments import Arguments
from etl_core.cli.exit_status import DONE
from etl_core.cli.texts import BY_WHOM, STATE_WORDS, put
from etl_core.control import PipelineControl
from etl_core.identifiers import TableName
from etl_core.state.store import TableStatus
from etl_core.state.table_state import TableState


def resync(pipeline: PipelineControl, arguments: Arguments) -> int:
    return _decide(pipeline, arguments, pipeline.resync, lambda _: f"will be copied again {BY_WHOM}")


def pause(pipeline: PipelineControl, arguments: Arguments) -> int:
    return _decide(pipeline, arguments, pipeline.pause, lambda _: "is paused; its data stays as it is")


def resume(pipeline: PipelineControl, arguments: Arguments) -> int:
    def told(before: TableStatus) -> str:
        if before.state in (TableState.PAUSED, TableState.ERRORED):
            return f"is resumed: it will be copied {BY_WHOM}"
        return f"was neither paused nor failed: {STATE_WORDS[before.state]}"

    return _decide(pipeline, arguments, pipeline.resume, told)


def _decide(
    pipeline: PipelineControl,
    arguments: Arguments,
    decide: Callable[[TableName], None],
    told: Callable[[TableStatus], str],
) -> int:
    pipeline.store.migrate()
    before = [pipeline.find(name) for name in arguments.tables]  # all of them exist, or none is touched
    for status in before:
        decide(status.name)
        put(f"{status.name} {told(status)}")
    return DONE
