"""A schedule for `equals_source` by size: each tick compares as many tables as a budget of bytes allows, in turn.

Comparing reads both sides and holds the stream meanwhile, so that all tables at every tick would be too much for large
ones, and one schedule a table too much to look after.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from etl_core.config_values import parse_size
from etl_core.errors import EtlError
from etl_core.identifiers import TableName
from etl_dagster import names
from etl_dagster.hints import sentence
from etl_dagster.load_checks import check_replication, definition_errors, positive
from etl_dagster.resources import PostgresReplicationResource
from etl_dagster.translator import DagsterReplicationTranslator, ReplicatedTableProps

EQUALS_SOURCE = "equals_source"
COMPARED_TAG = "etl/compared"
"""On the schedule's runs: the tables that they compare, one a line."""
_LOOK_BACK = 200
_LOOK_TIMEOUT = 3


def build_compare_job(
    replication: PostgresReplicationResource,
    tables: Sequence[TableName],
    translator: DagsterReplicationTranslator | None = None,
) -> Any:  # the type of what `define_asset_job` gives is not public
    """The job `<pipeline>_compare`: `equals_source` of all tables, or of those that a run selects."""
    keys = _check_keys(replication, tables, translator)
    return dg.define_asset_job(
        names.compare_job_name(replication.name),
        selection=dg.AssetSelection.checks(*keys.values()),
        executor_def=dg.in_process_executor,
        description=f"Compares the rows of tables of {replication.name} with the source's, at one LSN.",
        tags={names.PIPELINE_TAG: replication.name},
    )


def build_compare_schedule(
    replication: PostgresReplicationResource,
    tables: Sequence[TableName],
    job: Any,
    cron_schedule: str,
    *,
    max_bytes: str = "50GiB",
    translator: DagsterReplicationTranslator | None = None,
    default_status: dg.DefaultScheduleStatus = dg.DefaultScheduleStatus.STOPPED,
) -> dg.ScheduleDefinition:
    """Compares at each tick the tables whose last comparison is longest ago, of at most `max_bytes` on the source's
    disk together; one table at least.

    `job` is that of `build_compare_job`. A tick asks the source for the sizes, and is skipped while that is away.
    """
    check_replication(replication)
    with definition_errors(replication.name):
        positive("max_bytes", parse_size)(max_bytes)
    keys = _check_keys(replication, tables, translator)
    resource = names.resource_key(replication.name)

    @dg.schedule(
        name=names.compare_schedule_name(replication.name),
        job=job,
        cron_schedule=cron_schedule,
        default_status=default_status,
        required_resource_keys={resource},
        description=f"Compares up to {max_bytes} of tables at a time, the one that waits longest first.",
    )
    def compare(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        try:
            sizes = _sizes(getattr(context.resources, resource), tables)
        except EtlError as error:
            return dg.SkipReason(sentence(error, replication.name))
        if not sizes:
            return dg.SkipReason("no table has been copied yet")
        chosen = choose(sizes, _last_compared(context.instance, job.name, len(tables)), parse_size(max_bytes))
        return dg.RunRequest(
            asset_check_keys=[keys[table] for table in chosen],
            tags={COMPARED_TAG: "\n".join(map(str, chosen))},
        )

    return compare


def choose(sizes: Mapping[TableName, int], last: Mapping[TableName, float], budget: int) -> list[TableName]:
    """The tables to compare now: those compared longest ago, or never, as long as they fit; the first in any case."""
    chosen: list[TableName] = []
    for table in sorted(sizes, key=lambda table: (last.get(table, 0.0), str(table))):
        if chosen and sizes[table] > budget:
            break  # a smaller one that is compared more often would push a large one back for ever
        chosen.append(table)
        budget -= sizes[table]
    return chosen


def _check_keys(
    replication: PostgresReplicationResource,
    tables: Sequence[TableName],
    translator: DagsterReplicationTranslator | None,
) -> dict[TableName, dg.AssetCheckKey]:
    translator = translator or DagsterReplicationTranslator()
    props = {table: ReplicatedTableProps(table, replication) for table in tables}
    return {
        table: dg.AssetCheckKey(translator.get_asset_spec(prop).key, EQUALS_SOURCE) for table, prop in props.items()
    }


def _sizes(replication: PostgresReplicationResource, tables: Sequence[TableName]) -> dict[TableName, int]:
    """Bytes of the tables that were copied. Raises EtlError."""
    import contextlib

    from etl_core.source.sizes import table_sizes

    with contextlib.closing(replication.state.open(replication.name)) as store:
        store.migrate()
        statuses = {status.table_id: status.name for status in store.tables() if status.name in {*tables}}
    with replication.connect("compare", timeout=_LOOK_TIMEOUT) as connection:
        sizes = table_sizes(connection, [*statuses])
    return {name: sizes.get(table_id, 0) for table_id, name in statuses.items()}


def _last_compared(instance: dg.DagsterInstance, job: str, tables: int) -> dict[TableName, float]:
    """When a run that compares each of so many tables was last created, in seconds since 1970."""
    # A run compares one at least: with fewer looked at, some would seem never compared again and again.
    last: dict[TableName, float] = {}
    for record in instance.get_run_records(dg.RunsFilter(job_name=job), limit=_LOOK_BACK + tables):
        for table in filter(None, record.dagster_run.tags.get(COMPARED_TAG, "").splitlines()):
            last.setdefault(TableName.parse(table), record.create_timestamp.timestamp())
    return last
