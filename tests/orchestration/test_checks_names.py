"""Tables whose names SQL has to quote have the checks that every other table has, evaluated on real rows."""

from pathlib import Path

import dagster as dg
import duckdb
import psycopg
import pytest
from psycopg import sql

from etl_core.identifiers import TableName
from etl_core.testing.postgres import Database
from etl_dagster.definitions.factory import build_postgres_replication
from etl_dagster.duckdb_destination import DuckDBDestinationResource
from etl_dagster.names import check_job_name
from etl_dagster.reports.checks import build_replication_checks
from etl_dagster.resources import PostgresReplicationResource, StateStoreResource

ODD = [
    TableName("public", name) for name in ("Order Items", "Order_Items", "a.b", "a/b", "ümlaut", "日本語", 'say "hi"')
]
KINDS = {"replication_lag", "table_state", "schema_matches", "equals_source"}


@pytest.fixture
def odd(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PostgresReplicationResource:
    """Tables of odd names with two rows each, copied and in step."""
    with psycopg.connect(database.dsn) as connection:
        connection.execute("CREATE PUBLICATION odd_pub")
        for table in ODD:
            name = sql.Identifier(table.namespace, table.name)
            connection.execute(sql.SQL("CREATE TABLE {} (id int PRIMARY KEY, note text)").format(name))
            connection.execute(sql.SQL("INSERT INTO {} VALUES (1, 'one'), (2, 'two')").format(name))
            connection.execute(sql.SQL("ALTER PUBLICATION odd_pub ADD TABLE {}").format(name))
    monkeypatch.setenv("ETL_TEST_SOURCE", database.dsn)
    replication = PostgresReplicationResource(
        name=f"odd_{database.name[-6:]}",
        dsn=dg.EnvVar("ETL_TEST_SOURCE"),
        publication="odd_pub",
        tables=[str(table) for table in ODD],
        state=StateStoreResource(url=f"sqlite:///{tmp_path / 'state.db'}"),
        destination=DuckDBDestinationResource(path=str(tmp_path / "shop.duckdb")),
    )
    with replication.pipeline() as pipeline:
        pipeline.prepare()
        pipeline.sync()
        pipeline.stream(until=pipeline.current_lsn())
    return replication


def check_key(table: TableName, kind: str) -> dg.AssetCheckKey:
    return dg.AssetCheckKey(dg.AssetKey(["duckdb", table.namespace, table.name]), kind)


def test_all_checks_of_all_tables_are_evaluated(
    odd: PostgresReplicationResource, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    with duckdb.connect(str(tmp_path / "shop.duckdb")) as destination:
        destination.execute("""DELETE FROM public."a.b" WHERE id = 1""")
    definitions = build_postgres_replication(odd, max_lag=3600)
    dg.Definitions.validate_loadable(definitions)
    result = definitions.resolve_job_def(check_job_name(odd.name)).execute_in_process(instance=instance)
    passed = {each.asset_check_key: each.passed for each in result.get_asset_check_evaluations()}
    slot = dg.AssetCheckKey(dg.AssetKey([odd.name, "replication_slot"]), "slot_health")
    assert passed.keys() == {check_key(table, kind) for table in ODD for kind in KINDS} | {slot}
    assert [key for key, value in passed.items() if not value] == [check_key(ODD[2], "equals_source")]


def test_one_check_of_one_such_table_runs_alone(odd: PostgresReplicationResource, instance: dg.DagsterInstance) -> None:
    wanted = check_key(ODD[0], "equals_source")
    definitions = dg.Definitions(
        asset_checks=build_replication_checks(odd, ODD),
        jobs=[dg.define_asset_job("one", selection=dg.AssetSelection.checks(wanted))],
        resources={odd.name: odd},
    )
    result = definitions.resolve_job_def("one").execute_in_process(instance=instance)
    [evaluation] = result.get_asset_check_evaluations()
    assert evaluation.asset_check_key == wanted
    assert evaluation.passed
    assert evaluation.metadata["etl/source_rows"].value == 2
