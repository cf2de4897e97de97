"""The job that streams: an op, in process, in one of two modes; and a schedule for batches every few minutes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import dagster as dg
from pydantic import Field

from etl_core.errors import EtlError
from etl_core.identifiers import TableName
from etl_dagster import names
from etl_dagster.failures import failure_of
from etl_dagster.load_checks import check_replication
from etl_dagster.translator import DagsterReplicationTranslator, ReplicatedTableProps

if TYPE_CHECKING:
    from etl_dagster.resources import PostgresReplicationResource


class StreamConfig(dg.Config):
    """What the launchpad of the stream job offers."""

    mode: Literal["stream", "micro_batch"] = Field(
        default="stream",
        description="stream: until a successor takes over. micro_batch: up to where the source is now, then end.",
    )
    lease_seconds: float = Field(
        default=900.0,
        gt=0,
        description="stream: how long until a successor is wanted; until one is there it goes on.",
    )
    report_every_seconds: float = Field(
        default=30.0, gt=0, description="At most one materialisation per changed table in so many seconds."
    )
    heartbeat_every_seconds: float = Field(
        default=900.0, gt=0, description="A table without changes is reported after so many seconds, same data version."
    )


def build_stream_job(
    replication: "PostgresReplicationResource",
    tables: Sequence[TableName],
    *,
    config: StreamConfig | None = None,
    translator: DagsterReplicationTranslator | None = None,
    max_lag: float = 60.0,
    op_tags: Mapping[str, Any] | None = None,
    pool: str | None = None,
) -> dg.JobDefinition:
    """The job `<pipeline>_stream`. `config` gives the launchpad's defaults; `pool` is another than `<pipeline>_stream`.

    `max_lag` is in seconds: with its reports the run evaluates `replication_lag` against it.

    In process, so that a run costs one process; Dagster does not retry it, the sensor starts its successor. For the
    same reason `op_tags` are the run's too: what reads them (the queue, a launcher) looks at the process they are for.
    """
    check_replication(replication)
    op_tags = op_tags or {}
    translator = translator or DagsterReplicationTranslator()
    props = {table: ReplicatedTableProps(table, replication) for table in tables}
    keys = {table: translator.get_asset_spec(prop).key for table, prop in props.items()}
    sources = {table: translator.get_source_asset_spec(prop).key for table, prop in props.items()}
    slot = translator.get_slot_asset_spec(replication).key
    key = names.resource_key(replication.name)
    job_name = names.stream_job_name(replication.name)

    @dg.op(
        name=f"stream_{replication.name}",
        required_resource_keys={key},
        pool=pool or names.stream_pool(replication.name),
        tags=op_tags,
        out=dg.Out(dg.Nothing),
    )
    def stream(context: dg.OpExecutionContext, config: StreamConfig) -> None:
        from etl_dagster.stream.stream_run import StreamRun

        run = StreamRun(
            getattr(context.resources, key),
            keys,
            context,
            sources=sources,
            slot=slot,
            max_lag=max_lag,
            report_every=config.report_every_seconds,
            heartbeat_every=config.heartbeat_every_seconds,
        )
        try:
            if config.mode == "micro_batch":
                context.log.info(f"everything up to {run.drain()} is in the destination")
            else:
                run.stream(config.lease_seconds)
        except EtlError as error:
            raise failure_of(error, replication.name) from error

    @dg.job(
        name=job_name,
        description=f"Streams the changes of pipeline {replication.name} into the destination.",
        executor_def=dg.in_process_executor,
        tags={**op_tags, names.PIPELINE_TAG: replication.name, "dagster/max_retries": "0"},
        config=dg.RunConfig(ops={f"stream_{replication.name}": config or StreamConfig()}),
    )
    def stream_job() -> None:
        stream()

    return stream_job


def build_stream_schedule(
    replication: "PostgresReplicationResource",
    job: dg.JobDefinition,
    cron_schedule: str,
    *,
    config: StreamConfig | None = None,
    default_status: dg.DefaultScheduleStatus = dg.DefaultScheduleStatus.STOPPED,
) -> dg.ScheduleDefinition:
    """Batches at fixed times instead of a stream that stands: the job with `config`, in mode `micro_batch`."""
    batch = (config or StreamConfig()).model_copy(update={"mode": "micro_batch"})
    return dg.ScheduleDefinition(
        name=names.stream_schedule_name(replication.name),
        job=job,
        cron_schedule=cron_schedule,
        default_status=default_status,
        run_config=dg.RunConfig(ops={f"stream_{replication.name}": batch}),
    )
