"""What a stream run sees of the source beside the stream: how far behind it is, its slot, the sizes of its tables."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from etl_core.errors import EtlError
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_dagster.reports.verdicts import SlotReading, StreamReading

if TYPE_CHECKING:
    from etl_core.pipeline import Pipeline
    from etl_core.source.connection import Connection
    from etl_core.state.store import TableStatus

_EVERY = 10.0
_WHILE_LATE = 1.0
_PATIENCE = 10.0
"""Seconds for which the stream must look late: it stores an idle position every five, so that a quiet source's last
progress is some seconds old though nothing is missing."""


class SourceWatch:
    """Looks every ten seconds, on the run's own session. Used by one thread."""

    def __init__(self, session: "Connection", pipeline: "Pipeline", max_lag: float) -> None:
        self._session = session
        self._pipeline = pipeline
        self._max_lag = max_lag
        self._next = 0.0
        self._late_since: float | None = None
        self._before: tuple[Lsn, float] | None = None
        self.tables: Mapping[TableName, TableStatus] = {}
        self.sizes: Mapping[TableId, int] = {}
        self.stream: StreamReading | None = None
        """None until it is certain whether the stream is late."""
        self.slot: SlotReading | None = None
        """None until two looks have given the rate of WAL."""

    def look(self, *, now: bool = False) -> bool:
        """Looks if it is time to, or `now`; False if it did not, or could not: the stream itself says why, then."""
        if not now and time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + _EVERY
        try:
            self._look()
        except EtlError:
            return False
        return True

    def _look(self) -> None:
        from etl_core.source.server import current_lsn
        from etl_core.source.sizes import table_sizes
        from etl_core.source.slot import slot_status, wal_limit

        store, name = self._pipeline.store, self._pipeline.source.main_slot
        end_lsn, at = current_lsn(self._session), time.monotonic()
        slot = slot_status(self._session, name)
        statuses = store.tables()
        self.tables = {status.name: status for status in statuses}
        self._judge(StreamReading(datetime.now(UTC), end_lsn, slot, store.progress()), at)
        if self._before is not None and at > self._before[1]:
            rate = (end_lsn - self._before[0]) / (at - self._before[1])
            self.slot = SlotReading(name, slot, wal_limit(self._session), rate)
        self._before = (end_lsn, at)
        self.sizes = table_sizes(self._session, [status.table_id for status in statuses])

    def _judge(self, reading: StreamReading, at: float) -> None:
        lag = reading.lag_seconds
        if lag is None or lag <= self._max_lag:
            self._late_since, self.stream = None, reading
            return
        self._next = time.monotonic() + _WHILE_LATE
        self._late_since = at if self._late_since is None else self._late_since
        if at - self._late_since >= _PATIENCE:
            self.stream = reading
