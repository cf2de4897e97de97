"""What is known of a pipeline, for `etl status` and Dagster: read without changing or waiting for anything long."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from etl_core.destination.protocol import Destination, Positions, WaitingDestination
from etl_core.errors import EtlError, PermanentError
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.replication.hold import StreamHold
from etl_core.replication.look import Look
from etl_core.replication.source import RunningCopies, Source
from etl_core.source.publication import told_harms
from etl_core.source.server import average_wal_rate
from etl_core.source.slot import SlotStatus, slot_statuses
from etl_core.source.transport import Transport, transport_of
from etl_core.state.store import ReplicationProgress, StateStore, StreamError, TableStatus
from etl_core.state.table_state import COPIED, TableState

_LOOK_PATIENCE = 8.0
"""Seconds in which the source and the destination are to answer for `etl status`; they are asked at once."""
_HELD_PATIENCE = 2.0
"""Seconds for which `etl status` waits for a destination that another process holds."""
_FRESH = timedelta(seconds=8)
"""A stream notes its lag every 2 s while a change waits, and every 5 s that there is none."""
_IN_STEP = timedelta(minutes=1)
"""How old the last note of a stream that runs may be: one that is older is of a stream that hangs."""


@dataclass(frozen=True, slots=True)
class PipelineStatus:
    """What `etl status` shows.

    `slot` is None if it does not exist, or `source_error` says why it is not known; `destination_error` says why the
    watermarks are not.
    """

    tables: Sequence[TableStatus]
    watermarks: dict[TableId, Lsn]
    progress: ReplicationProgress | None
    slot: SlotStatus | None
    source_error: str | None
    destination_error: str | None = None
    stream_error: StreamError | None = None
    """What ended the stream, if it has not gone on since."""
    held_by: str | None = None
    """Who holds the stream at a position, and since when: a comparison that runs."""
    transport: Transport | None = None
    """How this process reached the source just now, by the configuration that the stream has too."""
    unsafe: Sequence[str] = ()
    """Where the source refuses UPDATE and DELETE because of the publication, a sentence each."""
    ignored: Mapping[TableId, Sequence[str]] = field(default_factory=dict)
    """The changes of columns that are ignored, of each table with some, as `column note (added)`."""
    destination_needs_you: bool = False
    """Whether `destination_error` is one that does not pass by itself."""
    slots: Sequence[SlotStatus] = ()
    """All that the pipeline owns and that there are, the main slot too, by name."""
    wal_rate: float | None = None
    """Bytes of WAL a second that the source writes, on average since its statistics began."""


@dataclass(frozen=True, slots=True)
class _SourceSeen:
    """What the source said for the status. `copies` are those that a process somewhere makes."""

    slot: SlotStatus | None
    holder: str | None
    copies: RunningCopies
    transport: Transport | None
    unsafe: Sequence[str] = ()
    slots: Sequence[SlotStatus] = ()
    wal_rate: float | None = None


def read_status(source: Source, store: StateStore, destination: Destination, hold: StreamHold) -> PipelineStatus:
    """What is known, without changing anything; a source or destination out of reach is told, not raised."""
    store.migrate()
    copied = [table.name for table in store.tables() if table.state in COPIED]
    owned = {slot.name for slot in store.owned_slots()} | {source.main_slot}
    asked_source = Look("the source", lambda: _look_at_source(source, hold, copied, owned))
    asked_destination = Look("the destination", lambda: _look_at_destination(destination))
    tables, progress = store.tables(), store.progress()
    seen = _SourceSeen(None, None, RunningCopies(), None)
    watermarks: dict[TableId, Lsn] = {}
    source_error = destination_error = None
    destination_needs_you = False
    try:
        seen = asked_source.answer(_LOOK_PATIENCE)
    except EtlError as error:
        source_error = str(error)
    else:
        # A copy's session is there as long as its state; seen before the states, so that none just begun is missed.
        died = {t.table_id for t in tables if t.state is TableState.DATA_SYNC and t not in seen.copies}
        if died:
            tables = [_if_copy_died(store, table) if table.table_id in died else table for table in tables]
    try:
        watermarks = dict(asked_destination.answer(_LOOK_PATIENCE).tables)
    except EtlError as error:
        destination_error, destination_needs_you = str(error), isinstance(error, PermanentError)
    return PipelineStatus(
        tables,
        watermarks,
        progress,
        seen.slot,
        source_error,
        destination_error,
        stream_error(store),
        seen.holder,
        seen.transport,
        seen.unsafe,
        destination_needs_you=destination_needs_you,
        slots=seen.slots,
        wal_rate=seen.wal_rate,
    )


def _look_at_source(
    source: Source, hold: StreamHold, copied: Sequence[TableName], owned: Collection[str]
) -> _SourceSeen:
    with source.connect("status") as connection:
        slots = slot_statuses(connection, owned)
        return _SourceSeen(
            next((slot for slot in slots if slot.name == source.main_slot), None),
            hold.describe(connection),
            source.running_copies(connection),
            transport_of(connection),
            told_harms(connection, source.publication, copied, only_refused=True),
            slots,
            average_wal_rate(connection),
        )


def _look_at_destination(destination: Destination) -> Positions:
    if isinstance(destination, WaitingDestination):
        return destination.glance(_HELD_PATIENCE)
    return destination.positions()


def _if_copy_died(store: StateStore, table: TableStatus) -> TableStatus:
    """As the next start will set it back: nobody copies the table any more, unless its state has just moved."""
    now = store.table(table.table_id) or table
    return replace(now, state=TableState.INIT) if now == table else now


def stream_error(store: StateStore) -> StreamError | None:
    """What ended the main stream and needs a person, None if it has gone on since."""
    error, progress = store.stream_error(), store.progress()
    if error is None or progress is None or progress.updated_at is None:
        return error
    return error if error.at >= progress.updated_at else None


def lag_seconds(progress: ReplicationProgress | None, slot: SlotStatus | None, now: datetime) -> float | None:
    """How old the oldest change is that is not yet written, in seconds; None before the first batch or position.

    A stream that runs notes it every few seconds, by the server's clock, also while nothing can be written. Where the
    last note is older, because nobody streams or the stream does not move, it may be as old as the note makes it.
    """
    if progress is None:
        return None
    lag = progress.lag_seconds or 0.0
    is_fresh = progress.updated_at is None or now - progress.updated_at < _FRESH
    if (slot is not None and slot.active and is_fresh) or progress.updated_at is None:
        return lag
    return lag + max(0.0, (now - progress.updated_at).total_seconds())


def is_in_step(progress: ReplicationProgress | None, now: datetime) -> bool:
    """Whether a stream has noted lately how far it is."""
    return progress is not None and progress.updated_at is not None and now - progress.updated_at < _IN_STEP


def seconds_to_limit(slot: SlotStatus, wal_rate: float | None) -> float | None:
    """How long until the server takes the slot's WAL if nobody reads it and WAL is written at this rate, in seconds.

    None without a limit, or if the rate is not known.
    """
    if slot.safe_wal_size is None or not wal_rate:
        return None
    return max(0, slot.safe_wal_size) / wal_rate
