"""The checks that a stream run reports by itself, so that they are fresh without a schedule, and the slot's numbers.

A check of a table comes with its reports, once a minute at most, and at once when its outcome changes. Dagster takes a
check for fresh as long as the run that evaluated it is the one that reported the table last, so that it is not repeated
with every report: each event stays in Dagster's storage for ever.
"""

import math
import time
from collections.abc import Iterator, Mapping
from typing import TypeAlias

import dagster as dg

from etl_core.identifiers import TableName
from etl_core.state.table_state import TableState
from etl_dagster.reports.source_watch import SourceWatch
from etl_dagster.reports.verdicts import Verdict, judge_lag, judge_slot, judge_state

REPLICATION_LAG = "replication_lag"
SLOT_HEALTH = "slot_health"

_JUDGED = (TableState.READY, TableState.ERRORED, TableState.PAUSED)
_AGAIN_AFTER = 60.0
_SLOT_CHECK_AGAIN_AFTER = 900.0

LiveEvent: TypeAlias = dg.AssetCheckEvaluation | dg.AssetObservation


class LiveChecks:
    """Of one stream run. `keys` has the tables' assets, `slot` is the asset of the replication slot."""

    def __init__(self, keys: Mapping[TableName, dg.AssetKey], slot: dg.AssetKey, max_lag: float) -> None:
        self._keys = keys
        self._slot = slot
        self._max_lag = max_lag
        self._reported: set[dg.AssetKey] = set()
        self._told: dict[tuple[dg.AssetKey, str], tuple[tuple[bool, dg.AssetCheckSeverity], float]] = {}
        self._observed_at: float | None = None

    def reported(self, key: dg.AssetKey) -> None:
        """The table with this asset was reported: its checks are due with it."""
        self._reported.add(key)

    def due(self, watch: SourceWatch) -> Iterator[LiveEvent]:
        """What to tell after a look of `watch`."""
        now = time.monotonic()
        if watch.stream is not None:
            for name, key in self._keys.items():
                status = watch.tables.get(name)
                if status is None or status.state not in _JUDGED:
                    continue  # it is being copied, or is about to be: its page shows that
                verdict = judge_state(name, status) or judge_lag(name, watch.stream, self._max_lag)
                yield from self._table(key, verdict, now)
        if watch.slot is not None:
            verdict = judge_slot(watch.slot)
            yield from self._evaluation(self._slot, SLOT_HEALTH, verdict, now, _SLOT_CHECK_AGAIN_AFTER)
            if self._observed_at is None or now - self._observed_at >= _AGAIN_AFTER:
                self._observed_at = now
                numbers = dict(verdict.numbers)
                if watch.stream is not None and watch.stream.lag_seconds is not None:
                    numbers["etl/lag_seconds"] = round(watch.stream.lag_seconds, 3)
                yield dg.AssetObservation(self._slot, description=verdict.description, metadata=numbers)

    def _table(self, key: dg.AssetKey, verdict: Verdict, now: float) -> Iterator[dg.AssetCheckEvaluation]:
        is_reported = key in self._reported
        if verdict.passed and not is_reported and (key, REPLICATION_LAG) not in self._told:
            return  # an earlier run has told that
        again_after = _AGAIN_AFTER if is_reported else math.inf
        for evaluation in self._evaluation(key, REPLICATION_LAG, verdict, now, again_after):
            self._reported.discard(key)
            yield evaluation

    def _evaluation(
        self, key: dg.AssetKey, check: str, verdict: Verdict, now: float, again_after: float
    ) -> Iterator[dg.AssetCheckEvaluation]:
        outcome = (verdict.passed, verdict.severity)
        told = self._told.get((key, check))
        if told is not None and told[0] == outcome and now - told[1] < again_after:
            return
        self._told[key, check] = (outcome, now)
        yield verdict.evaluation(key, check)
