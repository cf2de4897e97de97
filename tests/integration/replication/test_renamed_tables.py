"""Tables whose names change hands: what a person does by the hint leads out, under the old name or the new one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from etl_core.errors import ConfigError
from etl_core.identifiers import TableName
from etl_core.state.table_state import TableState
from tests.integration.replication.conftest import Lab

OLD, NEW, OTHER = (TableName("public", name) for name in ("old", "new", "other"))


def renamed_while_it_runs(lab: Lab, *statements: str, then: tuple[str, TableState]) -> None:
    """`old` and `other` are configured and streaming; then the statements, until a table is told to be in a state."""
    lab.execute("CREATE TABLE old (id int PRIMARY KEY, a text); INSERT INTO old VALUES (1, 'x')")
    lab.execute("CREATE TABLE other (id int PRIMARY KEY, a text); INSERT INTO other VALUES (1, 'y'), (2, 'z')")
    configure(lab, OLD, OTHER)
    pipeline = lab.synced()
    with lab.running(pipeline, pipeline.stream):
        for statement in statements:
            lab.execute(statement)
        pipeline.watch.wake()
        pipeline.observer.until_state(*then)
    pipeline.close()


def configure(lab: Lab, *tables: TableName) -> None:
    lab.config = replace(lab.config, source=replace(lab.config.source, tables=tables))


@pytest.mark.parametrize("name", [OLD, NEW])
def test_a_renamed_table_is_copied_again_by_either_name(lab: Lab, name: TableName) -> None:
    renamed_while_it_runs(lab, "ALTER TABLE old RENAME TO new", then=("old", TableState.ERRORED))
    lab.execute("INSERT INTO new VALUES (2, 'y')")
    configure(lab, NEW, OTHER)
    with lab.unprepared() as deciding:  # as `etl resync` does: it does not prepare
        deciding.resync(name)
        assert deciding.find(name).state is TableState.INIT
        with pytest.raises(ConfigError):
            deciding.resync(TableName("public", "nobody"))
    pipeline = lab.synced()
    assert [status.name for status in pipeline.store.tables()] == [NEW, OTHER]
    lab.assert_equal(pipeline)


def test_two_tables_that_swapped_names_are_copied_again(lab: Lab) -> None:
    swap = ("ALTER TABLE old RENAME TO tmp", "ALTER TABLE other RENAME TO old", "ALTER TABLE tmp RENAME TO other")
    row = "INSERT INTO other VALUES (3, 'was old')"
    renamed_while_it_runs(lab, "; ".join(swap), row, then=("other", TableState.INIT))
    with lab.unprepared() as deciding:
        deciding.resync(OTHER)  # which may be either
        assert {status.state for status in deciding.store.tables()} == {TableState.INIT}
    lab.assert_equal(lab.synced())
