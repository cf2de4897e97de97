"""`etl approve`: lists what waits for a person, or lets tables do what they wait for."""

from __future__ import annotations

from etl_core.cli.arguments import Arguments
from etl_core.cli.exit_status import DONE
from etl_core.cli.texts import BY_WHOM, put, waiting_since
from etl_core.control import PipelineControl


def approve(pipeline: PipelineControl, arguments: Arguments) -> int:
    pipeline.store.migrate()
    if not arguments.tables:
        _list(pipeline)
        return DONE
    waiting = [pipeline.find(name) for name in arguments.tables]  # all of them exist, or none is touched
    for status in waiting:
        pipeline.approve(status)
        put(f"{status.name} is approved: {status.error}")
        what = "goes on with the changes that were kept" if status.sync_slot else "will be copied again"
        put(f"    it {what} {BY_WHOM}")
    return DONE


def _list(pipeline: PipelineControl) -> None:
    waiting = pipeline.waiting()
    for status in waiting:
        put(f"{status.name}  {waiting_since(status)}")
        put(f"    {status.error}")
        if status.hint:
            put(f"    → {status.hint}")
    if not waiting:
        put("no table waits for approval")
