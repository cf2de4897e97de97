"""Turns PostgreSQL's errors into ours, by SQLSTATE.

The server quotes values in its messages about data, so these are never repeated.
https://www.postgresql.org/docs/current/errcodes-appendix.html
"""

from __future__ import annotations

import psycopg

from etl_core.errors import (
    DestinationError,
    DestinationUnavailable,
    DestinationUnusable,
    EtlError,
    SourceUnavailable,
    TableError,
    TransientError,
    ValueOutOfRange,
)
from etl_core.identifiers import TableName
from etl_core.source.sqlstate import translate

UNIQUE_VIOLATION = "23505"
ABSENT = frozenset({"42P01", "42703", "3F000"})
"""A table, column or schema is not there."""

_TAKEN = frozenset({"42P07", "42710"})
_LIMIT = "53400"
_FULL = frozenset({"53100", _LIMIT})
_READ_ONLY = "25006"
_NO_RIGHT = "42501"
_NOT_SUPPORTED = "0A000"
_DEPENDENT = frozenset({"2BP01", "55006", _NOT_SUPPORTED})  # 55006: a deferred trigger of the same transaction
_INDEX_ROW_TOO_LARGE = "54000"


def explain(error: psycopg.Error) -> EtlError:
    """The error for a failure of the database as a whole."""
    state = error.sqlstate
    if state in _FULL:
        return DestinationUnusable(
            "the destination's PostgreSQL cannot write: its disk is full, or a limit is reached; nothing of the"
            " transaction was applied",
            hint="free disk space on the destination's server, then start again",
        )
    if state == _READ_ONLY:
        return DestinationUnavailable(
            "the destination's PostgreSQL is read-only: a standby, or a server that protects itself",
            hint="connect to the primary: target_session_attrs=read-write in destination.dsn",
        )
    if state == _NO_RIGHT:
        return DestinationUnusable(
            f"the destination's PostgreSQL refused: {error.diag.message_primary}",
            hint="grant the right to the destination's user: it must own the replicated tables and have CREATE on the"
            " database",
        )
    if state in ABSENT:
        return DestinationUnusable(
            "the bookkeeping in the destination's PostgreSQL (schema _etl) is missing or was changed",
            hint="start again: tables whose progress is not known are named then; copy them: etl resync TABLE",
        )
    if state == UNIQUE_VIOLATION:
        return DestinationUnavailable("another process makes the same table or bookkeeping at this moment")
    translated = translate(error)
    if isinstance(translated, TransientError):
        return unavailable(translated)
    return DestinationError(
        f"the destination's PostgreSQL refused the work (SQLSTATE {state})", hint="its log has the statement; report it"
    )


def explain_commit(error: psycopg.Error) -> EtlError:
    """The error for a failure of COMMIT, where constraints and triggers that people deferred may refuse."""
    state = error.sqlstate or ""
    if state[:2] in ("22", "23", "42") or state in ABSENT:
        return DestinationError(
            f"a constraint or trigger of the destination's PostgreSQL that waits for COMMIT refused (SQLSTATE {state})",
            hint="drop it there, or have it checked at once: its log has the statement",
        )
    return explain(error)


def unavailable(error: EtlError) -> DestinationUnavailable:
    """What is said of the source's server, of the destination's."""
    hint = error.hint if isinstance(error, SourceUnavailable) else None
    return DestinationUnavailable(f"destination: {error}", hint=hint)


def explain_table(error: psycopg.Error, name: TableName) -> EtlError:
    """The error for a failure while one table was worked on."""
    state = error.sqlstate or ""
    again = f"then: etl resync {name}"
    if state[:2] == "22" or (state == _NOT_SUPPORTED and error.diag.context):  # such as XML, in a row that COPY reads
        column = error.diag.column_name
        return ValueOutOfRange(
            f"{name} has a value that its column{f' {column}' if column else ''} in the destination's PostgreSQL"
            f" refuses (SQLSTATE {state})",
            table=str(name),
            hint="is a type of the source another one there, such as an enum without a new value? Make it the same,"
            f" {again}",
        )
    if state[:2] == "23":
        constraint = error.diag.constraint_name
        return TableError(
            f"constraint {constraint or 'NOT NULL'} of {name} in the destination's PostgreSQL refuses rows of the"
            " source; none of them was written",
            table=str(name),
            hint=f"drop the constraint there, or what keeps the rows doubled, {again}",
        )
    if state in _DEPENDENT:
        return TableError(
            f"{name} cannot be altered in the destination's PostgreSQL: a view, a constraint or another object that"
            " this pipeline did not create needs a column that changes",
            table=str(name),
            hint=f"drop that object there (its log names it), {again}; make the object anew",
        )
    if state == _INDEX_ROW_TOO_LARGE:
        return TableError(
            f"{name} has a value that is too large for an index in the destination's PostgreSQL",
            table=str(name),
            hint=f"drop the index there, {again}",
        )
    if state == _LIMIT:
        return TableError(
            f"the changes of {name} need more of the destination's PostgreSQL than a limit allows:"
            f" {error.diag.message_primary}",
            table=str(name),
            hint=f"raise the limit for the destination's user (temp_file_limit), {again}",
        )
    if state in _TAKEN:
        return TableError(
            f"{name} cannot be called so in the destination's PostgreSQL, nor its indexes as they are: an index, a"
            f" sequence or a type has the name ({error.diag.message_primary})",
            table=str(name),
            hint=f"give that one another name there (ALTER INDEX … RENAME TO …), {again}",
        )
    if state in ABSENT or state[:2] == "42":
        if error.diag.internal_query is not None:
            return TableError(
                f"a trigger of {name} in the destination's PostgreSQL failed (SQLSTATE {state})",
                table=str(name),
                hint="its log has the statement; the function needs SET search_path, as nothing is found without a"
                " schema here",
            )
        if state == _NO_RIGHT:
            return TableError(
                f"the destination's PostgreSQL refused to write {name}: {error.diag.message_primary}",
                table=str(name),
                hint=f"make the destination's user the owner of the table and let it create in its schema, {again}",
            )
        return TableError(
            f"{name} is not as this pipeline left it in the destination's PostgreSQL (SQLSTATE {state})",
            table=str(name),
            hint=f"someone changed the table; copy it again: etl resync {name}",
        )
    explained = explain(error)
    if type(explained) is DestinationError:
        # Not a failure of the server: whatever it is, it is met with this table's rows.
        return TableError(
            f"the destination's PostgreSQL refused the changes of {name} (SQLSTATE {state})",
            table=str(name),
            hint="its log has the statement; report it",
        )
    return explained
