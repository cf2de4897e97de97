"""Tables whose names change hands: what a person does by the hint leads out, under the old name or the new one."""

from __future__ import annotations

import pytest

from etl_core.errors import ConfigError
from etl_core.identifiers import TableName
from etl_core.state.table_state import TableState
from tests.integration.replication.conftest import Lab

OLD, NEW, OTHER = (TableName("public", name) for name in ("old", "new", "other"))


def stopped_by_a_rename(lab: Lab, *statements: str) -> None:
    """`old` and `other` are streaming; then the statements, and a row that tells the stream of them."""
    lab.execute("CREATE TABLE old (id int PRIMARY KEY, a text); INSERT INTO old VALUES (1, 'x')")
    lab.execute("CREATE TABLE other (id int PRIMARY KEY, a text); INSERT INTO other VALUES (1, 'y'), (2, 'z')")
    lab.publish()
    pipeline = lab.synced()
    with lab.running(pipeline, pipeline.stream):
        for statement in statements:
            lab.execute(statement)
        pipeline.observer.until_state("old", TableState.ERRORED)
    pipeline.close()


@pytest.mark.parametrize("name", [OLD, NEW])
def test_a_renamed_table_is_copied_again_by_either_name(lab: Lab, name: TableName) -> None:
    stopped_by_a_rename(lab, "ALTER TABLE old RENAME TO new; INSERT INTO new VALUES (2, 'y')")
    with lab.unprepared() as deciding:  # as `etl resync` does: it does not prepare
        deciding.resync(name)
        assert deciding.find(name).state is TableState.INIT
        with pytest.raises(ConfigError):
            deciding.resync(TableName("public", "nobody"))
    pipeline = lab.pipeline()
    assert [status.name for status in pipeline.store.tables()] == [NEW, OTHER]
    assert pipeline.find(OLD) == pipeline.find(NEW)
    pipeline = lab.synced()
    lab.assert_equal(pipeline)


def test_two_tables_that_swapped_names_are_copied_again(lab: Lab) -> None:
    swap = ("ALTER TABLE old RENAME TO tmp", "ALTER TABLE other RENAME TO old", "ALTER TABLE tmp RENAME TO other")
    stopped_by_a_rename(lab, "; ".join(swap), "INSERT INTO other VALUES (3, 'was old')")
    with lab.unprepared() as deciding:
        deciding.resync(OTHER)  # which may be either
        assert {status.state for status in deciding.store.tables()} == {TableState.INIT}
    lab.assert_equal(lab.synced())
