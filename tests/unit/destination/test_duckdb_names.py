from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from etl_core.destination.duckdb.destination import DuckDBDestination
from etl_core.errors import TableError
from etl_core.identifiers import TableName
from etl_core.lsn import Lsn
from etl_core.schema.table import Column
from etl_core.testing.destination_tables import INT8, TEXT, batch, changes, contents, orders, publish, table


@pytest.fixture
def destination(tmp_path: Path) -> DuckDBDestination:
    destination = DuckDBDestination(tmp_path / "shop.duckdb", "shop")
    destination.prepare()
    return destination


def test_tables_that_differ_by_case_are_refused(destination: DuckDBDestination) -> None:
    publish(destination, orders(), [(1, "a", "b", 1)])
    with pytest.raises(TableError, match="differ only by case") as caught:
        publish(destination, orders(16_500, "Orders"))
    assert caught.value.table == 'public."Orders"'
    assert sum(contents(destination, orders()).values()) == 1


def test_a_table_may_change_its_case(destination: DuckDBDestination) -> None:
    publish(destination, orders(), [(1, "a", "b", 1)])
    renamed = orders(name="Orders")
    publish(destination, renamed, [(2, "a", "b", 1)], watermark=200)
    destination.write(batch(changes(renamed, deletes=[(2,)], inserts=[(3, "a", "b", 1)]), expected=200, new=300))
    assert contents(destination, renamed) == {(3, "a", "b", 1): 1}


def test_columns_that_differ_by_case_are_refused(destination: DuckDBDestination) -> None:
    with pytest.raises(TableError, match="differ only by case"):
        destination.copy(table("t", Column("id", INT8), Column("Id", TEXT)))
    publish(destination, orders())
    grown = table("orders", *orders().columns, Column("STATUS", TEXT))
    with pytest.raises(TableError, match="differ only by case"):
        destination.write(batch(changes(grown), expected=100, new=200))


def test_a_column_may_change_its_case(destination: DuckDBDestination) -> None:
    publish(destination, table("t", Column("id", INT8), Column("word", TEXT)), [(1, "a")])
    after = table("t", Column("id", INT8), Column("Word", TEXT, missing_value="z"))
    destination.write(batch(changes(after, inserts=[(2, "b")]), expected=100, new=200))
    assert contents(destination, after) == {(1, "z"): 1, (2, "b"): 1}


def test_letters_beyond_ascii_keep_their_case(destination: DuckDBDestination) -> None:
    odd = table("t", Column("Ä", INT8), Column("ä", TEXT), key=("Ä",))
    publish(destination, odd, [(1, "a")])
    assert contents(destination, odd) == {(1, "a"): 1}


@pytest.mark.parametrize("namespace", ["_etl", "_ETL", "information_schema"])
def test_reserved_namespaces_are_refused(destination: DuckDBDestination, namespace: str) -> None:
    with pytest.raises(TableError, match="reserved"):
        publish(destination, table(TableName(namespace, "t"), Column("id", INT8)))


def test_a_namespace_may_be_called_like_the_file(destination: DuckDBDestination) -> None:
    same = table(TableName("shop", "shop"), Column("id", INT8), Column("word", TEXT))
    publish(destination, same, [(1, "a")])
    destination.write(batch(changes(same, upserts=[(1, "b")]), expected=100, new=200))
    assert contents(destination, same) == {(1, "b"): 1}


@pytest.mark.parametrize("kind", ["TABLE", "VIEW"])
def test_a_table_of_somebody_else_is_not_replaced(destination: DuckDBDestination, tmp_path: Path, kind: str) -> None:
    with duckdb.connect(tmp_path / "shop.duckdb") as connection:
        connection.execute("CREATE SCHEMA public")
        connection.execute(f"CREATE {kind} public.Orders AS SELECT 1 AS mine")
    with pytest.raises(TableError, match="not made by a pipeline"):
        publish(destination, orders())
    with duckdb.connect(tmp_path / "shop.duckdb") as connection:
        assert connection.execute("SELECT mine FROM public.orders").fetchall() == [(1,)]


def test_a_table_without_columns_is_refused(destination: DuckDBDestination) -> None:
    with pytest.raises(TableError, match="no columns"):
        destination.copy(table("t", key=()))


def test_a_table_dropped_from_outside_is_an_error_of_that_table(destination: DuckDBDestination, tmp_path: Path) -> None:
    publish(destination, orders())
    with duckdb.connect(tmp_path / "shop.duckdb") as connection:
        connection.execute("DROP TABLE public.orders")
    with pytest.raises(TableError) as caught:
        destination.write(batch(changes(orders(), inserts=[(1, "a", "b", 1)]), expected=100, new=200))
    assert caught.value.table == "public.orders"
    assert destination.positions().tables == {orders().table_id: Lsn(100)}
    assert publish(destination, orders(), watermark=300) == 0
