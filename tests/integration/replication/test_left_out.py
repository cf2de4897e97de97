"""Rows that SELECT gives and PostgreSQL does not send: said before the copy, and never called equal."""

from __future__ import annotations

from etl_core.identifiers import TableName
from etl_core.state.table_state import TableState
from tests.integration.replication.conftest import Lab


def test_children_by_inheritance(lab: Lab) -> None:
    lab.execute("CREATE TABLE parent (id int PRIMARY KEY); INSERT INTO parent VALUES (1)")
    lab.execute("CREATE TABLE child () INHERITS (parent)")
    lab.publish("TABLE ONLY parent")
    pipeline = lab.synced()
    assert any("public.child" in sentence for sentence in pipeline.observer.notices)
    (comparison,) = pipeline.verify()
    assert comparison.is_equal, "a child without rows leaves nothing out"
    lab.execute("INSERT INTO child VALUES (2)")
    (comparison,) = pipeline.verify()
    assert (comparison.is_equal, comparison.is_incomplete) == (False, True)
    assert "public.child" in str(comparison.problem)


def test_partitions_whose_changes_are_not_sent(lab: Lab) -> None:
    lab.execute("CREATE TABLE month (id int PRIMARY KEY) PARTITION BY RANGE (id)")
    lab.execute("CREATE TABLE now PARTITION OF month FOR VALUES FROM (0) TO (10)")
    lab.execute("CREATE TABLE other (id int PRIMARY KEY)")
    lab.publish("TABLE month, other")
    pipeline = lab.synced()
    lab.execute("CREATE FOREIGN DATA WRAPPER nothing; CREATE SERVER nowhere FOREIGN DATA WRAPPER nothing")
    lab.execute("ALTER TABLE month DROP CONSTRAINT month_pkey; ALTER TABLE month REPLICA IDENTITY FULL")
    lab.execute("CREATE FOREIGN TABLE old PARTITION OF month FOR VALUES FROM (-10) TO (0) SERVER nowhere")
    month = next(comparison for comparison in pipeline.verify() if comparison.table.name == "month")
    assert (month.is_equal, "public.old" in str(month.problem)) == (False, True)
    pipeline.resync(TableName("public", "month"))
    pipeline.sync()
    status = pipeline.find(TableName("public", "month"))
    assert (status.state, "public.old" in str(status.error)) == (TableState.ERRORED, True)
    lab.execute("INSERT INTO other VALUES (1)")
    lab.caught_up(pipeline)
