"""The stream runs as Dagster's instance knows them, joined with who is connected to the source."""

import time
from collections.abc import Container, Mapping, Sequence

import dagster as dg

from etl_dagster.stream import presence
from etl_dagster.stream.supervisor import StreamRun

_IN_FLIGHT = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
_LOOK_BACK = 8
_LAST_ENDED = 200


def runs_in_flight(
    instance: dg.DagsterInstance, job: str, sessions: set[str], streaming: str | None = None
) -> list[StreamRun]:
    """Runs of the job that have not ended as far as Dagster knows, the newest first. `streaming` has the turn."""
    records = instance.get_run_records(dg.RunsFilter(job_name=job, statuses=_IN_FLIGHT), limit=_LOOK_BACK)
    return [_stream_run(record, sessions, streaming) for record in records]


def later_streams(instance: dg.DagsterInstance, job: str, run_id: str, sessions: set[str]) -> list[str]:
    """The ids of the runs among `sessions` that were started after this one."""
    ids = _ids_in_flight(instance, job)
    later = ids[: ids.index(run_id)] if run_id in ids else []
    return [other for other in later if presence.is_present(other, sessions)]


def successors(instance: dg.DagsterInstance, job: str, run_id: str, sessions: set[str]) -> set[str]:
    """Those of `sessions` that are neither this run's nor of one that this instance knows to be older."""
    ids = _ids_in_flight(instance, job)
    return presence.others(sessions, ids[ids.index(run_id) :] if run_id in ids else [run_id])


def _ids_in_flight(instance: dg.DagsterInstance, job: str) -> list[str]:
    """The newest first."""
    runs = instance.get_runs(dg.RunsFilter(job_name=job, statuses=_IN_FLIGHT), limit=_LOOK_BACK)
    return [run.run_id for run in runs]


def tagged_run_in_flight(instance: dg.DagsterInstance, tags: Mapping[str, str]) -> str | None:
    """The id of the newest run with all of these tags that has not ended as far as Dagster knows."""
    runs = instance.get_runs(dg.RunsFilter(tags=tags, statuses=_IN_FLIGHT), limit=1)
    return runs[0].run_id if runs else None


def failure_message(instance: dg.DagsterInstance, run_id: str) -> str | None:
    """What the step that failed said; None if none has."""
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
        data = entry.dagster_event.step_failure_data if entry.dagster_event is not None else None
        if data is not None and data.user_failure_data is not None:
            return data.user_failure_data.description
    return None


def latest_runs(instance: dg.DagsterInstance, job: str) -> Sequence[dg.RunRecord]:
    """The last few runs of the job, the newest first, whatever became of them."""
    return instance.get_run_records(dg.RunsFilter(job_name=job), limit=_LOOK_BACK)


def in_flight_and_ended(instance: dg.DagsterInstance, job: str) -> list[dg.RunRecord]:
    """The runs of the job, the newest first: all that are in flight, and the last ones that have ended."""
    in_flight = instance.get_run_records(dg.RunsFilter(job_name=job, statuses=_IN_FLIGHT))
    ended = instance.get_run_records(dg.RunsFilter(job_name=job, statuses=_ENDED), limit=_LAST_ENDED)
    return sorted([*in_flight, *ended], key=lambda record: record.storage_id, reverse=True)


def silent_runs(instance: dg.DagsterInstance, records: Sequence[dg.RunRecord], seconds: float) -> set[str]:
    """The ids of those in flight, but for the queued ones, whose event log has had nothing new for so long."""
    return {
        record.dagster_run.run_id
        for record in records
        if record.dagster_run.status in _IN_FLIGHT
        and record.dagster_run.status is not dg.DagsterRunStatus.QUEUED
        and time.time() - _last_told(instance, record) > seconds
    }


def _last_told(instance: dg.DagsterInstance, record: dg.RunRecord) -> float:
    told = instance.get_records_for_run(record.dagster_run.run_id, limit=1, ascending=False).records
    return told[0].timestamp if told else record.create_timestamp.timestamp()


def may_start_again(
    records: Sequence[dg.RunRecord], pause: float, longest: float, *, gone: Container[str] = ()
) -> bool:
    """Whether there was no such run yet, or the last one ended at least `pause` seconds ago: twice that after two.

    While one is in flight that is not among `gone`, no other may start.
    """
    if any(record.dagster_run.status in _IN_FLIGHT and record.dagster_run.run_id not in gone for record in records):
        return False
    if not records:
        return True
    last = records[0]
    wait: float = min(pause * 2 ** (len(records) - 1), longest)
    return time.time() - (last.end_time or last.create_timestamp.timestamp()) >= wait


def failures_in_a_row(records: Sequence[dg.RunRecord]) -> tuple[int, float]:
    """How many of the latest ended runs failed, up to the first that did not, and the seconds since the last ended."""
    failures, since = 0, 0.0
    for record in records:
        if record.dagster_run.status in _IN_FLIGHT:
            continue
        if record.dagster_run.status is not dg.DagsterRunStatus.FAILURE or _lasted(record):
            break
        if failures == 0:
            since = time.time() - (record.end_time or time.time())
        failures += 1
    return failures, since


def _lasted(record: dg.RunRecord) -> bool:
    """A run that streamed for minutes before it failed says nothing about the next one."""
    return record.start_time is not None and (record.end_time or 0.0) - record.start_time > 60.0


def _stream_run(record: dg.RunRecord, sessions: set[str], streaming: str | None) -> StreamRun:
    run, now = record.dagster_run, time.time()
    return StreamRun(
        run.run_id,
        age=now - record.create_timestamp.timestamp(),
        running=None if record.start_time is None else now - record.start_time,
        has_session=presence.is_present(run.run_id, sessions),
        is_queued=run.status is dg.DagsterRunStatus.QUEUED,
        has_turn=streaming is not None and presence.is_present(run.run_id, {streaming}),
    )
