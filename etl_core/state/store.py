"""What must survive a restart, and the contract of every store that keeps it.

All methods raise StateStoreUnavailable when the same call may succeed later. A store may be used from
several threads and several processes at once. Nothing in it is a secret or a row value.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeAlias

from etl_core.errors import StateConflict
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.schema.fingerprint import Fingerprint
from etl_core.schema.table import TableSchema
from etl_core.state.shared_copy import SharedCopyStore
from etl_core.state.table_state import COPIED, TableState


@dataclass(frozen=True, slots=True)
class SourceIdentity:
    """What tells one source from another, and from itself restored from a backup.

    `system_identifier` and `timeline` as IDENTIFY_SYSTEM gives them; `slot_lsn` is the consistent point at
    which this pipeline created its main slot. `database`, its OID and `address` (`host:port`) say where, for people and
    for what belongs to a database; None in a store that was written before they were recorded.
    """

    system_identifier: str
    timeline: int
    slot_name: str
    slot_lsn: Lsn
    database: str | None = None
    database_oid: int | None = None
    address: str | None = None

    @property
    def incarnation(self) -> str:
        """What positions belong to: system identifier, timeline and main slot. No two slots begin at one LSN."""
        return f"{self.system_identifier}/{self.timeline}/{self.slot_lsn}"


@dataclass(frozen=True, slots=True)
class TableStatus:
    """A table's row in the store. `version` grows with every change and guards compare-and-set.

    `snapshot_lsn` is that of the initial copy, and once the table is READY the position at which the stream took it in:
    the destination has it at least as of then. An ERRORED table with a `sync_slot` keeps its changes in it and goes on
    from there; see `replication/table_errors.py` for what else brings one back. One with `waits_for` waits for a person
    because of that policy (`recopy`, or a value of `schema_changes`), since `updated_at`; `change` tells the schema
    change that waits from every other, and `approved` has those that a person approved, with spaces between them.
    `is_requested`: the next copy is the first one, or a person asked for it.
    """

    table_id: TableId
    name: TableName
    state: TableState
    version: int
    snapshot_lsn: Lsn | None = None
    sync_slot: str | None = None
    rows_copied: int | None = None
    error: str | None = None
    hint: str | None = None
    attempts: int = 0
    retry_at: datetime | None = None
    updated_at: datetime | None = None
    is_requested: bool = False
    waits_for: str | None = None
    change: str | None = None
    approved: str | None = None

    def moved(self, to: TableState, update: TableUpdate, at: datetime) -> TableStatus:
        """The table after a transition.

        That a copy was requested is forgotten when one has finished, what was approved when the table leaves READY.
        """
        return TableStatus(
            self.table_id,
            self.name,
            to,
            self.version + 1,
            update.snapshot_lsn,
            update.sync_slot,
            update.rows_copied,
            update.error,
            update.hint,
            update.attempts,
            update.retry_at,
            at,
            is_requested=(update.is_requested or self.is_requested) and to not in COPIED,
            waits_for=update.waits_for,
            change=update.change,
            approved=update.approved or (None if self.state is TableState.READY else self.approved),
        )


@dataclass(frozen=True, slots=True)
class TableUpdate:
    """The fields a transition sets beside the state. All are written; the defaults clear them.

    But for `is_requested` and `approved`, whose defaults leave them as they are.
    """

    snapshot_lsn: Lsn | None = None
    sync_slot: str | None = None
    rows_copied: int | None = None
    error: str | None = None
    hint: str | None = None
    attempts: int = 0
    retry_at: datetime | None = None
    is_requested: bool = False
    waits_for: str | None = None
    change: str | None = None
    approved: str | None = None


@dataclass(frozen=True, slots=True)
class Transition:
    """A line of a table's history."""

    table_id: TableId
    from_state: TableState | None
    to_state: TableState
    at: datetime
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ReplicationProgress:
    """How far the main stream is durable in the destination, and what it has done so far.

    `written_lsn` is the end LSN of the last batch that was written there (WAL without our changes moves `flushed_lsn`
    only): a destination that says less than that of its stream has been replaced by an older one. `claim` says whose
    the stream is: the store gives a new one with each `claim_progress`.
    """

    flushed_lsn: Lsn
    commit_time: datetime | None = None
    rows: int = 0
    rows_per_second: float = 0.0
    lag_seconds: float | None = None
    updated_at: datetime | None = None
    written_lsn: Lsn | None = None
    claim: str | None = None


