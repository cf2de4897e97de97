"""Everything for one pipeline in one call: assets, the stream and its sensor, checks, the resource."""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from etl_core.config_values import check_tables
from etl_core.identifiers import TableName
from etl_dagster import names
from etl_dagster.definitions.code_reference import caller, refer_to
from etl_dagster.definitions.key_clashes import tell_clashes
from etl_dagster.definitions.specs import build_slot_asset_spec, build_source_asset_specs
from etl_dagster.load_checks import check_replication, definition_errors, parse_tables
from etl_dagster.reports.checks import build_check_job, build_replication_checks
from etl_dagster.reports.compare_schedule import build_compare_job, build_compare_schedule
from etl_dagster.resources import PostgresReplicationResource
from etl_dagster.stream.control_job import build_control_job
from etl_dagster.stream.sensor import build_stream_sensor
from etl_dagster.stream.stream_job import StreamConfig, build_stream_job, build_stream_schedule
from etl_dagster.sync.assets import build_initial_sync_assets
from etl_dagster.sync.sync_step import Execute, run_step
from etl_dagster.translator import DagsterReplicationTranslator


def build_postgres_replication(
    replication: PostgresReplicationResource,
    *,
    tables: Sequence[str] | None = None,
    stream: StreamConfig | None = None,
    cron_schedule: str | None = None,
    max_lag: float = 60.0,
    compare_cron: str | None = None,
    compare_max_bytes: str = "50GiB",
    translator: DagsterReplicationTranslator | None = None,
    retry_policy: dg.RetryPolicy | None = None,
    op_tags: Mapping[str, Any] | None = None,
    stream_op_tags: Mapping[str, Any] | None = None,
    automation_condition: dg.AutomationCondition | None = None,
    freshness_policy: dg.FreshnessPolicy | None = None,
    copy_processes: Mapping[str, int] | None = None,
    sync_pool: str | None = None,
    stream_pool: str | None = None,
    default_sensor_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.STOPPED,
    execute: Execute = run_step,
) -> dg.Definitions:
    """The definitions of one pipeline. Nothing connects.

    `tables` (default: those of `replication`) are the assets; one of the two must name them, as loading a code
    location asks no database. `stream` gives the defaults of the stream job. With `cron_schedule` there is a schedule
    of micro-batches instead of the sensor; mode `micro_batch` needs it. `default_sensor_status` is that of sensor or
    schedule, whichever there is, when the code location is first loaded. `max_lag` is in seconds, for the check
    `replication_lag`. With `compare_cron` a schedule compares at each tick tables of `compare_max_bytes` at most, those
    first that wait longest (`equals_source`).
    `op_tags` are those of the initial syncs' steps, `stream_op_tags` of the step that streams. `copy_processes` names
    the large tables, which have steps of their own, and says how many processes copy each; the others share one step.
    `execute` yields what a step of the initial syncs does, as in `build_initial_sync_assets`.
    The concurrency pools are `<name>_sync` and `<name>_stream` unless named here; the stream's needs room for two.
    """
    check_replication(replication)
    found = _tables(replication, tables)
    stream = stream or StreamConfig()
    _check_mode(replication, stream, cron_schedule)
    sync_assets = build_initial_sync_assets(
        replication,
        found,
        translator=translator,
        retry_policy=retry_policy,
        op_tags=op_tags,
        automation_condition=automation_condition,
        freshness_policy=freshness_policy,
        copy_processes=copy_processes,
        pool=sync_pool,
        batches=None if cron_schedule is None else stream,
        max_lag=max_lag,
        execute=execute,
    )
    sync_assets = refer_to(caller(), sync_assets)
    tell_clashes(replication.name, sync_assets)
    sync_job = dg.define_asset_job(
        names.sync_job_name(replication.name),
        selection=dg.AssetSelection.assets(*sync_assets).without_checks(),
        description=f"Brings tables of pipeline {replication.name} up to now: copies those that need it.",
        tags={names.PIPELINE_TAG: replication.name},
    )
    stream_job = build_stream_job(
        replication,
        found,
        config=stream,
        translator=translator,
        max_lag=max_lag,
        op_tags=stream_op_tags,
        pool=stream_pool,
    )
    control_job = build_control_job(replication, found, translator=translator)
    checks = build_replication_checks(replication, found, translator=translator, max_lag=max_lag)
    schedules, sensors = [], []
    if cron_schedule is not None:
        status = dg.DefaultScheduleStatus[default_sensor_status.name]
        schedules.append(
            build_stream_schedule(replication, stream_job, cron_schedule, config=stream, default_status=status)
        )
    else:
        sensors.append(
            build_stream_sensor(
                replication,
                found,
                stream_job,
                lease_seconds=stream.lease_seconds,
                sync_job=sync_job,
                translator=translator,
                default_status=default_sensor_status,
            )
        )
    jobs = [sync_job, stream_job, control_job, *([build_check_job(replication, checks)] if checks else [])]
    if compare_cron is not None and found:
        jobs.append(build_compare_job(replication, found, translator))
        schedules.append(
            build_compare_schedule(
                replication,
                found,
                jobs[-1],
                compare_cron,
                max_bytes=compare_max_bytes,
                translator=translator,
                default_status=dg.DefaultScheduleStatus[default_sensor_status.name],
            )
        )
    return dg.Definitions(
        assets=[
            *build_source_asset_specs(replication, found, translator=translator),
            build_slot_asset_spec(replication, translator),
            *sync_assets,
        ],
        asset_checks=checks,
        jobs=jobs,
        sensors=sensors,
        schedules=schedules,
        resources={names.resource_key(replication.name): replication},
    )


def _check_mode(replication: PostgresReplicationResource, stream: StreamConfig, cron_schedule: str | None) -> None:
    # The sensor would start a run as soon as the last one has ended, thousands a day.
    if stream.mode == "micro_batch" and cron_schedule is None:
        raise dg.DagsterInvalidDefinitionError(
            f"pipeline {replication.name}: mode micro_batch needs cron_schedule, which says when a batch is fetched;"
            " give it, or mode stream"
        )


def _tables(replication: PostgresReplicationResource, tables: Sequence[str] | None) -> list[TableName]:
    if tables is not None:
        with definition_errors(replication.name):
            found = parse_tables(tables)
            if found:  # a publication that was asked for its tables may have none yet
                check_tables("tables", found)
        return found
    selection = replication.selection()
    if selection.is_open:
        raise dg.DagsterInvalidDefinitionError(
            f"pipeline {replication.name} does not say which tables it has: name them as tables=[…], in the resource or"
            " here; loading a code location asks no database (the component with discover: publication keeps what a"
            " refresh has asked)"
        )
    return list(selection.names)
