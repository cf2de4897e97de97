"""A destination that is put back while its stream runs, or that is of an earlier life of the pipeline, is noticed."""
# ruff: noqa: S608 the tests write their own SQL

from __future__ import annotations

import shutil
from collections.abc import Sequence

from etl_core.identifiers import TableName
from etl_core.state.table_state import TableState
from tests.integration.replication.conftest import Lab

OFTEN, RARE = TableName("public", "often"), TableName("public", "rare")


def two_tables(lab: Lab) -> None:
    for table in (OFTEN, RARE):
        lab.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, n int); INSERT INTO {table} VALUES (1, 0)")
    lab.publish()


def put_back(lab: Lab) -> None:
    shutil.copy(lab.path.with_suffix(".old"), lab.path)
    lab.path.with_name(lab.path.name + ".wal").unlink(missing_ok=True)


def states(lab: Lab) -> Sequence[TableState]:
    return [status.state for status in lab.pipeline().store.tables()]


def test_a_table_without_changes_since_is_stopped_too(lab: Lab) -> None:
    """Only `often` is in the batch that finds it, and the batch may not move the position that tells of `rare`."""
    two_tables(lab)
    pipeline = lab.synced()
    lab.execute("UPDATE often SET n = 1")
    lab.caught_up(pipeline).close()
    shutil.copy(lab.path, lab.path.with_suffix(".old"))
    with lab.running(pipeline, pipeline.stream):
        lab.execute("UPDATE rare SET n = 1")
        pipeline.observer.until_flushed(pipeline.current_lsn())
        put_back(lab)
        lab.execute("UPDATE often SET n = 2")
        for table in ("often", "rare"):
            pipeline.observer.until_state(table, TableState.ERRORED)
        pipeline.observer.until_flushed(pipeline.current_lsn())
    assert all("restored or replaced" in str(error.hint) for error in pipeline.observer.errors.values())
    assert states(lab) == [TableState.ERRORED] * 2  # the next start does not find the destination wanting once more
    pipeline = lab.pipeline()
    pipeline.sync([OFTEN, RARE])
    lab.assert_equal(pipeline)


def test_a_destination_of_an_earlier_slot_is_never_taken_for_this_ones(lab: Lab) -> None:
    """Its positions may be higher, as those of another cluster may: they are not compared. Nothing was streamed yet."""
    two_tables(lab)
    lab.synced().close()
    shutil.copy(lab.path, lab.path.with_suffix(".old"))
    first = lab.pipeline()
    earlier = first.store.source_identity()
    first.teardown()
    lab.execute("UPDATE rare SET n = 1")
    pipeline = lab.pipeline()
    identity = pipeline.store.source_identity()
    assert identity is not None
    assert earlier is not None
    assert identity.incarnation != earlier.incarnation
    stream = pipeline.destination.positions().stream
    assert stream is not None
    assert (stream.incarnation, stream.lsn) == (identity.incarnation, identity.slot_lsn)
    pipeline.sync()
    pipeline.close()
    put_back(lab)
    lab.caught_up(lab.pipeline())
    assert states(lab) == [TableState.ERRORED] * 2
    pipeline = lab.pipeline()
    pipeline.sync([OFTEN, RARE])
    lab.assert_equal(pipeline)
