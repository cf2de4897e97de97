"""What a policy leaves to a person waits, the other tables flow on, and what was approved ends exact."""
# ruff: noqa: S608 the tests write their own SQL

from __future__ import annotations

import signal
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from etl_core.config_tables import TableSettings
from etl_core.errors import ConfigError, DecisionNeeded, EtlError
from etl_core.identifiers import TableName
from etl_core.lsn import Lsn
from etl_core.policies import PolicySettings, Recopy, SchemaChanges, TablePolicy
from etl_core.replication import failpoints
from etl_core.state.table_state import TableState
from tests.integration.replication.conftest import PATIENCE, poll

if TYPE_CHECKING:
    from etl_core.control import PipelineControl
    from etl_core.state.store import TableStatus
    from tests.integration.replication.conftest import Lab, Watched

REWRITTEN = "ALTER TABLE {t} ALTER n TYPE bigint"
ROWS = "INSERT INTO {t} (id) VALUES (8); DELETE FROM {t} WHERE id = 2"


def create(lab: Lab, tables: Collection[str], rows: int = 3) -> None:
    for table in tables:
        lab.execute(
            f"CREATE TABLE {table} (id int PRIMARY KEY, n int, note text);"
            f"INSERT INTO {table} SELECT i, i, 'note ' || i FROM generate_series(1, {rows}) i"
        )


def alter(lab: Lab, changes: Mapping[str, str]) -> None:
    """Each with a row that is inserted and one that is deleted after it."""
    for table, statement in changes.items():
        lab.execute(f"{statement}; {ROWS}".format(t=table))


def waiting(pipeline: PipelineControl) -> dict[str, TableStatus]:
    return {status.name.name: status for status in pipeline.waiting()}


def until_waiting(pipeline: PipelineControl, tables: Collection[str]) -> dict[str, TableStatus]:
    poll(lambda: waiting(pipeline).keys() == set(tables), f"that {sorted(tables)} wait, and no other table")
    return waiting(pipeline)


def until_in_step(lab: Lab, pipeline: Watched, table: str) -> None:
    """The stream flows on, and `table` with it."""
    [(row,)] = lab.execute(f"INSERT INTO {table} (id) SELECT max(id) + 1 FROM {table} RETURNING id")
    poll(lambda: lab.rows(f"SELECT 1 FROM public.{table} WHERE id = {row}") == [(1,)], f"a row of {table}")


def columns(lab: Lab, table: str) -> list[str]:
    return [row[0] for row in lab.rows(f"DESCRIBE public.{table}")]


def approve(pipeline: PipelineControl, *tables: str) -> None:
    for table in tables:
        pipeline.approve(pipeline.find(TableName("public", table)))


def settled(lab: Lab, pipeline: Watched) -> None:
    """Copies what is to be copied and brings every table to the source's end; none waits and all are equal."""
    pipeline.stop.clear()
    for outcome in pipeline.sync():
        assert not isinstance(outcome, EtlError), outcome
    lab.assert_equal(pipeline)


def test_a_table_is_copied_again_when_a_person_asks_or_its_size_allows(lab: Lab) -> None:
    tables = ["asked", "large", "small", "free", "made_anew", "tuned", "flows"]
    create(lab, tables)
    lab.execute("INSERT INTO large SELECT i, i, repeat('x', 50) FROM generate_series(10, 3000) i")
    lab.publish()
    settings = {
        "asked": PolicySettings(recopy=Recopy.ASK),
        "large": PolicySettings(recopy_max_bytes=50_000),
        "small": PolicySettings(recopy_max_bytes=50_000),
        "made_anew": PolicySettings(recopy=Recopy.ASK),
        "tuned": PolicySettings(recopy=Recopy.ASK),
    }
    policies = tuple(TableSettings(table, policy=policy) for table, policy in settings.items())
    pipeline = lab.synced(tables=policies)  # first copies are never asked about
    before = lab.rows("SELECT * FROM public.asked ORDER BY id")
    pipeline.watch.every = 0.1
    with lab.running(pipeline):
        pipeline.observer.until_ready("flows")
        alter(lab, dict.fromkeys(["asked", "large", "small", "free"], REWRITTEN))
        lab.execute("DROP TABLE made_anew; CREATE TABLE made_anew (id int PRIMARY KEY, other text)")
        stopped = until_waiting(pipeline, ["asked", "large", "made_anew"])
        pipeline.observer.until_state("small", TableState.READY, times=2)
        pipeline.observer.until_state("free", TableState.READY, times=2)
        until_in_step(lab, pipeline, "flows")
        assert lab.rows("SELECT * FROM public.asked ORDER BY id") == before
        assert columns(lab, "made_anew") == ["id", "n", "note"]
    assert {status.waits_for for status in stopped.values()} == {"recopy"}
    assert all(status.sync_slot is None and status.retry_at is None for status in stopped.values())
    assert (stopped["asked"].error or "").startswith(
        "public.asked is to be copied again and waits for a person (recopy"
    )
    assert "recopy_max_bytes: 50000" in (stopped["large"].error or "")
    assert str(stopped["asked"].hint).endswith("to copy it: etl resync public.asked")

    # A start changes nothing, but for a policy that says otherwise, and for what a person has set.
    pipeline.close()
    policies = tuple(
        replace(one, write_mode=None, policy=PolicySettings()) if one.pattern == "large" else one for one in policies
    )
    renamed = replace(policies[-1].columns, rename={"note": "remark"})
    policies = (*policies[:-1], replace(policies[-1], columns=renamed))
    pipeline = lab.pipeline(tables=policies)
    outcomes = pipeline.sync()
    assert not [outcome for outcome in outcomes if isinstance(outcome, EtlError)]
    assert waiting(pipeline) == {name: stopped[name] for name in ("asked", "made_anew")}
    assert columns(lab, "tuned") == ["id", "n", "remark"]
    lab.caught_up(pipeline)
    with pytest.raises(ConfigError, match=r"public\.flows does not wait for approval"):
        approve(pipeline, "flows")
    pipeline.resync(TableName("public", "asked"))
    approve(pipeline, "made_anew")
    pipeline.close()
    settled(lab, lab.pipeline(tables=policies[:-1]))


