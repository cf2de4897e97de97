"""`etl doctor --ddl-trigger`: the SQL of the event trigger, printed and run."""

from __future__ import annotations

import contextlib

from etl_core.cli.exit_status import DONE
from etl_core.cli.texts import put
from etl_core.control import PipelineControl
from etl_core.source.ddl_trigger import INSTALL, REMOVE, grant_to, run_statements
from etl_core.trigger_action import TriggerAction


def ddl_trigger(pipeline: PipelineControl, action: TriggerAction) -> int:
    with contextlib.closing(pipeline.source.connect("doctor")) as connection:
        statements = REMOVE if action is TriggerAction.REMOVE else INSTALL + grant_to(connection)
        put(statements)
        if action is TriggerAction.PRINT:
            return DONE
        run_statements(connection, statements)
    if action is TriggerAction.REMOVE:
        put("the event trigger is removed; renames and dropped columns are told from the catalog again")
    else:
        put("the event trigger is installed; streams that begin from now on read what it tells")
    return DONE
