"""`etl teardown`: drops what this pipeline created on the source, after it has said what that is and was told yes."""

from __future__ import annotations

import sys

from etl_core.cli.arguments import Arguments
from etl_core.cli.exit_status import DONE, FAILED
from etl_core.cli.texts import plural, put
from etl_core.control import PipelineControl
from etl_core.errors import ConfigError
from etl_core.replication.teardown import TeardownPlan


def teardown(pipeline: PipelineControl, arguments: Arguments) -> int:
    pipeline.store.migrate()
    planned = pipeline.plan_teardown()
    plan = plan_lines(pipeline, planned)
    if not plan and not planned.left:
        put(f"there is nothing to tear down: pipeline {pipeline.config.pipeline} has created nothing")
        return DONE
    if not arguments.yes and not sys.stdin.isatty():
        raise ConfigError(
            "teardown asks before it drops anything, and there is no terminal to ask on", hint="etl teardown --yes"
        )
    put(f"etl teardown of pipeline {pipeline.config.pipeline} will")
    for line in plan:
        put(f"  {line}")
    for line in planned.left:
        put(f"  leave {line}")
    put("The destination keeps its tables.")
    if not arguments.yes and not _is_confirmed():
        put("nothing was dropped")
        return FAILED
    for dropped in pipeline.teardown():
        put(f"dropped {dropped}")
    put(f"pipeline {pipeline.config.pipeline} is gone")
    return DONE


def plan_lines(pipeline: PipelineControl, planned: TeardownPlan) -> list[str]:
    """What `planned` drops and what is forgotten with it, each a verb and its object; empty if there is nothing."""
    store = pipeline.store
    lines = [f"drop replication slot {slot.name}" for slot in planned.slots]
    if planned.drops_publication:
        lines.append(f"drop publication {pipeline.source.publication}")
    tables = len(store.tables())
    if tables:
        lines.append(f"forget the state of {plural(tables, 'table')}")
    if not lines and store.source_identity() is not None:
        lines.append("forget which source it replicated")
    return lines


def _is_confirmed() -> bool:
    try:
        return input("Go on? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