def test_a_copy_that_a_person_asked_for_needs_no_second_word_after_a_crash(lab: Lab) -> None:
    create(lab, ["t", "other"])
    lab.publish()
    lab.config = replace(lab.config, policy=TablePolicy(recopy=Recopy.ASK))
    for failpoint in (failpoints.COPY_STARTED, failpoints.COPY_PUBLISHED):  # the first copy, and that of `resync`
        assert lab.process("run", failpoint=f"{failpoint}:kill").wait(PATIENCE) == -signal.SIGKILL
        settled(lab, lab.pipeline())
        with lab.unprepared() as pipeline:
            pipeline.resync(TableName("public", "t"))
    settled(lab, lab.pipeline())
    alter(lab, {"t": REWRITTEN})
    assert lab.process("run", failpoint=f"{failpoints.TABLE_SET_BACK}:kill").wait(PATIENCE) == -signal.SIGKILL
    pipeline = lab.pipeline()
    [outcome] = pipeline.sync()
    assert isinstance(outcome, DecisionNeeded)
    assert waiting(pipeline).keys() == {"t"}
    lab.caught_up(pipeline)
    assert lab.slots() == {pipeline.source.main_slot}
    approve(pipeline, "t")
    settled(lab, pipeline)


IN_PLACE = {
    "added": "ALTER TABLE {t} ADD c int DEFAULT 5",
    "dropped": "ALTER TABLE {t} DROP note",
    "renamed": "ALTER TABLE {t} RENAME note TO remark",
    "rekeyed": "ALTER TABLE {t} DROP CONSTRAINT {t}_pkey, ALTER n SET NOT NULL, ADD PRIMARY KEY (id, n)",
}


def test_a_change_waits_until_exactly_that_one_is_approved(lab: Lab) -> None:
    changes = {
        **IN_PLACE,
        "rewritten": REWRITTEN,
        "later": "ALTER TABLE {t} DROP note",
        "loose": "ALTER TABLE {t} RENAME note TO remark",
        "drops": "ALTER TABLE {t} ADD c int; ALTER TABLE {t} DROP note",
    }
    tables = [*changes, "adds", "harmless", "away", "flows"]
    create(lab, tables)
    lab.execute("ALTER TABLE rekeyed ALTER n SET DEFAULT 0")
    lab.publish()
    lab.config = replace(lab.config, policy=TablePolicy(SchemaChanges.APPROVE))
    add_only = PolicySettings(SchemaChanges.ADD_ONLY)
    lab.config = replace(lab.config, tables=tuple(TableSettings(name, policy=add_only) for name in ("adds", "drops")))
    pipeline = lab.synced()
    before = {table: lab.rows(f"SELECT * FROM public.{table} ORDER BY id") for table in changes}
    pipeline.watch.every = 0.1
    with lab.running(pipeline):
        pipeline.observer.until_ready("flows")
        flows = {"adds": IN_PLACE["added"], "harmless": "ALTER TABLE {t} ALTER n SET DEFAULT 3"}
        alter(lab, {**changes, **flows})
        until_waiting(pipeline, changes)
        until_in_step(lab, pipeline, "flows")
        until_in_step(lab, pipeline, "adds")
        until_in_step(lab, pipeline, "harmless")
        assert columns(lab, "adds") == ["id", "n", "note", "c"]
        for table, rows in before.items():
            if table != "drops":  # its added column may have been applied first
                assert lab.rows(f"SELECT * FROM public.{table} ORDER BY id") == rows
        approve(pipeline, "added", "dropped", "rewritten")
        for table in ("added", "dropped", "rewritten"):
            until_in_step(lab, pipeline, table)
        alter(lab, {"later": "DELETE FROM later WHERE id = 8; ALTER TABLE {t} ADD d int DEFAULT 7"})
        left = until_waiting(pipeline, changes.keys() - {"added", "dropped", "rewritten"})
    assert {name: status.waits_for for name, status in left.items()} == {
        **dict.fromkeys(["renamed", "rekeyed", "later", "loose"], "approve"),
        "drops": "add_only",
    }
    assert "column note (text) was renamed to remark (text)" in (left["renamed"].error or "")
    assert "etl approve public.renamed" in (left["renamed"].hint or "")
    assert "set schema_changes: apply" in (left["drops"].hint or "")
    pipeline.close()

    alter(lab, {"away": "ALTER TABLE {t} DROP n"})
    lab.config = replace(
        lab.config, tables=(*lab.config.tables, TableSettings("loose", policy=PolicySettings(SchemaChanges.APPLY)))
    )
    pipeline = lab.pipeline()
    pipeline.sync()
    lab.caught_up(pipeline)
    assert waiting(pipeline).keys() == left.keys() - {"loose"} | {"away"}
    approve(pipeline, "later", "renamed")
    with pytest.raises(ConfigError, match="does not wait for approval"):
        approve(pipeline, "later")
    pipeline.close()
    pipeline = lab.pipeline()
    pipeline.sync()
    lab.caught_up(pipeline)
    again = waiting(pipeline)
    assert again.keys() == {"rekeyed", "later", "drops", "away"}
    assert "column d (int4) was added" in (again["later"].error or "")
    approve(pipeline, *again)
    settled(lab, pipeline)