@dataclass(frozen=True, slots=True)
class StreamError:
    """What ended the main stream and needs a person. It is over if progress was claimed or stored after `at`.

    If it `is_permanent`, no further try helps before that person has; None in a store that was written before it was
    recorded.
    """

    error: str
    hint: str | None
    at: datetime
    is_permanent: bool | None = None


@dataclass(frozen=True, slots=True)
class OwnedSlot:
    """A replication slot this pipeline created. `table_id` is None for the main slot.

    `system_identifier` is that of the cluster it was created on, None in a store written before it was recorded.
    """

    name: str
    table_id: TableId | None
    created_at: datetime
    system_identifier: str | None = None


@dataclass(frozen=True, slots=True)
class Hold:
    """A request that the stream stop at a transaction boundary, and its answer.

    `lsn` None asks to stop at once; else to apply exactly the transactions that end at or before it.
    `reached` is what the stream answered. A hold whose `expires_at` has passed is void. `expires_at` is by the clock of
    the host that asks; a store in PostgreSQL keeps it, and judges it, by its server's.
    """

    owner: str
    expires_at: datetime
    lsn: Lsn | None = None
    reached: Lsn | None = None


@dataclass(frozen=True, slots=True)
class Remembered:
    """What the catalog said of a table when its copy was taken, brought up to date by every harmless change.

    `lsn` is of when it said so: no transaction that the catalog showed ends beyond it. `has_gap`: the table was seen
    unpublished since, so that only a new copy brings it back. `earlier` is what it said at a moment that the stream had
    passed, as long as it may not have passed `lsn`.
    """

    fingerprint: Fingerprint
    lsn: Lsn
    has_gap: bool = False
    earlier: Remembered | None = None

    @property
    def passed(self) -> Remembered:
        """Of the latest moment that the stream is known to have passed."""
        return self.earlier or self


@dataclass(frozen=True, slots=True)
class SchemaVersion:
    """One version of a table, counted from 1. `lsn` is the position up to which its first rows were written."""

    version: int
    lsn: Lsn
    schema: TableSchema
    saved_at: datetime


Move: TypeAlias = tuple[TableStatus, TableState, TableUpdate]
"""A table as it was read, the state it is to have, and what comes with it."""


@dataclass(frozen=True, slots=True)
class FinishedCopy:
    """What is stored of a copy that was published: by which settings it was made (`shape`), and what the table was."""

    move: Move
    schema: TableSchema
    shape: str
    remembered: Remembered


