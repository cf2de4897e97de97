"""The step that brings tables up to now, one or many small ones, and what their materialisations say."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import dagster as dg

from etl_core.errors import EtlError, PermanentError
from etl_core.identifiers import TableName
from etl_core.lsn import Lsn
from etl_dagster import names
from etl_dagster.failures import failure_of, failure_of_tables
from etl_dagster.hints import sentence
from etl_dagster.reports.last_reports import NEVER, last_reports
from etl_dagster.reports.table_report import (
    SourceSizes,
    TableFacts,
    copied_text,
    found_text,
    reported_columns,
    schema_change,
    source_observation,
    table_metadata,
)
from etl_dagster.resources import PostgresReplicationResource
from etl_dagster.sync.bring_up import BringUp, bring_up_table
from etl_dagster.sync.materialize_options import MATERIALIZE_KEY, MaterializeOptions
from etl_dagster.sync.step import CopyProgress, Synced, run_interruptibly, yield_interruptibly
from etl_dagster.sync.step_batch import Batches, StepBatch
from etl_dagster.sync.sync_step import Execute, SyncStep, run_step

_T = TypeVar("_T")

_LOG_EVERY = 2.0
"""Seconds between two lines of progress while the step streams a batch."""
_LARGE = 2**30
"""Bytes on the source's disk from which a table is worth a step of its own."""


@dataclass(frozen=True, slots=True)
class TableSync:
    """One table's initial sync: the table, its assets' keys, and how its steps are to be run."""

    pipeline: str
    table: TableName
    key: dg.AssetKey
    source: dg.AssetKey
    io_manager_key: str | None
    tags: Mapping[str, Any]
    retry_policy: dg.RetryPolicy | None
    pool: str
    batches: Batches | None = None
    """For a pipeline with a schedule of batches: a step streams one itself where its tables wait for the stream."""
    execute: Execute = run_step

    @property
    def name(self) -> str:
        return names.sync_op_name(self.pipeline, self.table)

    @property
    def resource_keys(self) -> set[str]:
        return {names.resource_key(self.pipeline), MATERIALIZE_KEY}

    def replication(self, context: Any) -> PostgresReplicationResource:
        """The pipeline's resource as the step has it, with what the launchpad says."""
        replication: PostgresReplicationResource = getattr(context.resources, names.resource_key(self.pipeline))
        connections = launch_options(context).connections
        return replication if connections is None else replication.model_copy(update={"copy_connections": connections})

    def batch(self, context: Any, replication: PostgresReplicationResource) -> StepBatch | None:
        """The batch that the step may stream."""
        op_context = context.op_execution_context if isinstance(context, dg.AssetExecutionContext) else context
        return None if self.batches is None else self.batches.of_step(replication, op_context)

    def result(
        self, context: Any, replication: PostgresReplicationResource, synced: Synced, size: int | None
    ) -> dg.MaterializeResult:
        """What the step gives; `size` is in bytes on the source's disk.

        Logs first how the columns differ from those last reported, and what the source has.
        """
        before = last_reports(context.instance, [self.key]).get(self.key, NEVER)
        if synced.rows is None and before.version == str(synced.lsn):
            synced = replace(synced, rows=before.rows)  # the stream has counted
        elif before.run_id == context.run.run_id and before.version and Lsn.parse(before.version) > synced.lsn:
            # The batch that this step streamed has got further by now, and has reported it.
            synced = Synced(Lsn.parse(before.version), synced.shape, before.rows, None)
        metadata = _metadata(self, replication, synced, size)
        change = schema_change(self.key, metadata, reported_columns(before.metadata))
        if change is not None:
            context.log_event(change)
        if synced.cost is not None:
            context.log_event(source_observation(self.source, self.table, synced.shape.source, size))
        return dg.MaterializeResult(
            asset_key=self.key,
            metadata=metadata,
            data_version=dg.DataVersion(str(synced.lsn)),
        )


def launch_options(context: Any) -> MaterializeOptions:
    """What the launchpad says for all steps of the run."""
    options: MaterializeOptions = getattr(context.resources, MATERIALIZE_KEY)
    return options


