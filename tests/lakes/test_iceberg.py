"""The destination contract over a real Iceberg catalog, and what the catalog or DuckDB's extension refuses."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from psycopg import sql

from etl_core.destination.iceberg.destination import IcebergDestination
from etl_core.destination.protocol import Destination
from etl_core.errors import TableError, ValueOutOfRange
from etl_core.identifiers import TableName
from etl_core.lsn import Lsn
from etl_core.schema.table import Column, TableSchema
from etl_core.testing import destination_values_suite
from etl_core.testing.destination_counting_suite import CountingSuite
from etl_core.testing.destination_deleted_suite import DeletedRowsSuite
from etl_core.testing.destination_log_suite import LogSuite
from etl_core.testing.destination_multiset_suite import MultisetSuite
from etl_core.testing.destination_schemas_suite import AddColumn
from etl_core.testing.destination_sharing_suite import SharingSuite
from etl_core.testing.destination_suite import ChangesSuite, DestinationSuite
from etl_core.testing.destination_tables import INT4, INT8, array_of, batch, changes, contents, orders, publish, table
from etl_core.testing.destination_values_suite import CASES, MISSING, Case, Missing
from etl_core.testing.destination_watermark_suite import MakeDestination
from etl_core.testing.hostile import HostileDestination
from etl_core.testing.servers.seaweedfs import SeaweedFS

_REFUSES_NAME = "it refuses a name"
_NESTED = ("ints", "int4ranges")
_REFUSES_NESTED = "which DuckDB cannot add to a table in Iceberg"


class AllowedNames(ChangesSuite):
    """A table that waits while two swap their names has one that this catalog does not allow."""

    def test_tables_that_swapped_names_are_copied_again(self, destination: Destination) -> None:
        with pytest.raises(TableError, match=_REFUSES_NAME):
            super().test_tables_that_swapped_names_are_copied_again(destination)


class TestIceberg(
    AllowedNames, LogSuite, MultisetSuite, DeletedRowsSuite, CountingSuite, SharingSuite, DestinationSuite
):
    @pytest.fixture
    def make_destination(self, seaweedfs: SeaweedFS, tmp_path: Path) -> MakeDestination:
        access = seaweedfs.access()
        return lambda pipeline: IcebergDestination(access, pipeline, tmp_path)

    @pytest.fixture
    def add_column(self) -> AddColumn:
        def add(destination: Destination, schema: TableSchema, name: str) -> Callable[[], Collection[str]]:
            assert isinstance(destination, IcebergDestination)
            with destination._catalog.reading() as session:  # as a person does with any engine
                session._connection.execute("COMMIT")
                table = session.identifier(schema.name.namespace, schema.name.name)
                alter = sql.SQL("ALTER TABLE {} ADD COLUMN {} VARCHAR").format(table, sql.Identifier(name))
                session._connection.execute(alter.as_string(None))

            def names() -> Collection[str]:
                with destination._catalog.reading_beside() as session:
                    return [column.name for column in session.columns(schema.name)]

            return names

        return add

    @pytest.fixture
    def cases(self) -> Sequence[Case]:
        return [case for case in CASES if case[0].name != "hstores"]

    def holds(self, column: Column, value: Any) -> bool:
        if re.search(r"-0\.0\b", repr(value)):
            return False
        if column.name == "date":
            return bool(abs(value) < 2**31 - 1)
        return column.name not in ("timestamp", "timestamptz", "when") or bool(abs(value) < 2**63 - 1)

    @pytest.fixture
    def missing(self) -> Sequence[Missing]:
        return [each for each in MISSING if each[0].name not in _NESTED]

    def test_a_nested_column_is_not_added(self, destination: Destination) -> None:
        nested = [each for each in MISSING if each[0].name in _NESTED]
        before = table("grows", Column("id", INT8))
        publish(destination, before, [(1,)])
        for column, _, value in nested:
            after = table("grows", Column("id", INT8), column)
            with pytest.raises(TableError, match=_REFUSES_NESTED):
                destination.write(batch(changes(after, inserts=[(3, value)]), expected=100, new=200))
            with pytest.raises(TableError, match=_REFUSES_NESTED):
                publish(destination, after, [(3, value)], watermark=200)
            assert destination.positions().tables == {after.table_id: Lsn(100)}
        assert contents(destination, before) == Counter([(1,)])

    @pytest.fixture
    def without_hstores(self, cases: Sequence[Case], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(destination_values_suite, "CASES", tuple(cases))

    @pytest.mark.usefixtures("without_hstores")
    def test_slices_of_many_rows_come_out_as_they_went_in(self, destination: Destination) -> None:
        super().test_slices_of_many_rows_come_out_as_they_went_in(destination)

    def test_an_array_of_hstores_is_refused(self, destination: Destination) -> None:
        [(column, values)] = [case for case in CASES if case[0].name == "hstores"]
        for value in values:
            with pytest.raises(ValueOutOfRange, match="an array of hstore that is NULL"):
                publish(destination, table("keyed", column, key=(column.name,)), [(value,)])

    def test_another_write_mode_has_other_rows(self, destination: Destination) -> None:
        """A log has a column of a list."""
        with pytest.raises(TableError, match=_REFUSES_NESTED):
            super().test_another_write_mode_has_other_rows(destination)

    @pytest.mark.parametrize("name", [TableName("select", "table"), TableName("public", 'say "hi"')], ids=str)
    def test_quoted_names(self, destination: Destination, name: TableName) -> None:
        """This catalog allows a-z, 0-9, _ and - alone in names of namespaces and tables."""
        if name.namespace == "select":
            super().test_quoted_names(destination, name)
            return
        with pytest.raises(TableError, match=_REFUSES_NAME):
            super().test_quoted_names(destination, name)
        assert destination.positions().tables == {}

    def test_a_renamed_table_keeps_its_rows(self, destination: Destination) -> None:
        before = orders()
        publish(destination, before, [(1, "a", "b", 1)])
        moved = replace(before, name=TableName("archive", "sales"))
        destination.write(batch(changes(moved, inserts=[(2, "c", "d", 2)]), expected=100, new=200))
        assert contents(destination, moved) == Counter([(1, "a", "b", 1), (2, "c", "d", 2)])
        publish(destination, before, [(9, "n", "n", 9)], watermark=300)
        assert contents(destination, before) == Counter([(9, "n", "n", 9)])
        assert destination.positions().tables == {before.table_id: Lsn(300)}
        other = orders(16_500, "sales")  # the name is free: what was there is nobody's
        publish(destination, replace(other, name=moved.name), [(5, "o", "o", 5)])
        assert contents(destination, replace(other, name=moved.name)) == Counter([(5, "o", "o", 5)])

    def test_tables_that_swap_their_names(self, destination: Destination) -> None:
        """One would wait under a name that this catalog does not allow: nothing of it is done."""
        one, other = orders(16_400, "one"), orders(16_500, "other")
        publish(destination, one, [(1, "one", "", 1)])
        publish(destination, other, [(1, "other", "", 1)])
        with pytest.raises(TableError, match=_REFUSES_NAME):
            destination.write(batch(changes(replace(one, name=other.name)), expected=100, new=200))
        assert destination.positions().tables == {one.table_id: Lsn(100), other.table_id: Lsn(100)}
        assert contents(destination, one) == Counter([(1, "one", "", 1)])
        assert contents(destination, other) == Counter([(1, "other", "", 1)])

    def test_a_copy_does_not_take_a_name_that_is_newer(self, destination: Destination) -> None:
        with pytest.raises(TableError, match=_REFUSES_NAME):
            super().test_a_copy_does_not_take_a_name_that_is_newer(destination)

    def test_what_somebody_else_made_is_not_replaced_and_a_dropped_table_is_made_anew(
        self, destination: Destination
    ) -> None:
        assert isinstance(destination, IcebergDestination)
        grown = table("grows", Column("id", INT8), Column("ints", array_of(1007, INT4)))
        publish(destination, table("grows", Column("id", INT8)), [(1,)])
        create = "CREATE TABLE lake.public.mine (i INTEGER)"
        with destination._catalog.reading() as session:  # as a person does with any engine
            session._connection.execute("COMMIT")
            session._connection.execute("DROP TABLE lake.public.grows")
            session._connection.execute(create)
        with pytest.raises(TableError, match="exists in Iceberg and was not made by a pipeline"):
            publish(destination, table("mine", Column("id", INT8)), [(1,)])
        publish(destination, grown, [(3, [2, None])], watermark=200)
        assert contents(destination, grown) == Counter([(3, (2, None))])


class TestIcebergHostile(AllowedNames):
    """Answers are lost, requests arrive twice and late."""

    @pytest.fixture
    def make_destination(self, seaweedfs: SeaweedFS, tmp_path: Path) -> MakeDestination:
        access = seaweedfs.access()
        return lambda pipeline: HostileDestination(IcebergDestination(access, pipeline, tmp_path))