def test_a_renamed_table_does_not_lose_its_policy(lab: Lab) -> None:
    create(lab, ["t", "other"])
    lab.publish()
    asks = PolicySettings(SchemaChanges.APPROVE, Recopy.ASK)
    lab.config = replace(lab.config, tables=(TableSettings("public.t", policy=asks),))
    pipeline = lab.synced()
    lab.execute("ALTER TABLE t RENAME TO u; ALTER TABLE u DROP note; INSERT INTO u (id) VALUES (9)")
    lab.execute("ALTER TABLE other RENAME TO another; INSERT INTO another (id) VALUES (9)")
    lab.caught_up(pipeline)
    [error] = pipeline.observer.errors.values()
    assert "public.t was renamed to public.u, and the settings have schema_changes or recopy for its old name" in str(
        error
    )
    assert "note" in columns(lab, "t")
    assert lab.rows("SELECT count(*) FROM public.another") == [(4,)]

    renamed = TableSettings("public.u", policy=PolicySettings(recopy=Recopy.AUTO, schema_changes=SchemaChanges.APPLY))
    lab.config = replace(lab.config, tables=(renamed,))
    lab.assert_equal(lab.synced())


def test_killed_while_a_change_waits_and_while_the_approved_one_catches_up(lab: Lab) -> None:
    create(lab, ["t", "other"])
    lab.publish()
    lab.config = replace(lab.config, policy=TablePolicy(SchemaChanges.APPROVE))
    lab.synced().close()
    # One transaction, and so one batch: both changes are to be approved before any row of it is applied.
    both = f"{IN_PLACE['renamed']}; INSERT INTO {{t}} (id) VALUES (9); {IN_PLACE['added']}"
    alter(lab, {"t": both, "other": "SELECT 1"})
    process = lab.process("run")
    with lab.unprepared() as control:
        until_waiting(control, ["t"])
        # The stream has gone on without it, and the destination was told up to where the slot is complete.
        lab.until_confirmed(control, Lsn.parse(str(lab.execute("SELECT pg_current_wal_insert_lsn()")[0][0])))
    process.kill()
    process.wait(PATIENCE)
    pipeline = lab.pipeline()
    lab.caught_up(pipeline)
    [status] = pipeline.waiting()
    assert status.sync_slot is not None
    assert lab.slots() == {pipeline.source.main_slot, status.sync_slot}
    lab.execute("UPDATE t SET n = 70, remark = 'later'")
    pipeline.approve(status)
    lab.caught_up(pipeline)
    [second] = pipeline.waiting()
    assert second.error != status.error
    assert second.sync_slot == status.sync_slot
    pipeline.close()
    with lab.unprepared() as control:
        control.approve(second)
    for failpoint in (failpoints.CATCHUP_WRITTEN, failpoints.READY_STORED):
        assert lab.process("run", failpoint=f"{failpoint}:kill").wait(PATIENCE) == -signal.SIGKILL
    pipeline = lab.pipeline()
    settled(lab, pipeline)
    assert pipeline.store.tables_once_in([TableState.ERRORED]) == {status.table_id}
    copied = [line for line in pipeline.store.history(status.table_id) if line.to_state is TableState.DATA_SYNC]
    assert len(copied) == 1  # it went on from where it waited
