"""Hundreds of tables in one pipeline: copied, streamed and proved equal; many more tables than slots beside a stream.

The hundreds go to the memory destination: the engine is what is tried here, not the product behind it.
"""
# ruff: noqa: S608 the tests write their own SQL

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from etl_core.config import CopyConfig
from etl_core.destination.memory import MemoryDatabase, MemoryDestination
from etl_core.replication.copied import Copied

if TYPE_CHECKING:
    from tests.integration.replication.conftest import Lab


def create(lab: Lab, count: int) -> None:
    for start in range(1, count + 1, 250):  # in portions: one transaction may not lock them all
        lab.execute(
            f"DO $$ BEGIN FOR i IN {start}..{min(count, start + 249)} LOOP EXECUTE format("
            "'CREATE TABLE t%s (id int PRIMARY KEY, n int, note text);"
            " INSERT INTO t%1$s SELECT j, j, ''note '' || j FROM generate_series(1, 20) j', i); END LOOP; END $$"
        )
    lab.publish()


def change(lab: Lab, count: int) -> None:
    for statement in ("UPDATE t%s SET n = n + 1 WHERE id < 5", "DELETE FROM t%s WHERE id = 7"):
        lab.execute(f"DO $$ BEGIN FOR i IN 1..{count} LOOP EXECUTE format('{statement}', i); END LOOP; END $$")


@pytest.mark.timeout(600)
def test_hundreds_of_tables(lab: Lab) -> None:
    count = 300
    create(lab, count)
    destination = MemoryDestination(MemoryDatabase(), lab.config.pipeline)
    pipeline = lab.pipeline(destination=destination, copy=CopyConfig(workers=4, connections_per_table=1))
    assert Counter(type(outcome) for outcome in pipeline.sync()) == {Copied: count}
    with lab.running(pipeline, pipeline.stream):
        change(lab, count)
        pipeline.observer.until_flushed(pipeline.current_lsn())
    lab.caught_up(pipeline)
    assert Counter(comparison.is_equal for comparison in pipeline.verify()) == {True: count}
    for status in pipeline.store.tables()[::30]:
        version = pipeline.store.schema(status.table_id)
        assert version is not None
        found = [tuple(row.values()) for batch in destination.read(version[1]) for row in batch.to_pylist()]
        assert Counter(found) == Counter(lab.execute(f"SELECT * FROM {status.name}"))
    assert lab.slots() == {pipeline.source.main_slot}


@pytest.mark.timeout(240)
def test_more_tables_than_slots_beside_a_stream(lab: Lab) -> None:
    [(slots,)] = lab.execute("SELECT current_setting('max_replication_slots')::int")
    count = slots + 20
    create(lab, count)
    destination = MemoryDestination(MemoryDatabase(), lab.config.pipeline)
    pipeline = lab.pipeline(destination=destination, copy=CopyConfig(workers=4, connections_per_table=1))
    most = 0
    with lab.running(pipeline):
        for number in range(1, count + 1):
            pipeline.observer.until_ready(f"t{number}")
            most = max(most, len(lab.slots()))
        change(lab, count)
        pipeline.observer.until_flushed(pipeline.current_lsn())
    assert most < slots / 2
    assert not pipeline.observer.errors
    lab.caught_up(pipeline)
    assert Counter(comparison.is_equal for comparison in pipeline.verify()) == {True: count}
