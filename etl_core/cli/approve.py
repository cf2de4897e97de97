"""`etl approve`: lists what waits for a person, or lets tables do what they wait for."""

from __future__ import annotations

from etl_core.cli.arguments import Arguments
from etl_core.cli.chosen import chosen_tables
from etl_core.cli.exit_status import DONE
from etl_core.cli.texts import BY_WHOM, approved, put, told_ignored, waiting_since
from etl_core.control import PipelineControl


def approve(pipeline: PipelineControl, arguments: Arguments) -> int:
    pipeline.store.migrate()
    ignored = pipeline.ignored()
    chosen = chosen_tables(
        pipeline, arguments, lambda status: status.waits_for is not None or status.table_id in ignored
    )
    if not chosen:
        _list(pipeline)
        return DONE
    for status in chosen:
        pipeline.approve(status)
        put(f"{status.name} is approved: {approved(status, ignored.get(status.table_id, ()))}")
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
    names = {status.table_id: status.name for status in pipeline.store.tables()}
    for table_id, changes in pipeline.ignored().items():
        put(f"{names[table_id]}  {told_ignored(changes)}")
        put(f"    → to copy it again as it is at the source: etl approve {names[table_id]}")
    if not waiting:
        put("no table waits for approval")
