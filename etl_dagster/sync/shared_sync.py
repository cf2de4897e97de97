"""A table that several processes copy together: the graph behind its asset.

    copy ───────────────────────────┐
    share ──▶ help[1] help[2] … ────┴──▶ report

`copy` is an initial sync like any other: it keeps the snapshot, copies, publishes. When it has cut the table into
ranges, `share` lets as many `help` steps begin as are of use; each takes ranges until none is left. Where only one step
runs at a time, `copy` comes first, does everything itself, and `share` finds nothing left to do.
"""

import inspect
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import dagster as dg

from etl_core.errors import EtlError, StateConflict
from etl_core.identifiers import TableId, TableName
from etl_core.state.table_state import TableState
from etl_dagster.failures import failure_of
from etl_dagster.reports.table_report import SourceSizes
from etl_dagster.sync.bring_up import as_it_is
from etl_dagster.sync.step import CopyCost, CopyProgress, Synced
from etl_dagster.sync.sync_op import TableSync, copy_table, interruptible_step
from etl_dagster.sync.sync_step import SyncStep

if TYPE_CHECKING:
    from etl_core.state.store import StateStore
    from etl_dagster.resources import PostgresReplicationResource

_LOOK_EVERY = 0.5
_PATIENCE = 60.0
"""How long a copy that has not begun is waited for: its step may have failed, or wait for a process that we hold."""


def helpers_wanted(
    replication: "PostgresReplicationResource", table: TableName, token: str, most: int, stop: threading.Event
) -> int:
    """How many processes can help with the copy called `token`, once it offers its ranges; 0 when it is over.

    Also 0 if no copy of the table begins within a minute.
    """
    store = replication.state.open(replication.name)
    try:
        store.migrate()
        waited = 0.0
        while waited < _PATIENCE:
            status = next((status for status in store.tables() if status.name == table), None)
            offer = None if status is None else store.shared_copies.find(status.table_id)
            if offer is not None and offer.token == token:
                return 0 if offer.is_over else min(most, len(store.shared_copies.ranges(offer)) - 1)
            if status is None or status.state is not TableState.DATA_SYNC:
                waited += _LOOK_EVERY
            if stop.wait(_LOOK_EVERY):
                break
        return 0
    finally:
        store.close()


def help_with(
    replication: "PostgresReplicationResource",
    table: TableName,
    token: str,
    progress: CopyProgress,
    stop: threading.Event,
) -> str:
    """Copies ranges of the copy called `token` until none is left; returns what was done, or why not, in a sentence.

    A helper that cannot go on fails nothing: what it had is copied by the others.
    """
    with replication.pipeline(observer=progress.observer(), stop=stop) as pipeline:
        try:
            result = pipeline.help_sync(table, token)
        except EtlError as error:
            if stop.is_set():
                raise
            return f"stopped helping, the others go on: {error}"
    return f"{result.rows:,} rows of {table} copied here" if result else f"the copy of {table} needed no more help"


def what_was_copied(replication: "PostgresReplicationResource", table: TableName, token: str) -> Synced:
    """What the copy called `token` did, or, if it found the table copied, what the destination has of it."""
    with replication.pipeline() as pipeline:
        store, status = pipeline.store, pipeline.find(table)
        schema = store.schema(status.table_id)
        offer = store.shared_copies.find(status.table_id)
        if offer is not None and schema is not None and offer.token == token and offer.snapshot_lsn is not None:
            ranges = store.shared_copies.ranges(offer)
            cost = CopyCost(sum(held.part.size for held in ranges), _seconds_of_copy(store, status.table_id))
            shape = pipeline.shapes.of(schema[1])
            return Synced(offer.snapshot_lsn, shape, sum(held.rows or 0 for held in ranges), cost)
        found = as_it_is(pipeline, status, pipeline.destination.positions().tables.get(status.table_id))
        if found is None:
            raise StateConflict(f"{table} was set back after it was copied", hint="materialise it again")
        return found