class StateStore(Protocol):
    """The store of one pipeline. Every method is one transaction."""

    @property
    def shared_copies(self) -> SharedCopyStore:
        """The copies that several processes share."""

    def migrate(self) -> None:
        """Creates or upgrades the tables; safe when several processes do it at once."""

    def source_identity(self) -> SourceIdentity | None: ...

    def save_source_identity(self, identity: SourceIdentity) -> None: ...

    def tables(self) -> Sequence[TableStatus]:
        """All tables, by name."""

    def table(self, table_id: TableId) -> TableStatus | None: ...

    def add_table(self, table_id: TableId, name: TableName, *, is_requested: bool = True) -> TableStatus:
        """Adds a table in state INIT, or returns the one that is there (its name brought up to date)."""

    def remove_table(self, table_id: TableId) -> None:
        """Forgets a table, its history, its schemas, its fingerprint, its shape, its names and its shared copy."""

    def transition(
        self, current: TableStatus, to: TableState, update: TableUpdate | None = None, *, claim: str | None = None
    ) -> TableStatus:
        """Moves a table on if its version is still `current.version`, appending to its history.

        Its name becomes that of `current`. With `claim`, only while the stored progress has that claim: a stream that
        was replaced decides nothing any more. Raises ClaimLost then, StateConflict if someone else was first,
        IllegalTransition (a PermanentError) if the table of transitions has no such arrow.
        """

    def transition_all(self, moves: Sequence[Move]) -> list[TableStatus | StateConflict]:
        """As `transition`, of several tables in one transaction; for one that is not as it was read, the error."""

    def finish_copies(self, copies: Sequence[FinishedCopy]) -> list[TableStatus | StateConflict]:
        """In one transaction `save_schema`, `save_shape` and `save_fingerprint` of finished copies, and their moves.

        For a table that is not as it was read, the error: it is not moved.
        """

    def history(self, table_id: TableId, limit: int = 50) -> Sequence[Transition]:
        """The newest transitions first."""

    def tables_once_in(self, states: Collection[TableState]) -> Set[TableId]:
        """The tables with one of these states in their history: in its newest lines, older ones are not kept."""

    def progress(self) -> ReplicationProgress | None: ...

    def claim_progress(self, seen: ReplicationProgress | None, start: Lsn) -> ReplicationProgress:
        """Makes the stored progress the caller's, under a new `claim`, who begins to stream at `start`; returns it so.

        Whoever had it before stores no more. Raises StateConflict if it is not as it was `seen`.
        """

    def save_progress(
        self, progress: ReplicationProgress, previous: ReplicationProgress | None = None
    ) -> ReplicationProgress:
        """Stores progress and returns it with `updated_at`, by which the next call is known to be of the same stream.

        `previous` is what the stream claimed or stored last. Raises StateConflict if somebody else has claimed or
        stored it since, or if the stored flushed_lsn is beyond the given one: it only grows. Its claim stays.
        """

    def stream_error(self) -> StreamError | None:
        """The last one that was saved."""

    def save_stream_error(self, error: str, hint: str | None, *, is_permanent: bool) -> None:
        """Remembers what ended the main stream, for whoever asks why it does not go on."""

    def schema(self, table_id: TableId) -> tuple[int, TableSchema] | None:
        """The newest schema version of a table, counted from 1."""

    def schemas(self) -> Mapping[TableId, TableSchema]:
        """The newest schema of every table."""

    def schema_versions(self, table_id: TableId, limit: int = 50) -> Sequence[SchemaVersion]:
        """The newest versions of a table, oldest first."""

    def save_schema(self, schema: TableSchema, lsn: Lsn) -> int:
        """Stores `schema` as the next version unless it is the newest, comments and all; returns its version."""

    def fingerprints(self) -> Mapping[TableId, Remembered]:
        """Of all tables that have one."""

    def fingerprint(self, table_id: TableId) -> Remembered | None: ...

    def save_fingerprint(self, table_id: TableId, remembered: Remembered) -> None:
        """Replaces the table's fingerprint."""

    def shapes(self) -> Mapping[TableId, str]:
        """By what settings each table was copied, as `etl_core.shape.rules.Rules.to_json` writes them."""

    def shape(self, table_id: TableId) -> str | None: ...

    def save_shape(self, table_id: TableId, shape: str) -> None: ...

    def selected_names(self) -> Mapping[TableId, TableName]:
        """By which name of before the configuration selects a table that it would not select by its name of now."""

    def save_selected_name(self, table_id: TableId, name: TableName | None) -> None:
        """None where it selects the table by the name of now."""

    def checked_settings(self) -> str | None:
        """The digest of the tables' settings that were last found to fit the tables."""

    def save_checked_settings(self, digest: str) -> None: ...

    def record_slot(self, name: str, table_id: TableId | None, system_identifier: str | None = None) -> None:
        """Called before the slot is created, so that a crash in between leaves a name, never a slot, behind."""

    def forget_slot(self, slot: OwnedSlot) -> None:
        """Forgets this record; one that was made since under the same name stays."""

    def owned_slots(self) -> Sequence[OwnedSlot]: ...

    def publication_owned(self) -> bool:
        """Whether this pipeline created its publication, so that teardown may drop it."""

    def publication_oid(self) -> int | None:
        """The OID of the publication this pipeline created, None if it is not known: a name may come again."""

    def set_publication_owned(self, owned: bool, oid: int | None = None) -> None: ...

    def hold(self) -> Hold | None:
        """The hold in force (not expired), if any."""

    def request_hold(self, hold: Hold) -> None:
        """Places or renews a hold. Raises StateConflict while another owner's is in force."""

    def answer_hold(self, owner: str, reached: Lsn) -> None:
        """The stream says where it stopped; ignored if the hold is gone."""

    def release_hold(self, owner: str) -> None: ...

    def forget_source(self) -> None:
        """Forgets the source's identity, the position, the slots, the fingerprints, shapes, names and shared copies.

        The tables stay with their states, histories and schemas, and so does whose the publication is.
        """

    def clear(self) -> None:
        """Forgets everything about this pipeline (teardown)."""

    def close(self) -> None: ...
