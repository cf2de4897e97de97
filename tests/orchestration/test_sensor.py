"""Ticks of the stream sensor, as the daemon and as "Preview tick result" evaluate them."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import dagster as dg
import pytest

from etl_core.identifiers import TableName
from etl_core.source import connection
from etl_core.testing.postgres import Database
from etl_dagster import names
from etl_dagster.definitions.factory import build_postgres_replication
from etl_dagster.resources import PostgresReplicationResource
from etl_dagster.stream import copy_requests, presence
from etl_dagster.stream.sensor import build_stream_sensor
from etl_dagster.stream.sensor_text import slot_text
from etl_dagster.stream.stream_job import StreamConfig, build_stream_job
from tests.orchestration.syncing import await_slot
from tests.orchestration.test_checks import SLOT

TABLES = [TableName("public", name) for name in ("orders", "customers", "notes")]


def tick(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, *, lease: float = 900.0
) -> tuple[list[dg.RunRequest], str | None]:
    """The runs a tick requests, and why it requests none."""
    sync_job = dg.define_asset_job(names.sync_job_name(replication.name))
    built = build_stream_sensor(
        replication, TABLES, build_stream_job(replication, TABLES), lease_seconds=lease, sync_job=sync_job
    )
    resources = {names.resource_key(replication.name): replication}
    with dg.build_sensor_context(instance, resources=resources) as context:
        answer = built.evaluate_tick(context)
    return list(answer.run_requests or ()), answer.skip_message


def synced(replication: PostgresReplicationResource) -> None:
    with replication.pipeline() as pipeline:
        pipeline.prepare()
        pipeline.sync()
        pipeline.stream(until=pipeline.current_lsn())
    await_slot(replication, active=False)


@contextlib.contextmanager
def read_elsewhere(replication: PostgresReplicationResource) -> Iterator[None]:
    """Somebody reads the slot beside the block, so that a tick starts no run and says what it knows."""
    await_slot(replication, active=False)
    with replication.connect("other", replication=True) as other:
        slot = f"etl_{replication.name}"
        options = f"(proto_version '1', publication_names '{replication.publication}')"
        other.pgconn.send_query(f"START_REPLICATION SLOT {slot} LOGICAL 0/0 {options}".encode())
        other.pgconn.get_result()
        await_slot(replication, active=True)
        yield
    await_slot(replication, active=False)


def test_a_tick_changes_nothing_however_often_it_is_previewed(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database
) -> None:
    synced(replication)
    database.execute("INSERT INTO notes VALUES (1, 'x')")
    query = "SELECT confirmed_flush_lsn, active FROM pg_replication_slots"
    before = database.execute(query)
    keys = {request.run_key for _ in range(3) for request in tick(replication, instance)[0]}
    assert keys == {f"etl_{replication.name}:after:nothing"}
    assert database.execute(query) == before


def test_a_tick_names_tables_of_the_publication_that_have_no_asset(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database
) -> None:
    found = replication.model_copy(update={"tables": None})  # as a component has it that discovers its tables
    database.execute("CREATE TABLE invoices (id int PRIMARY KEY); ALTER PUBLICATION shop_pub ADD TABLE invoices")
    synced(found)
    with read_elsewhere(found):
        _, said = tick(found, instance)
    assert said is not None
    assert "tables of the publication without an asset in this code location: 1, such as public.invoices;" in said
    assert "refresh-defs-state" in said


def test_each_run_has_one_successor(replication: PostgresReplicationResource, instance: dg.DagsterInstance) -> None:
    synced(replication)
    result = build_stream_job(replication, TABLES).execute_in_process(
        instance=instance,
        resources={names.resource_key(replication.name): replication},
        run_config=dg.RunConfig(ops={f"stream_{replication.name}": StreamConfig(mode="micro_batch")}),
    )
    [request], _ = tick(replication, instance)
    assert request.run_key == f"etl_{replication.name}:after:{result.run_id}"


def test_a_tick_says_how_far_behind_the_stream_is_and_how_long_its_slot_lasts(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, database: Database
) -> None:
    synced(replication)
    [request], _ = tick(replication, instance)
    assert request.tags["etl/reason"] == "nothing streams: starting a run"
    database.execute("INSERT INTO notes VALUES (1, 'x')")
    with read_elsewhere(replication):
        _, said = tick(replication, instance)
    assert said is not None
    assert "the slot is read by server process" in said
    assert re.search(r"; \d[\d.]* (B|KiB|MiB) and at most [\d.]+ s behind; ", said)
    assert "its slot keeps WAL without a limit (max_slot_wal_keep_size)" in said


def test_a_tick_connects_to_the_source_once(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced(replication)
    roles = connections(monkeypatch)
    with replication.connect(presence.turn_of("elsewhere")), replication.connect(presence.role_of("elsewhere")):
        roles.clear()
        _, said = tick(replication, instance)
    assert roles == ["sensor"]
    assert "another Dagster instance streams this pipeline" in str(said)
    assert "behind; its slot keeps WAL" in str(said)


def connections(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The roles of the connections to the source from now on, as they are opened."""
    roles: list[str] = []

    def counted(*args: Any, role: str, **kwargs: Any) -> connection.Connection:
        roles.append(role)
        return connect(*args, role=role, **kwargs)

    connect = connection.connect
    monkeypatch.setattr(connection, "connect", counted)
    return roles