def sync_op(syncs: Sequence[TableSync], upstream: Iterable[str]) -> dg.OpDefinition:
    """The op of tables that one process brings up; `upstream` names its inputs, which carry nothing.

    Of several, a run may select some, and each one that fails fails alone: the others are materialised as they end.
    Those that failed and may succeed are tried again within the step, as Dagster would begin with all of them again.
    """
    first, is_alone = syncs[0], len(syncs) == 1
    what = str(first.table) if is_alone else f"{len(syncs)} tables"

    # @dg.asset and @dg.multi_asset name the op's inputs and outputs after asset keys, and refuse a table's name that
    # has to be quoted. Nothing: whatever IO manager the table is read with does not write it.
    @dg.op(
        name=first.name if is_alone else names.sync_group_op_name(first.pipeline, first.table),
        description=f"Brings {what} up to now: copied behind the swap where needed, else streamed.",
        ins={name: dg.In(dg.Nothing) for name in upstream},
        out={
            name: dg.Out(dg.Nothing, io_manager_key=sync.io_manager_key, is_required=is_alone)
            for name, sync in outputs_of(syncs).items()
        },
        required_resource_keys=first.resource_keys,
        tags=first.tags,
        retry_policy=first.retry_policy if is_alone else None,
        pool=first.pool,
    )
    def bring_up(context: dg.AssetExecutionContext) -> Iterator[Any]:
        wanted = {sync.table: sync for sync in syncs if sync.key in context.selected_asset_keys}
        replication = first.replication(context)
        step = SyncStep(replication, tuple(wanted), lambda context: run(context, replication, wanted))
        yield from first.execute(context, step)

    def run(
        context: dg.AssetExecutionContext,
        replication: PostgresReplicationResource,
        wanted: Mapping[TableName, TableSync],
    ) -> Iterator[dg.MaterializeResult]:
        failed: dict[TableName, EtlError] = {}
        batch = first.batch(context, replication)
        retry_policy = None if is_alone else first.retry_policy
        with SourceSizes(replication) as sizes:
            for table, outcome in _bring_up(context, replication, list(wanted), retry_policy, batch):
                if isinstance(outcome, EtlError):
                    failed[table] = outcome
                    if len(wanted) > 1:  # of one the step's failure says it
                        context.log.error(f"{table}: {sentence(outcome, replication.name)}")
                    continue
                if not is_alone and outcome.cost is not None and outcome.cost.size >= _LARGE:
                    context.log.info(
                        f"{table} has {outcome.cost.size / 2**30:,.1f} GiB: give it a step of its own by"
                        f' copy_processes={{"{table}": 1}}, or several processes'
                    )
                yield wanted[table].result(context, replication, outcome, sizes.of(outcome.shape.source.table_id))
        if failed:
            raise failure_of_tables(
                {table: failed[table] for table in wanted if table in failed}, len(wanted), replication.name
            )

    return bring_up


def outputs_of(syncs: Sequence[TableSync]) -> dict[str, TableSync]:
    """The tables by the names of the op's outputs."""
    return {"result": syncs[0]} if len(syncs) == 1 else {f"table_{n}": sync for n, sync in enumerate(syncs, 1)}


