"""Replicated tables read as Arrow, pandas and polars, from the destination alone."""

import importlib.util

import dagster as dg
import pytest

from etl_core.testing.postgres import Database
from etl_dagster import names
from etl_dagster.resources import PostgresReplicationResource
from etl_dagster.sync.assets import build_initial_sync_assets

# Dagster calls a name of its own that it has deprecated, when it resolves nested resources.
pytestmark = pytest.mark.filterwarnings("ignore:InitResourceContext.dagster_run is deprecated:DeprecationWarning")


@pytest.fixture
def copied(replication: PostgresReplicationResource, instance: dg.DagsterInstance) -> PostgresReplicationResource:
    """`replication` after its assets were materialised."""
    tables = replication.selection().names
    assets = build_initial_sync_assets(replication, tables)
    assert dg.materialize(assets, instance=instance, resources={names.resource_key(replication.name): replication})
    return replication


def test_a_table_is_read_as_arrow_with_the_sources_columns(copied: PostgresReplicationResource) -> None:
    table = copied.table("public.orders").to_arrow()
    assert table.schema.names == ["id", "n", "note"]
    assert [str(column) for column in table.schema.types] == ["int32", "int32", "string"]
    assert sorted(table.to_pylist(), key=lambda row: int(row["id"])) == [
        {"id": number, "n": number, "note": f"note {number}"} for number in range(1, 101)
    ]


def test_a_table_is_read_as_pandas(copied: PostgresReplicationResource) -> None:
    frame = copied.table("orders").to_pandas()
    assert list(frame.columns) == ["id", "n", "note"]
    assert len(frame) == 100
    assert frame["n"].sum() == 5050
    assert frame.set_index("id")["note"][7] == "note 7"


def test_a_table_is_read_as_polars(copied: PostgresReplicationResource) -> None:
    frame = copied.table("orders").to_polars()
    assert {name: str(kind) for name, kind in frame.schema.items()} == {"id": "Int32", "n": "Int32", "note": "String"}
    assert frame["n"].sum() == 5050
    assert copied.table("public.notes").to_polars().columns == ["id", "note"]


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_library_that_is_not_there_is_named(
    copied: PostgresReplicationResource, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == library else found(name))
    with pytest.raises(dg.Failure, match=rf"{library} is not installed → run: pip install 'etl-dagster\[{library}\]'"):
        getattr(copied.table("orders"), f"to_{library}")()


def test_an_empty_table_has_its_columns(copied: PostgresReplicationResource) -> None:
    table = copied.table("public.notes").to_arrow()
    assert (table.num_rows, table.schema.names) == (0, ["id", "note"])
    assert list(copied.table("public.notes").to_pandas().columns) == ["id", "note"]


def test_a_read_sees_what_was_streamed_since_and_keeps_a_schema_that_changed(
    copied: PostgresReplicationResource, database: Database
) -> None:
    database.execute("ALTER TABLE orders ADD COLUMN price int")
    database.execute("UPDATE orders SET n = 1000, price = 5 WHERE id = 1")
    with copied.pipeline() as pipeline:
        pipeline.prepare()
        pipeline.stream(until=pipeline.current_lsn())
    table = copied.table("public.orders").to_arrow()
    assert table.schema.names == ["id", "n", "note", "price"]
    [first] = [row for row in table.to_pylist() if row["id"] == 1]
    assert first == {"id": 1, "n": 1000, "note": "note 1", "price": 5}


def test_reading_needs_neither_the_source_nor_its_password(
    copied: PostgresReplicationResource, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = copied.model_copy(
        update={"dsn": "postgresql://nobody@127.0.0.1:1/none", "password_env": "ETL_TEST_NOT_SET"}
    )
    monkeypatch.delenv("ETL_TEST_NOT_SET", raising=False)
    assert elsewhere.table("public.orders").to_arrow().num_rows == 100


def test_a_table_that_was_never_copied_says_what_to_do(replication: PostgresReplicationResource) -> None:
    for prepared in (False, True):
        if prepared:
            with replication.pipeline() as pipeline:
                pipeline.prepare()
        with pytest.raises(dg.Failure, match=r"public\.orders of pipeline shop_\w+ was never copied") as raised:
            replication.table("public.orders").to_arrow()
        assert raised.value.metadata["hint"].value == "materialise its asset first"
        assert raised.value.allow_retries is False


def test_a_table_the_pipeline_does_not_have_is_told_with_those_it_has(copied: PostgresReplicationResource) -> None:
    with pytest.raises(dg.Failure, match=r"public\.invoices") as raised:
        copied.table("invoices").to_pandas()
    assert "public.customers, public.notes, public.orders" in str(raised.value.metadata["hint"].value)
