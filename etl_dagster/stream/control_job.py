"""The job `<pipeline>_control`: what a person decides about a pipeline, from the launchpad instead of the command line.

Each action first says in the log what it costs. What cannot be undone needs the pipeline's name in `confirm`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import dagster as dg

from etl_core.errors import ConfigError, EtlError
from etl_core.identifiers import TableName
from etl_dagster import names
from etl_dagster.failures import failure_of
from etl_dagster.load_checks import check_replication, parse_tables
from etl_dagster.stream import presence
from etl_dagster.stream.control_actions import Approve, ControlConfig, Pause, Reset, Resume, Resync, Teardown, Verify
from etl_dagster.translator import DagsterReplicationTranslator, ReplicatedTableProps

if TYPE_CHECKING:
    from etl_core.control import PipelineControl
    from etl_core.state.store import TableStatus
    from etl_core.state.table_state import TableState
    from etl_dagster.resources import PostgresReplicationResource

ACTION_TAG = "etl/control"
"""On every run of the job: its action."""
_SHOWN = 50


def build_control_job(
    replication: "PostgresReplicationResource",
    tables: Sequence[TableName],
    *,
    translator: DagsterReplicationTranslator | None = None,
) -> dg.JobDefinition:
    """The job `<pipeline>_control`, in process. The launchpad has `resync` of all failed tables filled in."""
    check_replication(replication)
    translator = translator or DagsterReplicationTranslator()
    keys = {table: translator.get_asset_spec(ReplicatedTableProps(table, replication)).key for table in tables}
    key = names.resource_key(replication.name)
    op_name = f"control_{replication.name}"

    @dg.op(
        name=op_name,
        required_resource_keys={key},
        out=dg.Out(dg.Nothing),
        description="Does one action: resync, approve, pause, resume, verify, reset or teardown.",
        tags={"kind": "postgres"},
    )
    def control(context: dg.OpExecutionContext, config: ControlConfig) -> None:
        context.instance.add_run_tags(context.run_id, {ACTION_TAG: config.action.kind})
        try:
            _Actions(getattr(context.resources, key), keys, context).do(config)
        except EtlError as error:
            raise failure_of(error, replication.name) from error

    @dg.job(
        name=names.control_job_name(replication.name),
        description=f"Repairs pipeline {replication.name}, or ends it: resync, approve, pause, resume, verify, reset, "
        "teardown.",
        executor_def=dg.in_process_executor,
        tags={names.PIPELINE_TAG: replication.name, "dagster/max_retries": "0"},
        config={"ops": {op_name: {"config": {"action": {"resync": {"tables": []}}}}}},
    )
    def control_job() -> None:
        control()

    return control_job


class _Actions:
    """The actions of one run."""

    def __init__(
        self,
        replication: "PostgresReplicationResource",
        keys: Mapping[TableName, dg.AssetKey],
        context: dg.OpExecutionContext,
    ) -> None:
        self._replication = replication
        self._keys = keys
        self._context = context
        self._log = context.log

    def do(self, config: ControlConfig) -> None:
        """Raises EtlError, or dg.Failure for what was not confirmed or differs."""
        action = config.action
        if isinstance(action, Verify):
            self._verify(action)
            return
        with self._replication.control() as control:
            if isinstance(action, Resync):
                self._resync(control, action)
            elif isinstance(action, Approve):
                self._approve(control, action)
            elif isinstance(action, Pause):
                self._pause(control, action)
            elif isinstance(action, Resume):
                self._resume(control, action)
            elif isinstance(action, Reset):
                self._reset(control, action)
            else:
                self._teardown(control, action)

    # --- tables -----------------------------------------------------------------------------------------------

    def _resync(self, control: "PipelineControl", action: Resync) -> None:
        from etl_core.state.table_state import TableState

        chosen = _chosen(control, action.tables, TableState.ERRORED)
        if not action.tables:  # what waits for approval is not decided by the way
            chosen = [status for status in chosen if status.waits_for is None]
        if not chosen:
            self._log.info("no table has failed: nothing is copied again")
            return
        self._tell_copies(control, chosen)
        for status in chosen:
            control.resync(status.name)
            self._log.info(f"{status.name} {self._copied_when()}")

    def _approve(self, control: "PipelineControl", action: Approve) -> None:
        from etl_core.cli.texts import approved, waiting_since

        if not action.tables:
            for status in control.waiting():
                self._log.info(f"{status.name} {waiting_since(status)}: {status.error}")
            raise ConfigError(
                "no table is named, so nothing is approved; the log lists those that wait",
                hint="list the tables to approve: tables: [public.orders]",
            )
        ignored = control.ignored()
        for status in _chosen(control, action.tables):
            control.approve(status)
            what = "goes on with the changes that were kept" if status.sync_slot else self._copied_when()
            told = approved(status, ignored.get(status.table_id, ()))
            self._log.info(f"{status.name} is approved: {told}; it {what}")

    def _pause(self, control: "PipelineControl", action: Pause) -> None:
        if not action.tables:
            raise ConfigError("no table is named", hint="list the tables to pause: tables: [public.orders]")
        chosen = _chosen(control, action.tables)
        self._log.info("no changes are kept for a paused table; to resume it is to copy it again:")
        self._tell_copies(control, chosen)
        for status in chosen:
            control.pause(status.name)
            self._log.info(f"{status.name} is paused; its data stays as it is")

    def _resume(self, control: "PipelineControl", action: Resume) -> None:
        from etl_core.cli.texts import STATE_WORDS
        from etl_core.state.table_state import TableState

        stopped = (TableState.PAUSED, TableState.ERRORED)
        chosen = _chosen(control, action.tables, TableState.PAUSED)
        for status in (status for status in chosen if status.state not in stopped):
            self._log.info(f"{status.name} is neither paused nor failed: {STATE_WORDS[status.state]}")
        resumed = [status for status in chosen if status.state in stopped]
        if not resumed:
            self._log.info("no table is to be resumed")
            return
        self._tell_copies(control, resumed)
        for status in resumed:
            control.resume(status.name)
            self._log.info(f"{status.name} is resumed: it {self._copied_when()}")

    def _verify(self, action: Verify) -> None:
        from etl_core.cli.verify import comparison_lines
        from etl_core.pipeline import Pipeline
        from etl_dagster.reports.checks import logging_observer
        from etl_dagster.reports.verdicts import judge_comparison

        with Pipeline(self._replication.config(), observer=logging_observer(self._log)) as pipeline:
            pipeline.prepare()
            chosen = _chosen(pipeline, action.tables)
            self._log.info("both sides are read whole, and the stream is held meanwhile:")
            self._tell_sizes(pipeline, chosen)
            comparisons = pipeline.verify([status.name for status in chosen])
        lines = comparison_lines(comparisons)
        self._log.info("\n".join(lines))
        for comparison in comparisons:
            if comparison.table in self._keys:
                verdict = judge_comparison(comparison)
                self._context.log_event(
                    dg.AssetCheckEvaluation(  # type: ignore[arg-type]  # Dagster takes it, and does not say so
                        asset_key=self._keys[comparison.table],
                        check_name="equals_source",
                        passed=verdict.passed,
                        severity=verdict.severity,
                        description=verdict.description,
                        metadata=dict(verdict.numbers),
                    )
                )
        advice = []
        if any(comparison.content and not comparison.is_equal for comparison in comparisons):
            advice.append("the log names the keys; copy the tables again: resync")
        left_out = [comparison for comparison in comparisons if not comparison.content]
        if left_out:
            told = [f"{comparison.table} was {comparison.problem}" for comparison in left_out[:_SHOWN]]
            if len(left_out) > _SHOWN:
                told.append(f"{len(left_out) - _SHOWN} more")
            if len(left_out) < len(comparisons):
                told.append("to compare the others alone, name them")
            advice.append("; ".join(told))
        if advice:
            raise dg.Failure(f"{lines[-1]} → {'; '.join(advice)}", allow_retries=False)

    # --- the whole pipeline -----------------------------------------------------------------------------------

    def _reset(self, control: "PipelineControl", action: Reset) -> None:
        planned = control.plan_teardown()
        copied = [status for status in control.store.tables() if not _is_paused(status)]
        self._log.info(
            "reset drops the slots, begins at the source's present position, and has every table copied again:"
        )
        for slot in planned.slots:
            self._log.info(f"drops replication slot {slot.name}; the next stream run creates another one")
        for left in planned.left:
            self._log.warning(f"leaves {left}")
        if planned.is_elsewhere:
            self._log.warning("the source is another cluster than before: its tables are new ones, to be materialised")
        self._tell_copies(control, copied)
        self._refuse_unless_confirmed(action.confirm, "reset")
        self._refuse_while_streamed(planned.reader_pid)
        for dropped in control.reset():
            self._log.info(f"dropped {dropped}")
        for status in copied if not planned.is_elsewhere else ():
            self._log.info(f"{status.name} {self._copied_when()}")

    def _teardown(self, control: "PipelineControl", action: Teardown) -> None:
        from etl_core.cli.teardown import plan_lines

        planned = control.plan_teardown()
        lines = plan_lines(control, planned)
        if not lines and not planned.left:
            self._log.info("there is nothing to tear down: this pipeline has created nothing")
            return
        for line in lines:
            self._log.info(f"teardown will {line}")
        for left in planned.left:
            self._log.warning(f"teardown will leave {left}")
        self._log.info("the destination keeps its tables; to replicate them again later is to copy them all:")
        self._tell_sizes(control, control.store.tables())
        self._refuse_unless_confirmed(action.confirm, "teardown")
        self._refuse_while_streamed(planned.reader_pid)
        for dropped in control.teardown():
            self._log.info(f"dropped {dropped}")
        self._log.info(
            "the sensor starts nothing until a table is materialised; turn it off if the pipeline is to stay gone"
        )

    def _refuse_unless_confirmed(self, confirm: str, action: str) -> None:
        name = self._replication.name
        if confirm != name:
            raise dg.Failure(
                f"{action} was not confirmed, so nothing was done; the log says what it would do → launch it with "
                f"{action}: {{confirm: {name}}}",
                allow_retries=False,
            )

    def _refuse_while_streamed(self, reader_pid: int | None) -> None:
        name = self._replication.name
        # One that waits for its next try reads nothing now: it would make anew what is dropped.
        with self._replication.connect("control") as connection:
            runs = sorted(presence.sessions(connection, name))
        if reader_pid is not None or runs:
            who = f"run {runs[0]}" if runs else f"server process {reader_pid}"
            raise dg.Failure(
                f"pipeline {name} is streaming ({who}), so nothing was done → turn off its sensor or schedule, "
                "end that run or process, then launch this again",
                allow_retries=False,
            )

    # --- what it costs ----------------------------------------------------------------------------------------

    def _tell_copies(self, control: "PipelineControl", tables: "Sequence[TableStatus]") -> None:
        self._tell_sizes(control, tables)
        self._log.info("until a table's new copy is complete readers keep the old one, as of its last change")

    def _tell_sizes(self, control: "PipelineControl", tables: "Sequence[TableStatus]") -> None:
        from etl_core.cli.texts import duration, plural, size

        estimates = control.copy_estimates(tables)
        for one in estimates[:_SHOWN]:
            rows = "an unknown number of rows" if one.rows is None else f"about {plural(one.rows, 'row')}"
            on_disk = "" if one.size is None else f", {size(one.size)} at the source"
            last = "no copy of it is known" if one.seconds is None else f"the last copy took {duration(one.seconds)}"
            self._log.info(f"{one.table.name}: {rows}{on_disk}; {last}")
        rows_of_all = sum(one.rows or 0 for one in estimates)
        known = [one.seconds for one in estimates if one.seconds is not None]
        self._log.info(
            f"together: {plural(len(estimates), 'table')}, about {plural(rows_of_all, 'row')}"
            f", {size(sum(one.size or 0 for one in estimates))} at the source"
            + (f"; the longest of the last copies took {duration(max(known))}" if known else "")
        )

    def _copied_when(self) -> str:
        sensor = names.stream_sensor_name(self._replication.name)
        return f"will be copied again by {sensor} if it is on; else materialise it"


def _chosen(
    control: "PipelineControl", tables: Sequence[str], state: "TableState | None" = None
) -> "list[TableStatus]":
    """Those named, all of which exist, or none is touched; without names all that are in `state`, if given."""
    if tables:
        return [control.find(name) for name in parse_tables(tables)]
    return [status for status in control.store.tables() if state is None or status.state is state]


def _is_paused(status: "TableStatus") -> bool:
    return status.state.name == "PAUSED"
