"""The one root of every error this package raises, split by what the caller may do next.

An error says what happened and where; `hint` says what the operator should do. Neither ever holds a
row value or a secret: both end in logs, in the state store and in the Dagster UI.
"""

from __future__ import annotations

import traceback


class EtlError(Exception):
    """Root of all errors. `hint` is one sentence for the person on call, or None."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class TransientError(EtlError):
    """May succeed when tried again unchanged: a lost connection, a busy file, a full queue."""


class PermanentError(EtlError):
    """Fails again until a person changes something."""


class ConfigError(PermanentError):
    """Wrong configuration. `field` is the dotted path, `line` the 1-based line of the file, if known."""

    def __init__(
        self, message: str, *, field: str | None = None, line: int | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.field = field
        self.line = line


class MalformedMessage(PermanentError):
    """Bytes that are not the message they claim to be. `offset` counts from the message's first byte."""

    def __init__(self, message: str, *, offset: int) -> None:
        super().__init__(f"{message} at byte {offset}")
        self.offset = offset


class SourceUnavailable(TransientError):
    """The source cannot be reached or ended the connection."""


class StreamBlocked(TransientError):
    """The server cannot send a transaction, so the stream of every table ends before it.

    It is tried again, ever less often: whoever corrects the cause may do so while the run goes on, copies with it.
    """


class SourceLocked(SourceUnavailable):
    """Someone holds a lock on a table of the source for longer than was to be waited."""


class SlotInUse(TransientError):
    """Another consumer holds the replication slot. `active_pid` is its server process, if known."""

    def __init__(self, message: str, *, active_pid: int | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.active_pid = active_pid


class Stopped(TransientError):
    """The work was asked to stop before it was done. Nothing of it may be used."""


class SourceChanged(PermanentError):
    """The source is not the one this pipeline replicated before; continuing could skip changes."""


class SourceRefused(PermanentError):
    """The source lacks a right, a setting or an object that replication needs."""


class TableError(PermanentError):
    """One table cannot go on; the others can. `table` is its name as `namespace.name`."""

    def __init__(self, message: str, *, table: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.table = table


class UnsupportedType(TableError):
    """A column has a type that no family knows, and the settings refuse it."""


class ValueOutOfRange(TableError):
    """A column holds a value that the destination's type cannot hold, such as NaN in a DECIMAL."""


class TableAbsent(TableError):
    """The source no longer offers the table: dropped, renamed or not published. It is copied when it is back."""


class DecisionNeeded(TableError):
    """A policy leaves it to a person what becomes of the table. `waits_for` is the policy.

    `change` tells the schema change from every other one; None where only a copy waits.
    """

    def __init__(self, message: str, *, table: str, waits_for: str, change: str | None = None, hint: str) -> None:
        super().__init__(message, table=table, hint=hint)
        self.waits_for = waits_for
        self.change = change


class CopyNeeded(TableError):
    """What the destination has of the table cannot be continued: only a new copy brings it back."""


class SchemaChangeRefused(CopyNeeded):
    """A schema change that cannot be applied forward in place (anything but adding or dropping columns)."""


COPIED_AGAIN = "etl run and Dagster's sensor copy it by themselves, etl sync does at once; readers keep the old copy"
"""The hint of every CopiedAgain."""


class CopiedAgain(SchemaChangeRefused):
    """What the source's rows hold now is known to a new copy alone. The table is copied again by itself."""


class DestinationUnavailable(TransientError):
    """The destination cannot be reached or is held by someone else for the moment."""


class TryAgain(DestinationUnavailable):
    """The same work may succeed at once: the destination does it another way from now on."""


class DestinationError(PermanentError):
    """The destination refuses the work."""


class DestinationUnusable(DestinationError):
    """The destination as a whole cannot be written, such as for a full disk: no table is at fault."""


class WatermarkConflict(EtlError):
    """A position in the destination, of a table or of the stream, is not the expected one: someone else wrote it.

    Nothing of the batch was applied. The writer reloads watermarks and table states before it goes on.
    """


class StateConflict(EtlError):
    """A table's state changed between reading and writing it. Read again and decide again."""


class ClaimLost(StateConflict):
    """Another process has claimed the pipeline's stream since: nothing was stored, and nothing may be on its behalf."""


class OutcomeUnknown(TransientError):
    """Whether a state change was stored is not known. The stream ends, and starts again from what is stored."""


class StateStoreUnavailable(TransientError):
    """The state store cannot be reached or is locked."""


def where(error: BaseException) -> str:
    """The lines of code that an error nobody expected came through; without its text, which may quote a row."""
    return "".join(traceback.format_tb(error.__traceback__))
