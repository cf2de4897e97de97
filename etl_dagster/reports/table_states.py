"""The check `table_state`: whether a table streams, and if not why, since when, and what brings it back.

A stream run reports it when it changes, and with a table's first report: Dagster takes a check for evaluated as long as
the table's last materialisation is of the same run. The first result is of the run, later ones are of none: Dagster has
one row for a run and a check, which a second result would overwrite behind those that other runs had since.

A failed table has no event of its own: the one that Dagster has for it (`ASSET_FAILED_TO_MATERIALIZE`) can be logged by
no public name in 1.13.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeAlias

import dagster as dg

from etl_core.identifiers import TableName
from etl_dagster.hints import in_dagster
from etl_dagster.reports.verdicts import Verdict

if TYPE_CHECKING:
    from etl_core.state.store import StateStore, TableStatus, Transition

TABLE_STATE = "table_state"

_LOOK_EVERY = 5.0
_WARN = dg.AssetCheckSeverity.WARN
_COPIES = frozenset({"INIT", "DATA_SYNC", "FINISHED_COPY", "SYNC_DONE"})
"""Told as one state: each of them is soon followed by the next."""
_COPIED = frozenset({"FINISHED_COPY", "SYNC_DONE"})

_Told: TypeAlias = tuple[str, str | None, datetime | None, tuple[str, ...]]


def judge_table_state(
    table: TableName,
    status: "TableStatus | None",
    history: "Sequence[Transition]",
    pipeline: str,
    ignored: Sequence[str] = (),
) -> Verdict:
    """The verdict on a table by its status in the state store, and its history, the newest move first.

    `ignored` are the changes of its columns that are not followed.
    """
    from etl_core.cli.texts import STATE_WORDS, told_ignored

    if status is None:
        what = "it is not published, was never materialised, or has another name at the source now"
        return Verdict(False, f"{table} is not replicated: {what} (then change it in the code location, too)", _WARN)
    state = status.state.name
    told: dict[str, float | int | str] = {"etl/state": state}
    if state == "READY" and ignored:
        sentence = told_ignored(ignored)
        return Verdict(True, f"{table} streams; {sentence}", numbers=told | {"etl/ignored": ", ".join(ignored)})
    if state == "READY":
        return Verdict(True, f"{table} streams", numbers=told)
    since = _not_streaming_since(history)
    if since is not None:
        told["etl/since"] = _moment(since)
    if state == "ERRORED":
        return Verdict(False, _stopped(table, status, pipeline), numbers=told | _error(status, pipeline))
    if state == "PAUSED":
        advice = in_dagster(f"etl resume {table}", pipeline)
        return Verdict(False, f"{table} is paused, and its changes are not replicated → {advice}", _WARN, told)
    readers = "its changes come with the next stream" if state in _COPIED else "readers have what it had before"
    return Verdict(False, f"{table} is {STATE_WORDS[status.state]}; {readers}", _WARN, told)


def _stopped(table: TableName, status: "TableStatus", pipeline: str) -> str:
    what = f"{table} stopped: {_one_line(status.error or 'the reason is not known')}"
    again = "" if status.retry_at is None else f"; tried again at {_moment(status.retry_at)}"
    hint = f" → {_one_line(in_dagster(status.hint, pipeline))}" if status.hint else ""
    return f"{what}{again}{hint}"


def _error(status: "TableStatus", pipeline: str) -> dict[str, float | int | str]:
    found = {
        "etl/waits_for": status.waits_for,
        "etl/error": status.error,
        "etl/hint": None if status.hint is None else in_dagster(status.hint, pipeline),
        "etl/next_try": None if status.retry_at is None else _moment(status.retry_at),
    }
    return {**{name: text for name, text in found.items() if text}, "etl/failed_tries": status.attempts}


def _not_streaming_since(history: "Sequence[Transition]") -> datetime | None:
    """When it left READY, or became known if it never was."""
    since = None
    for move in history:
        if move.to_state.name == "READY":
            break
        since = move.at
    return since


def _moment(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _one_line(text: str) -> str:
    return " ".join(text.split())


class TableStates:
    """What one stream run tells of its tables' states. `last_told` is asked once for each table.

    It gives the description of the last result that Dagster has of the check: most tables stream on from run to run.
    """

    def __init__(
        self,
        keys: Mapping[TableName, dg.AssetKey],
        pipeline: str,
        last_told: Callable[[dg.AssetKey], str | None],
        ignores: Callable[[TableName], bool] = lambda _: False,
    ) -> None:
        """`ignores`: whether changes of a table's columns are ignored, so that it is looked which."""
        self._keys = keys
        self._pipeline = pipeline
        self._last_told = last_told
        self._ignores = ignores
        self._told: dict[TableName, _Told] = {}
        self._evaluated: set[dg.AssetKey] = set()
        self._reported: set[dg.AssetKey] = set()
        self._next = 0.0

    def reported(self, key: dg.AssetKey) -> None:
        """The run has reported the table: a result from an earlier run no longer counts."""
        self._reported.add(key)

    def report(self, store: "StateStore", context: dg.OpExecutionContext, *, at_once: bool = False) -> None:
        """Tells Dagster what is new. Looks into the store every few seconds, or `at_once`. Raises EtlError."""
        for result in self._due(store, at_once):
            if result.asset_key in self._evaluated:
                context.instance.report_runless_asset_event(result)
            else:
                self._evaluated.add(result.asset_key)
                context.log_event(result)  # type: ignore[arg-type]  # Dagster takes it, and does not say so

    def _due(self, store: "StateStore", at_once: bool) -> Iterator[dg.AssetCheckEvaluation]:
        if not at_once and time.monotonic() < self._next:
            return
        from etl_core.replication.ignored_changes import ignored_of

        self._next = time.monotonic() + _LOOK_EVERY
        statuses = {status.name: status for status in store.tables()}
        for table, key in self._keys.items():
            status = statuses.get(table)
            ignored = () if status is None or not self._ignores(table) else ignored_of(store, status.table_id)
            now = _told(status, ignored)
            is_due = key in self._reported and key not in self._evaluated
            if now == self._told.get(table) and not is_due:
                continue
            result = self._evaluation(table, key, status, store, ignored)
            is_known = table not in self._told and result.description == self._last_told(key)
            self._told[table] = now
            if is_due or not is_known:
                yield result

    def _evaluation(
        self,
        table: TableName,
        key: dg.AssetKey,
        status: "TableStatus | None",
        store: "StateStore",
        ignored: Sequence[str],
    ) -> dg.AssetCheckEvaluation:
        history = [] if status is None else store.history(status.table_id)
        verdict = judge_table_state(table, status, history, self._pipeline, ignored)
        return verdict.evaluation(key, TABLE_STATE)


def _told(status: "TableStatus | None", ignored: tuple[str, ...]) -> _Told:
    """What a new result is worth: not each step of a copy."""
    if status is None:
        return "", None, None, ()
    state = status.state.name
    return ("COPIED" if state in _COPIES else state), status.error, status.retry_at, ignored


def last_told(instance: dg.DagsterInstance, key: dg.AssetKey) -> str | None:
    """The description of the last result of the check that Dagster has; None if it has none, or the next is planned."""
    record = instance.get_latest_asset_check_evaluation_record(dg.AssetCheckKey(key, TABLE_STATE))
    evaluation = None if record is None else record.evaluation
    # While a run that is to evaluate the check is under way, its plan stands there.
    return evaluation.description if isinstance(evaluation, dg.AssetCheckEvaluation) else None
