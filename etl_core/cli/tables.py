"""`etl resync`, `etl pause` and `etl resume`: what a person decides about tables."""

from __future__ import annotations

from collections.abc import Callable

from etl_core.cli.arguments import Arguments
from etl_core.cli.chosen import chosen_tables, is_not_paused
from etl_core.cli.exit_status import DONE
from etl_core.cli.texts import BY_WHOM, STATE_WORDS, put
from etl_core.control import PipelineControl
from etl_core.identifiers import TableName
from etl_core.state.store import TableStatus
from etl_core.state.table_state import TableState


def resync(pipeline: PipelineControl, arguments: Arguments) -> int:
    pipeline.store.migrate()
    chosen = chosen_tables(pipeline, arguments, is_not_paused)
    return _decide(chosen, pipeline.resync, lambda _: f"will be copied again {BY_WHOM}", "no table to copy again")


def pause(pipeline: PipelineControl, arguments: Arguments) -> int:
    pipeline.store.migrate()
    chosen = chosen_tables(pipeline, arguments, is_not_paused)
    return _decide(chosen, pipeline.pause, lambda _: "is paused; its data stays as it is", "no table to pause")


def resume(pipeline: PipelineControl, arguments: Arguments) -> int:
    def told(before: TableStatus) -> str:
        if _is_stopped(before):
            return f"is resumed: it will be copied {BY_WHOM}"
        return f"was neither paused nor failed: {STATE_WORDS[before.state]}"

    pipeline.store.migrate()
    return _decide(
        chosen_tables(pipeline, arguments, _is_stopped), pipeline.resume, told, "no table is paused or failed"
    )


def _is_stopped(status: TableStatus) -> bool:
    return status.state in (TableState.PAUSED, TableState.ERRORED)


def _decide(
    chosen: list[TableStatus],
    decide: Callable[[TableName], None],
    told: Callable[[TableStatus], str],
    nothing: str,
) -> int:
    for status in chosen:
        decide(status.name)
        put(f"{status.name} {told(status)}")
    if not chosen:
        put(nothing)
    return DONE