@pytest.mark.parametrize(
    ("left", "rate", "said"),
    [
        (10 * 2**30, 2**20, "its slot may fall behind by 10.0 GiB more, 2 h 50 min at the server's average rate"),
        (2**20, None, "its slot may fall behind by 1.0 MiB more"),
        (-5, 2**20, "its slot may fall behind by 0 B more, 0.0 s at the server's average rate"),
        (None, 2**20, "its slot keeps WAL without a limit (max_slot_wal_keep_size)"),
    ],
)
def test_the_room_that_a_slot_has(left: int | None, rate: float | None, said: str) -> None:
    assert slot_text(replace(SLOT, safe_wal_size=left), 2**34, rate) == said


def set_back(replication: PostgresReplicationResource, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tables are copied, the first is to be copied again, the third never was."""
    monkeypatch.setattr(copy_requests, "_SETTLED", timedelta(0))
    with replication.pipeline() as pipeline:
        pipeline.prepare()
        pipeline.sync(TABLES[:2])
        pipeline.resync(TABLES[0])


def test_a_table_that_was_set_back_is_copied_again_and_one_never_copied_is_not(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_back(replication, monkeypatch)
    requests, _ = tick(replication, instance)
    copies = [request for request in requests if request.job_name == names.sync_job_name(replication.name)]
    assert [request.asset_selection for request in copies] == [[dg.AssetKey(["duckdb", "public", "orders"])]]


def copies(replication: PostgresReplicationResource, instance: dg.DagsterInstance) -> list[dg.RunRequest]:
    job = names.sync_job_name(replication.name)
    return [request for request in tick(replication, instance)[0] if request.job_name == job]


def start(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, request: dg.RunRequest
) -> dg.DagsterRun:
    job = build_postgres_replication(replication).resolve_job_def(names.sync_job_name(replication.name))
    return instance.create_run_for_job(job, tags=request.tags, asset_selection={*(request.asset_selection or ())})


def test_a_copy_that_was_asked_for_is_asked_for_again_once_its_run_has_failed(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source that is away for a moment, say; the run has not moved the table."""
    set_back(replication, monkeypatch)
    [first] = copies(replication, instance)
    run = start(replication, instance, first)
    assert copies(replication, instance) == []
    instance.report_run_failed(run)
    assert copies(replication, instance) == []  # not at once
    monkeypatch.setattr(copy_requests, "_PAUSE", 0.0)
    [second] = copies(replication, instance)
    assert second.run_key != first.run_key, "Dagster takes no run key twice"
    assert (second.asset_selection, second.tags) == (first.asset_selection, first.tags)


def test_all_tables_that_are_due_are_asked_for_in_one_run_and_none_twice(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_back(replication, monkeypatch)
    with replication.pipeline() as pipeline:
        pipeline.resync(TABLES[1])
    [both] = copies(replication, instance)
    assert selected(both) == {"orders", "customers"}
    assert both.tags["etl/reason"] == "public.customers, public.orders to be copied again"
    assert copies(replication, instance)[0].run_key == both.run_key, "of a tick that timed out, another has the same"
    run = start(replication, instance, both)

    # One that is set back meanwhile, for the first time or once more, does not wait for the others.
    with replication.pipeline() as pipeline:
        pipeline.sync([TABLES[2]])
        pipeline.resync(TABLES[2])
        pipeline.sync([TABLES[1]])
        pipeline.resync(TABLES[1])
    [further] = copies(replication, instance)
    assert selected(further) == {"notes", "customers"}
    start(replication, instance, further)
    assert copies(replication, instance) == []

    monkeypatch.setattr(copy_requests, "_PAUSE", 0.0)
    instance.report_run_failed(run)
    [again] = copies(replication, instance)
    assert selected(again) == {"orders"}, "the others are in a run that goes on"


def test_a_run_that_was_killed_without_a_word_does_not_keep_its_tables_from_being_copied(
    replication: PostgresReplicationResource, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_back(replication, monkeypatch)
    [first] = copies(replication, instance)
    run = start(replication, instance, first)
    instance.report_engine_event("it copies", run)
    monkeypatch.setattr(copy_requests, "_PAUSE", 0.0)
    assert copies(replication, instance) == []
    monkeypatch.setattr(copy_requests, "_SILENCE", 0.0)
    [second] = copies(replication, instance)
    assert second.asset_selection == first.asset_selection
    monkeypatch.setattr(copy_requests, "_SILENCE", 600.0)
    later = start(replication, instance, second)
    assert copies(replication, instance) == []
    instance.report_run_failed(later)
    monkeypatch.setattr(copy_requests, "_SILENCE", 0.0)
    [third] = copies(replication, instance)
    assert len({first.run_key, second.run_key, third.run_key}) == 3, "Dagster takes no run key twice"


def selected(request: dg.RunRequest) -> set[str]:
    return {key.path[-1] for key in request.asset_selection or ()}


def test_a_source_that_is_away_is_a_reason_not_an_error(
    instance: dg.DagsterInstance, replication: PostgresReplicationResource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ETL_TEST_SOURCE", "postgresql://nobody@127.0.0.1:1/nowhere")
    requests, reason = tick(replication, instance)
    assert requests == []
    assert "cannot connect to 127.0.0.1:1" in str(reason)