def _bring_up(
    context: Any,
    replication: PostgresReplicationResource,
    tables: Sequence[TableName],
    retry_policy: dg.RetryPolicy | None,
    batch: StepBatch | None,
) -> Iterator[tuple[TableName, Synced | EtlError]]:
    """Each table with what became of it, in the order in which they end; several at a time."""
    progress, stop = CopyProgress(), threading.Event()
    full_refresh = launch_options(context).full_refresh

    def once(wanted: Sequence[TableName], tell: Callable[[TableName, Synced | EtlError], None]) -> None:
        try:
            with replication.pipeline(observer=progress.observer(), stop=stop) as pipeline:
                together = BringUp(pipeline, progress, full_refresh=full_refresh, batch=batch)

                def one(table: TableName) -> None:
                    try:
                        tell(table, together.table(table))
                    except EtlError as error:
                        tell(table, error)

                with ThreadPoolExecutor(pipeline.config.copy.workers, thread_name_prefix="sync") as pool:
                    for _ in pool.map(one, wanted):
                        pass
        except EtlError as error:  # before any table was looked at: the source is away, the configuration is wrong
            for table in wanted:
                tell(table, error)

    def work(give: Callable[[tuple[TableName, Synced | EtlError]], None]) -> None:
        try:
            bring_up_all(give)
        finally:
            if batch is not None:
                batch.end()

    def bring_up_all(give: Callable[[tuple[TableName, Synced | EtlError]], None]) -> None:
        left, tries = list(tables), 0
        while left:
            may_retry = retry_policy is not None and tries < retry_policy.max_retries
            again: dict[TableName, EtlError] = {}

            def tell(
                table: TableName, outcome: Synced | EtlError, again: Any = again, may_retry: Any = may_retry
            ) -> None:
                if may_retry and isinstance(outcome, EtlError) and not isinstance(outcome, PermanentError):
                    again[table] = outcome
                else:
                    give((table, outcome))

            once(left, tell)
            left, tries = list(again), tries + 1
            if left and retry_policy is not None:
                wait = retry_policy.calculate_delay(tries)
                for table, error in again.items():
                    progress.say(
                        f"{table}: {error} (tried again in {wait:.0f} s, {tries} of {retry_policy.max_retries})"
                    )
                stop.wait(wait)

    yield from yield_interruptibly(work, stop, _reporter(context, progress, batch))


def copy_table(
    context: Any,
    replication: PostgresReplicationResource,
    table: TableName,
    share: str | None = None,
    batch: StepBatch | None = None,
) -> Synced:
    """`bring_up_table` as a step: its progress in the step's log, its errors as Dagster's."""
    progress, stop = CopyProgress(), threading.Event()
    full_refresh = launch_options(context).full_refresh
    return interruptible_step(
        context,
        replication.name,
        progress,
        stop,
        lambda: bring_up_table(
            replication, table, full_refresh=full_refresh, progress=progress, stop=stop, share=share, batch=batch
        ),
        batch,
    )


def interruptible_step(
    context: Any,
    pipeline: str,
    progress: CopyProgress,
    stop: threading.Event,
    work: Callable[[], _T],
    batch: StepBatch | None = None,
) -> _T:
    """What `work` gives, which ends soon after `stop` is set. Logs `progress` meanwhile; raises dg.Failure."""
    try:
        return run_interruptibly(work, stop, _reporter(context, progress, batch))
    except EtlError as error:
        raise failure_of(error, pipeline) from error


def _reporter(context: Any, progress: CopyProgress, batch: StepBatch | None) -> Callable[[], None]:
    logged_at = time.monotonic()

    def log() -> None:
        nonlocal logged_at
        logged_at = time.monotonic()
        line = progress.line()
        if line is not None:
            context.log.info(line)

    def log_now_and_then() -> None:
        if time.monotonic() - logged_at >= _LOG_EVERY:
            log()

    def report() -> None:
        log()
        if batch is not None:
            batch.stream_if_asked(log_now_and_then)

    return report


def _metadata(
    sync: TableSync, replication: PostgresReplicationResource, synced: Synced, size: int | None
) -> dict[str, Any]:
    cost = synced.cost
    if cost is None or synced.rows is None:
        summary = found_text(synced.rows, synced.lsn)
    else:
        summary = copied_text(synced.rows, synced.lsn)
    facts = TableFacts(synced.lsn, synced.shape, synced.rows, size)
    metadata = table_metadata(replication.destination, sync.table, sync.source, facts, summary)
    metadata["etl/brought_up_by"] = "stream" if cost is None else "copy"
    if cost is not None and synced.rows is not None:
        metadata["etl/bytes_copied"] = cost.size
        metadata["etl/duration_seconds"] = round(cost.seconds, 3)
        metadata["etl/rows_per_second"] = round(synced.rows / cost.seconds)
    return metadata
