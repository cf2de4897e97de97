"""Turns DuckDB's exceptions into ours.

DuckDB quotes values in its messages about data, so only the messages about the file and the catalog are repeated.
"""

from __future__ import annotations

import re
from pathlib import Path

import duckdb

from etl_core.errors import DestinationError, DestinationUnavailable, EtlError, TableError, ValueOutOfRange
from etl_core.identifiers import TableName

_HOLDER = re.compile(r"lock is held in (?P<program>.*?) \(PID (?P<pid>\d+)\)")

# (what DuckDB's message contains, what is the matter, what to do); the first that matches.
_FILE_TROUBLES: tuple[tuple[str, str, str], ...] = (
    ("newer version", "was written by a newer DuckDB", "upgrade: pip install --upgrade duckdb"),
    ("not a valid DuckDB", "is not a DuckDB database", "name another file, or remove this one"),
    ("orrupt", "is corrupt", "restore it from a backup, or remove it and sync every table again"),
    ("checksum", "is corrupt", "restore it from a backup, or remove it and sync every table again"),
    ("read enough bytes", "is cut short", "restore it from a backup, or remove it and sync every table again"),
    (
        "o space left",
        "cannot grow: the disk is full",
        "free disk space beside the file; nothing of the batch was applied",
    ),
    (
        "ermission denied",
        "cannot be opened for writing",
        "give this user the right to write the file and its directory",
    ),
    ("ead-only", "cannot be opened for writing", "give this user the right to write the file and its directory"),
    ("o such file or directory", "cannot be created: its directory does not exist", "create the directory"),
    ("s a directory", "is a directory", "name a file"),
)


def is_held(error: duckdb.Error) -> bool:
    """Whether the file could not be opened because another process holds it, or a thread of this one is closing it."""
    return "Could not set lock" in str(error) or "Unique file handle conflict" in str(error)


def holder(error: duckdb.Error) -> str:
    """The process that holds the file, as DuckDB names it."""
    match = _HOLDER.search(str(error))
    return "another process" if match is None else "process {pid} ({program})".format(**match.groupdict())


def explain(error: duckdb.Error, path: Path) -> EtlError:
    """The error for a failure of the file as a whole."""
    message = str(error)
    if _is_half_open(message):
        return DestinationUnavailable(f"{path} is just being opened by another thread of this process")
    for part, trouble, hint in _FILE_TROUBLES:
        if part in message:
            return DestinationError(f"{path} {trouble}", hint=hint)
    if isinstance(error, duckdb.OutOfMemoryException):
        return DestinationError(
            f"DuckDB ran out of memory while working on {path}", hint="lower batch.max_rows or batch.max_bytes"
        )
    if isinstance(error, duckdb.ConnectionException):
        return DestinationUnavailable(
            f"{path} is open in this process with other settings",
            hint="close the other connection, or open it with duckdb.connect(path) and no config",
        )
    if isinstance(error, (duckdb.TransactionException, duckdb.FatalException)):
        return DestinationUnavailable(f"DuckDB gave up a transaction on {path} ({type(error).__name__})")
    if isinstance(error, duckdb.IOException):
        return DestinationError(f"{path}: {message.splitlines()[0]}", hint="check the disk the file is on")
    return DestinationError(f"DuckDB refused the work on {path} ({type(error).__name__})", hint="report this as a bug")


def _is_half_open(message: str) -> bool:
    """DuckDB 2.0 lends a thread the database that another one is opening before its Python functions are there."""
    return "python_arrow_scan" in message or "Unique file handle conflict" in message


def explain_table(error: duckdb.Error, name: TableName, path: Path) -> EtlError:
    """The error for a failure while one table was worked on."""
    if _is_half_open(str(error)):
        return explain(error, path)
    if isinstance(error, (duckdb.ConversionException, duckdb.OutOfRangeException)):
        return ValueOutOfRange(
            f"{name} has a value that its column in DuckDB cannot hold",
            table=str(name),
            hint="leave the column out of the publication, or change its type at the source",
        )
    if isinstance(error, (duckdb.ConstraintException, duckdb.CatalogException, duckdb.BinderException)):
        return TableError(
            f"{name} is not as this pipeline left it in {path} ({type(error).__name__})",
            table=str(name),
            hint=f"someone changed the table; copy it again: etl resync {name}",
        )
    return explain(error, path)
