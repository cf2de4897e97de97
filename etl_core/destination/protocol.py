"""What a destination is: six methods with long contracts, the same for every product.

The two promises a destination makes, and everything else follows from them:

- **One transaction.** `write` and `TableCopy.publish` make data and watermarks durable together or not at all.
- **The positions are a fence.** `write` applies nothing if a touched table's stored watermark is not the expected one,
  or, in a batch of the main stream, the stored position of the stream.

A destination without transactions offers an equivalent (sequence number, offset token, snapshot property,
idempotent job id) and says so in its docstring and in `docs/delivery.md`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TypeVar, runtime_checkable

from etl_core.batch import StreamMove, StreamPosition, WriteBatch
from etl_core.errors import DestinationUnavailable, TryAgain, WatermarkConflict
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.schema.table import TableSchema

if TYPE_CHECKING:
    import pyarrow as pa

    from etl_core.destination.compaction import Compacted

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Positions:
    """What the destination durably holds for one pipeline.

    `tables` has a watermark per published table; a table that is not in it has no usable data.
    `stream` is what the last batch of the main stream moved it to, None before the first. `aside` are those of `tables`
    whose name another table has taken, so that readers do not find them until they are written under another one.
    """

    tables: Mapping[TableId, Lsn]
    stream: StreamPosition | None
    aside: Set[TableId] = frozenset()


@dataclass(frozen=True, slots=True)
class Job:
    """A job of a warehouse that wrote a batch: for people to look at, never decided on.

    `url` is its page, `bytes_processed` what it read, as the warehouse charges it.
    """

    id: str
    url: str | None = None
    bytes_processed: int = 0


class TableCopy(Protocol):
    """The initial copy of one table into staging, unseen by readers until `publish`.

    `write` may be called from several threads at once. Leaving the `with` block without `publish` discards
    the staging; so does the next `copy` of the same table after a crash.
    """

    def write(self, rows: pa.RecordBatch) -> None:
        """Stages rows in the table's Arrow schema. The order of rows and calls means nothing."""

    def publish(self, watermark: Lsn, expected: int | None = None) -> int:
        """Replaces the table by what was staged and sets its watermark, atomically; returns how many rows it has.

        Counted in the destination: a copy that lost a row on the way is found by it, and made again. A destination that
        can counts before it replaces anything, and raises what `check_count` does unless it found `expected` rows.
        A reader sees the old table or the new one. Called once, after all writes have returned.
        """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class KeptRows:
    """What becomes of the rows of a table that keeps its deleted rows, when it is copied again.

    Rows that lived and are not in the copy are deleted as of `deleted_at`, the moment of the copy's snapshot. `changed`
    are columns whose older values are not what the settings make of values now: hidden, for example.
    """

    deleted_at: datetime
    changed: frozenset[str] = frozenset()


@runtime_checkable
class KeepingCopy(TableCopy, Protocol):
    """A copy that can keep rows of the table it replaces: asked for where the schema `keeps_deleted`."""

    def publish_keeping(self, watermark: Lsn, expected: int | None, kept: KeptRows) -> int:
        """As `publish`, but rows that the table has under this table id stay, if no copied row has their key.

        Their DELETED_AT becomes `kept.deleted_at` where it is NULL, or where they have no such column. A column keeps
        its values if it is still there (by its number) and is not in `kept.changed`, and each of them that is the same
        value in the column's type of now; else it is NULL. A row in which that is so of a key column is kept only if it
        was deleted before: whether one that lived was copied cannot be told. Of several rows with one key the one
        deleted last is kept. Returns the number of rows that live.
        """


@dataclass(frozen=True, slots=True)
class LoggedCopy:
    """What the rows of a copy have in a log's columns, beside the watermark: `taken_at`, the moment of its snapshot.

    `changed` are as in KeptRows.
    """

    taken_at: datetime
    changed: frozenset[str] = frozenset()


@runtime_checkable
class AppendingCopy(TableCopy, Protocol):
    """A copy that can be appended to a log: asked for where the schema `keeps_log`."""

    def publish_appending(self, watermark: Lsn, expected: int | None, logged: LoggedCopy) -> int:
        """As `publish`, but if the table is a log under this table id, its rows stay, and the copied ones are added.

        Copied rows were staged with NULL in the log's columns, and get these values: OP `copy`, LSN the watermark, SEQ
        0, COMMITTED_AT `logged.taken_at`. Columns of the rows that stay keep their values as in `publish_keeping`: if
        the column is still there, is not in `logged.changed`, and the value is the same in its type of now. Rows whose
        LSN is the watermark or beyond do not stay: the stream brings them again. Of a table that was forgotten, whose
        positions may be another source's, only rows of this very copy do not stay, which was published before: those
        with that LSN and SEQ 0. A copy without rows adds one that says so: OP `truncate`, and LSN, SEQ and COMMITTED_AT
        as above. Returns the number of copied rows.
        """


