"""The sensor that keeps a stream running. It looks and decides; it consumes nothing and may be previewed at will."""

import contextlib
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from etl_core.errors import EtlError
from etl_core.identifiers import TableName
from etl_dagster import names
from etl_dagster.hints import in_dagster, sentence
from etl_dagster.stream import presence
from etl_dagster.stream.control_job import ACTION_TAG
from etl_dagster.stream.copy_requests import copy_request, to_be_copied
from etl_dagster.stream.outside_states import is_told_by_a_run, state_events
from etl_dagster.stream.runs import failure_message, failures_in_a_row, latest_runs, runs_in_flight
from etl_dagster.stream.sensor_text import REASON_TAG, stream_text
from etl_dagster.stream.standstill import latest_control_run, may_stand_still, stands_still, surroundings
from etl_dagster.stream.supervisor import Situation, decide
from etl_dagster.translator import DagsterReplicationTranslator, ReplicatedTableProps

if TYPE_CHECKING:
    from etl_core.source.connection import Connection
    from etl_core.source.slot import SlotStatus
    from etl_core.state.store import StateStore, TableStatus
    from etl_dagster.resources import PostgresReplicationResource

_TICK_SECONDS = 4
"""Not 5: the daemon's own loop takes 5, and the two together alternate between 5 and 10."""
_LOOK_TIMEOUT = 3


def build_stream_sensor(
    replication: "PostgresReplicationResource",
    tables: Sequence[TableName],
    job: dg.JobDefinition,
    *,
    lease_seconds: float = 900.0,
    sync_job: Any = None,
    translator: DagsterReplicationTranslator | None = None,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.STOPPED,
) -> dg.SensorDefinition:
    """Starts stream runs, one after the other, and copies again the tables that the engine set back.

    `sync_job` is what `dg.define_asset_job` returned for the initial syncs (a type without a public name).
    """
    translator = translator or DagsterReplicationTranslator()
    keys = {table: translator.get_asset_spec(ReplicatedTableProps(table, replication)).key for table in tables}
    resource = names.resource_key(replication.name)

    @dg.sensor(
        name=names.stream_sensor_name(replication.name),
        jobs=[job, sync_job] if sync_job is not None else [job],
        minimum_interval_seconds=_TICK_SECONDS,
        default_status=default_status,
        required_resource_keys={resource},
        description=f"Keeps a run of {job.name} streaming; each tick says what is going on.",
    )
    def stream_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        from etl_core.identifiers import main_slot_name
        from etl_core.source.slot import slot_status

        supervised: PostgresReplicationResource = getattr(context.resources, resource)
        try:
            with (
                contextlib.closing(supervised.state.open(supervised.name)) as store,
                supervised.connect("sensor", timeout=_LOOK_TIMEOUT) as connection,
            ):
                store.migrate()
                slot = slot_status(connection, main_slot_name(supervised.name))
                situation = _look(context.instance, supervised, job.name, connection, slot, store)
                statuses = store.tables()
                again = to_be_copied(statuses, store)
                decision = decide(situation, lease=lease_seconds)
                lag = stream_text(connection, slot, store) if decision.run_key is None else ""
                told: list[dg.AssetCheckEvaluation] = []
                cursor = context.cursor
                if not is_told_by_a_run(decision, situation.runs):
                    told, cursor = state_events(statuses, store, keys, context.instance, supervised.name, cursor)
        except EtlError as error:
            return dg.SkipReason(sentence(error, supervised.name))
        requests = []
        if decision.run_key is not None:
            context.log.info(decision.reason)
            tags = {REASON_TAG: decision.reason}
            requests.append(dg.RunRequest(run_key=decision.run_key, job_name=job.name, tags=tags))
        # A copy prepares the pipeline as a stream run does: what one of them fails with, the other would.
        if sync_job is not None and situation.standstill is None:
            wanted = [status for status in again if status.name in keys]
            copies = copy_request(context.instance, wanted, keys, sync_job.name, replication.name)
            if copies is not None:
                context.log.info(copies.tags[REASON_TAG])
                requests.append(copies)
        if requests:
            return dg.SensorResult(run_requests=requests, asset_events=told, cursor=cursor)
        reason = decision.reason + lag + _remark(statuses, again, keys, supervised.name)
        return dg.SensorResult(skip_reason=reason, asset_events=told, cursor=cursor)

    return stream_sensor


def _look(
    instance: dg.DagsterInstance,
    replication: "PostgresReplicationResource",
    job: str,
    connection: "Connection",
    slot: "SlotStatus | None",
    store: "StateStore",
) -> Situation:
    from etl_core.identifiers import main_slot_name

    sessions = presence.sessions(connection, replication.name)
    streaming = presence.streaming(connection, replication.name)
    runs = runs_in_flight(instance, job, sessions, streaming)
    latest = latest_runs(instance, job)
    standstill = _standstill(instance, replication, connection, store, latest[0]) if latest else None
    failures, since = failures_in_a_row(latest)
    return Situation(
        slot=main_slot_name(replication.name),
        runs=runs,
        latest_run_id=latest[0].dagster_run.run_id if latest else None,
        failures=failures,
        since_failure=since,
        other_sessions=len(presence.others(sessions, [record.dagster_run.run_id for record in latest])),
        active_pid=slot.active_pid if slot is not None else None,
        standstill=standstill,
        is_torn_down=store.source_identity() is None and _was_torn_down(instance, replication.name),
    )


def _standstill(
    instance: dg.DagsterInstance,
    replication: "PostgresReplicationResource",
    connection: "Connection",
    store: "StateStore",
    newest: dg.RunRecord,
) -> str | None:
    """The permanent error that the newest run failed with, if another run would fail with it."""
    if not may_stand_still(newest):
        return None
    if not stands_still(newest, surroundings(instance, replication, connection, store)):
        return None
    return failure_message(instance, newest.dagster_run.run_id) or "see its log"


def _was_torn_down(instance: dg.DagsterInstance, pipeline: str) -> bool:
    # Another action, such as a resync that found nothing, does not bring the pipeline back.
    record = latest_control_run(instance, pipeline, {ACTION_TAG: ["teardown", "reset"]})
    return record is not None and record.dagster_run.tags.get(ACTION_TAG) == "teardown"


def _remark(
    statuses: "Sequence[TableStatus]",
    again: "Sequence[TableStatus]",
    assets: Container[TableName],
    pipeline: str,
) -> str:
    from etl_core.state.table_state import TableState

    asked_for = {status.table_id for status in again}
    others = [status for status in statuses if status.table_id not in asked_for]
    new = [str(status.name) for status in statuses if status.name not in assets]
    never = sum(status.state is TableState.INIT and status.name in assets for status in others)
    stopped = [status for status in others if status.state is TableState.ERRORED]
    remarks = []
    if new:
        remarks.append(
            f"tables of the publication without an asset in this code location: {len(new)}, such as {new[0]}; add them"
            " to the pipeline's tables (with discover: dg utils refresh-defs-state), reload, and materialise them"
        )
    if never:
        remarks.append(f"{never} tables are not copied yet: materialise them")
    if again:
        remarks.append(
            f"{len(again)} tables are to be copied again: a run is under way, or the last one has just failed"
        )
    if stopped:
        first = stopped[0]
        what = f"{first.name}: {first.error}" + (f" → {in_dagster(first.hint, pipeline)}" if first.hint else "")
        remarks.append(f"{len(stopped)} stopped, the first is {what}")
    return "".join(f"; {remark}" for remark in remarks)
