"""Turns SQLite's errors into ours."""

from __future__ import annotations

import sqlite3

from etl_core.errors import DestinationError, DestinationUnavailable, EtlError, TableError
from etl_core.identifiers import TableName

_OF_TABLE = {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_TOOBIG}
_AGAIN = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def explain(error: sqlite3.Error) -> EtlError:
    """The error for a failure of the file as a whole."""
    if _code(error) in _AGAIN:
        return DestinationUnavailable("the SQLite file is locked", hint="end the program that holds it, or wait")
    return DestinationError(f"SQLite: {error}", hint="check the file, its folder and the room on its disk")


def explain_table(error: sqlite3.Error, name: TableName) -> EtlError:
    """The error for a failure while one table was worked on."""
    if _code(error) not in _OF_TABLE:
        return explain(error)
    hint = f"someone may have changed the table; copy it again: etl resync {name}"
    return TableError(f"SQLite refuses the rows of {name}: {error}", table=str(name), hint=hint)


def is_absent(error: Exception) -> bool:
    """Whether a relation or column is not there."""
    return isinstance(error, sqlite3.OperationalError) and "no such" in str(error)


def _code(error: sqlite3.Error) -> int:
    """Without what SQLite adds in the higher bits."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
