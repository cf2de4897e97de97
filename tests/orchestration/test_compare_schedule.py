"""The schedule that compares tables in turn, as much at a time as a budget of bytes allows."""

import dagster as dg
import pytest

from etl_core.identifiers import TableName
from etl_core.testing.postgres import Database
from etl_dagster import names
from etl_dagster.definitions.factory import build_postgres_replication
from etl_dagster.reports import compare_schedule
from etl_dagster.reports.checks import build_replication_checks
from etl_dagster.reports.compare_schedule import build_compare_job, build_compare_schedule, choose
from etl_dagster.resources import PostgresReplicationResource
from tests.orchestration.syncing import CUSTOMERS, NOTES, ORDERS, TABLES

A, B, C, D = (TableName("public", name) for name in "abcd")


@pytest.mark.parametrize(
    ("last", "budget", "chosen"),
    [
        ({}, 10, [A, B]),
        ({A: 5.0, B: 3.0}, 10, [C]),
        ({A: 5.0, B: 3.0, C: 4.0}, 10, [D, B]),
        ({A: 5.0, B: 3.0, C: 4.0, D: 9.0}, 10, [B]),
        ({}, 1_000, [A, B, C, D]),
        ({}, 1, [A]),
    ],
)
def test_those_that_wait_longest_come_first_and_a_large_one_is_not_pushed_back(
    last: dict[TableName, float], budget: int, chosen: list[TableName]
) -> None:
    assert choose({A: 4, B: 6, C: 20, D: 4}, last, budget) == chosen


def test_none_of_many_tables_waits_for_ever(instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_schedule, "_LOOK_BACK", 1)

    @dg.job
    def compares() -> None:
        pass

    sizes = dict.fromkeys((A, B, C, D), 1)
    compared = []
    for _ in range(8):
        [table] = choose(sizes, compare_schedule._last_compared(instance, "compares", len(sizes)), 1)
        instance.create_run_for_job(compares, tags={compare_schedule.COMPARED_TAG: str(table)})
        compared.append(table)
    assert compared == [A, B, C, D, A, B, C, D]


def test_each_tick_compares_what_waits_and_proves_it(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database
) -> None:
    job = build_compare_job(replication, TABLES)
    schedule = build_compare_schedule(replication, TABLES, job, "0 3 * * *", max_bytes="1")
    checks = build_replication_checks(replication, TABLES, connections=1)
    resources = {names.resource_key(replication.name): replication}
    definitions = dg.Definitions(asset_checks=checks, jobs=[job], schedules=[schedule], resources=resources)

    def tick() -> tuple[dg.RunRequest | None, str | None]:
        with dg.build_schedule_context(instance=instance, resources=resources) as context:
            answer = schedule.evaluate_tick(context)
        return next(iter(answer.run_requests or ()), None), answer.skip_message

    assert tick() == (None, "no table has been copied yet")
    with replication.pipeline() as pipeline:
        pipeline.prepare()
        pipeline.sync()
        pipeline.stream(until=pipeline.current_lsn())
    compared = []
    for _ in range(4):
        request, _ = tick()
        assert request is not None
        result = _execute(definitions, replication, instance, request)
        compared += [each.asset_key.path[-1] for each in result.get_asset_check_evaluations() if each.passed]
    assert compared == [table.name for table in (CUSTOMERS, NOTES, ORDERS, CUSTOMERS)]


def _execute(
    definitions: dg.Definitions,
    replication: PostgresReplicationResource,
    instance: dg.DagsterInstance,
    request: dg.RunRequest,
) -> dg.ExecuteInProcessResult:
    """As the daemon does: the job, with the checks that the request selects."""
    job = dg.define_asset_job(
        names.compare_job_name(replication.name), selection=dg.AssetSelection.checks(*request.asset_check_keys or ())
    )
    selected = dg.Definitions(
        asset_checks=definitions.asset_checks, jobs=[job], resources=definitions.resources
    ).resolve_job_def(job.name)
    return selected.execute_in_process(instance=instance, tags=dict(request.tags))


def test_the_pipeline_has_the_schedule_when_it_is_asked_for(replication: PostgresReplicationResource) -> None:
    without = build_postgres_replication(replication).get_repository_def()
    assert [schedule.name for schedule in without.schedule_defs] == []
    repository = build_postgres_replication(replication, compare_cron="0 3 * * *").get_repository_def()
    assert [schedule.name for schedule in repository.schedule_defs] == [f"{replication.name}_compare_schedule"]
    with pytest.raises(dg.DagsterInvalidDefinitionError, match="max_bytes: '5 gigs' is not a size"):
        build_postgres_replication(replication, compare_cron="0 3 * * *", compare_max_bytes="5 gigs")