def _seconds_of_copy(store: "StateStore", table_id: TableId) -> float:
    """How long the last finished copy took, by the table's history."""
    moves = store.history(table_id)
    times = iter((move.to_state, move.at) for move in moves)
    finished = next(at for state, at in times if state is TableState.FINISHED_COPY)
    began = next(at for state, at in times if state is TableState.DATA_SYNC)
    return (finished - began).total_seconds()


def shared_sync_graph(sync: TableSync, upstream: Iterable[str], processes: int) -> dg.GraphDefinition:
    """The graph of a table that up to `processes` processes copy."""
    inputs = sorted(upstream)
    resources = sync.resource_keys

    @dg.op(
        name=f"{sync.name}__copy",
        description=f"Copies {sync.table} into the destination, behind the swap; other steps may help.",
        ins={name: dg.In(dg.Nothing) for name in inputs},
        out=dg.Out(dg.Nothing),
        required_resource_keys=resources,
        tags={"dagster/priority": "1", **sync.tags},
        retry_policy=sync.retry_policy,
        pool=sync.pool,
    )
    def copy(context: dg.AssetExecutionContext) -> Iterator[Any]:
        replication = sync.replication(context)

        def run(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult]:
            copy_table(context, replication, sync.table, context.run.run_id, sync.batch(context, replication))
            yield from ()  # `report` says it: Dagster wants all that a graph does to lead to its asset

        yield from sync.execute(context, SyncStep(replication, (sync.table,), run))

    @dg.op(
        name=f"{sync.name}__share",
        description=f"Lets helpers begin when the copy of {sync.table} has been cut into ranges.",
        ins={name: dg.In(dg.Nothing) for name in inputs},
        out=dg.DynamicOut(dg.Nothing),
        required_resource_keys=resources,
        tags=sync.tags,
    )
    def share(context: dg.OpExecutionContext) -> Iterator[dg.DynamicOutput]:
        stop, replication = threading.Event(), sync.replication(context)
        wanted = interruptible_step(
            context,
            replication.name,
            CopyProgress(),
            stop,
            lambda: helpers_wanted(replication, sync.table, context.run_id, processes - 1, stop),
        )
        context.log.info(f"{wanted or 'no'} more processes help to copy {sync.table}")
        for number in range(1, wanted + 1):
            yield dg.DynamicOutput(None, mapping_key=str(number))

    @dg.op(
        name=f"{sync.name}__help",
        description=f"Copies a share of {sync.table}.",
        ins={"shared": dg.In(dg.Nothing)},
        out=dg.Out(dg.Nothing),
        required_resource_keys=resources,
        tags=sync.tags,
        pool=sync.pool,
    )
    def help_copy(context: dg.OpExecutionContext) -> None:
        progress, stop = CopyProgress(), threading.Event()
        replication = sync.replication(context)
        context.log.info(
            interruptible_step(
                context,
                replication.name,
                progress,
                stop,
                lambda: help_with(replication, sync.table, context.run_id, progress, stop),
            )
        )

    @dg.op(
        name=f"{sync.name}__report",
        description=f"Says what was copied of {sync.table}.",
        ins={"copied": dg.In(dg.Nothing), "helped": dg.In(dg.Nothing)},
        out=dg.Out(dg.Nothing, io_manager_key=sync.io_manager_key),
        required_resource_keys=resources,
        tags=sync.tags,
    )
    def report(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        replication = sync.replication(context)
        try:
            synced = what_was_copied(replication, sync.table, context.run.run_id)
        except EtlError as error:
            raise failure_of(error, replication.name) from error
        with SourceSizes(replication) as sizes:
            return sync.result(context, replication, synced, sizes.of(synced.shape.source.table_id))

    def compose(**inputs: Any) -> Any:
        shares = share.alias("share")(**inputs)
        helped = shares.map(lambda shared: help_copy.alias("help")(shared=shared))
        return report.alias("report")(copied=copy.alias("copy")(**inputs), helped=helped.collect())

    # The inputs are named after what is upstream, which only the caller knows.
    parameters = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in inputs]
    compose.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return dg.graph(
        name=sync.name,
        description=f"Copies {sync.table} into the destination, behind the swap, by up to {processes} processes.",
        ins={name: dg.GraphIn() for name in inputs},
        out=dg.GraphOut(),
    )(compose)