@runtime_checkable
class HistoryDestination(Protocol):
    """A destination that shows the versions of a log's rows beside it: asked for where the schema has `history`.

    The views are there, by the names that `change_log.views_of` gives, once a copy is published, and are made again in
    the transaction that brings the log other columns, another key or another name. Those of a log that was put aside,
    or of a table that has no `history` any more, are dropped. A name that is taken is a TableError, before a copy.
    """

    def read_current(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        """As `read`, of the view that has the rows of now, in the columns of `change_log.rows_of(schema)`."""

    def read_versions(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        """As `read`, of the view that has every version, in the columns of `change_log.versions_of(schema)`."""


def check_count(table: TableName, rows: int, expected: int | None) -> None:
    """Raises DestinationUnavailable if the destination found another number of rows than were copied to it."""
    if expected is not None and rows != expected:
        raise DestinationUnavailable(
            f"the destination has {rows:,} rows of {table}, and {expected:,} were copied to it",
            hint="the table is copied again; if it stays so, rows are lost or doubled on the way: report it",
        )


@runtime_checkable
class SharedCopy(TableCopy, Protocol):
    """A TableCopy whose rows other processes may help to stage, on other machines too.

    They call `SharingDestination.join_copy` with its `address`, and what they staged counts once its receipt is
    `include`d here.
    """

    @property
    def address(self) -> str:
        """Where the staging of this very copy is, and of no other copy of the table before or after."""

    def include(self, receipt: str) -> None:
        """Has `publish` publish the rows of a part that was staged elsewhere. Each receipt once.

        Raises DestinationError if the part is not there.
        """


class CopyPart(Protocol):
    """Rows that a helping process stages: all of them count, or, left without `finish`, none."""

    def write(self, rows: pa.RecordBatch) -> None:
        """Stages rows in the table's Arrow schema. Called by one thread."""

    def finish(self) -> str:
        """Makes the rows durable beside the copy; returns the receipt that includes them."""

    def discard(self) -> None:
        """Forgets what was staged. Idempotent; not after `finish`."""


@runtime_checkable
class SharingDestination(Protocol):
    """A destination that can stage one copy from several processes: an ability of its own, asked for once."""

    def join_copy(self, schema: TableSchema, address: str) -> CopyPart:
        """Begins a part of the copy at `address`. Raises DestinationUnavailable if that copy is over."""


@runtime_checkable
class BackupDestination(Protocol):
    """A destination that is a file of this machine."""

    def backup(self, target: Path) -> int:
        """Writes a consistent copy, beside a run, to a file that is not there yet; returns its bytes."""


@runtime_checkable
class CompactingDestination(Protocol):
    """A destination whose tables have more and more files until they are compacted."""

    def compact(self, tables: Sequence[TableName] | None) -> Iterator[Compacted]:
        """Makes few large files of the tables' many, as far as can be, and tells of each table; None for all.

        What the pipeline keeps of its tables is compacted with all. A batch that meets it waits, or is done again.
        """


@runtime_checkable
class WaitingDestination(Protocol):
    """A destination that waits while another process holds it, such as a file: an ability of its own, asked once."""

    def stop_on(self, stop: threading.Event, on_waiting: Callable[[str], None]) -> None:
        """From now on its waits end within a second or two after `stop` is set, with DestinationUnavailable.

        `on_waiting` is told who is waited for, about every second from the fifth second of a wait on.
        """

    def glance(self, wait_seconds: float) -> Positions:
        """`positions`, but waits at most so many seconds."""


@runtime_checkable
class CountingDestination(Protocol):
    """A destination that counts rows without reading them: an ability of its own, asked once."""

    def count(self, tables: Mapping[TableId, TableName], wait_seconds: float) -> Mapping[TableId, tuple[Lsn, int]]:
        """The living rows of each table and the watermark they are as of, both from one state.

        Tables without a watermark are left out, and those that are missing in the destination: they stop no other.
        Waits at most `wait_seconds` where another process holds the destination: DestinationUnavailable then.
        """


@runtime_checkable
class SessionDestination(Protocol):
    """A destination for which each call costs much at its beginning, such as opening a file: asked once."""

    def session(self) -> AbstractContextManager[None]:
        """Keeps open, for the length of the block, what calls from any thread would otherwise open each for itself.

        Others may have to wait meanwhile, so a block is short: a second, or what one copy takes. Raises as `positions`.
        """


@runtime_checkable
class GroupDestination(Protocol):
    """A destination that publishes several copies in one transaction: an ability of its own, asked once."""

    def publish_together(self, copies: Sequence[tuple[TableCopy, Lsn, int]]) -> Sequence[int]:
        """`TableCopy.publish` of copies that this destination has begun, with their watermarks and expected rows.

        All or none; after an error each may be published by itself.
        """


@runtime_checkable
class RemovingDestination(Protocol):
    """A destination that applies `TableChanges.removals`: asked for tables without a key."""

    def refuses_removals(self, schema: TableSchema) -> str | None:
        """Why rows of that table cannot be removed, as the end of a sentence; None if they can."""


@runtime_checkable
class PostgresPlace(Protocol):
    """A destination that is a PostgreSQL database, which may be the source itself."""

    def running_database(self) -> str:
        """See `etl_core.source.server.running_database`. Raises as `positions`."""


@runtime_checkable
class StagingDestination(Protocol):
    """A destination whose copies leave something behind when their process is killed: asked for at teardown."""

    def discard_staging(self) -> None:
        """Removes what this pipeline's copies have staged; of one that still runs as far as that can be told."""


class Destination(Protocol):
    """A place that tables are replicated into, on behalf of one pipeline.

    One thread calls `write` at a time; copies, `read` and `positions` may run beside it from other threads.
    Errors: DestinationUnavailable when the same call may succeed later (nothing was applied, or all of it:
    read `positions`), TableError when one table is at fault, WatermarkConflict, else DestinationError.
    """

    def prepare(self) -> None:
        """Creates the bookkeeping if missing (idempotent) and discards what a crashed copy left behind."""

    def positions(self) -> Positions:
        """The watermarks, as of now."""

    def copy(self, schema: TableSchema) -> TableCopy:
        """Begins the initial copy of a table; at most one at a time per table."""

    def write(self, batch: WriteBatch) -> Sequence[Job] | None:
        """Applies a batch as `TableChanges` describes, then its watermarks, in one transaction.

        Returns the jobs that did it where the destination has such; what was lost with an answer may be missing.

        Raises WatermarkConflict, having applied nothing, if any table in `batch.watermarks` does not have its
        `expected` watermark, or the stream is not where `batch.stream` expects it: compared in the transaction that
        moves them. A destination that needs several transactions for a batch compares the stream's position in each of
        them, and moves it in the last. On return everything is durable.
        """

    def read(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        """The table's rows in the Arrow schema of `schema`, in any order, from one consistent state.

        Of a log (`schema.change_log`), `schema` may have some of the columns alone.
        The table is known by its id where it has another name there.

        May raise TryAgain in the middle: what was read counts for nothing then (`read_whole`).
        """

    def forget(self, table_id: TableId) -> None:
        """Removes the table's watermark, keeping its data for readers: it will be copied again.

        Data that is under no name that readers know (`Positions.aside`) goes.
        """

    def close(self) -> None:
        """Releases what is held. Idempotent."""


def why_no_removals(destination: Destination, schema: TableSchema) -> str | None:
    """Why the destination cannot remove rows of a table without a key; None if it can."""
    if isinstance(destination, RemovingDestination):
        return destination.refuses_removals(schema)
    return "this type of destination does not do that"


def session_of(destination: Destination) -> AbstractContextManager[None]:
    """`SessionDestination.session`, where the destination has it."""
    return destination.session() if isinstance(destination, SessionDestination) else nullcontext()


def read_whole(work: Callable[[], _T]) -> _T:
    """What `work`, which calls `read`, returns; it is done again from its beginning when that raises TryAgain."""
    while True:
        with suppress(TryAgain):
            return work()


def check_stream(found: StreamPosition | None, move: StreamMove | None) -> None:
    """Raises WatermarkConflict unless the stream is where a batch that moves it expects it."""
    if move is not None and found != move.expected:
        raise WatermarkConflict(f"the stream is at {_told(found)} in the destination, not at {_told(move.expected)}")


def _told(position: StreamPosition | None) -> str:
    if position is None:
        return "no position"
    return f"{position.lsn}" + (f" of {position.incarnation}" if position.incarnation else "")
