"""Turns DuckDB's exceptions into ours.

DuckDB quotes values in its messages about data, so only the messages about the file and the catalog are repeated.
"""

from __future__ import annotations

from pathlib import Path

import duckdb

from etl_core.destination.duckdb.memory import is_out_of_memory, out_of_memory
from etl_core.destination.duckdb_sql.dialect import DIALECT
from etl_core.destination.duckdb_sql.failures import table_failure
from etl_core.errors import (
    DestinationError,
    DestinationUnavailable,
    DestinationUnusable,
    EtlError,
    TableError,
)
from etl_core.identifiers import TableName

_RESTORE = "restore file and .wal from one backup, or remove both and copy every table again: etl resync TABLE"
_PAIR = (
    "does not belong together with the .wal beside it: one of the two was put back or replaced without the other",
    "restore file and .wal from one backup; or move the .wal away, start again, and copy the tables that are named "
    "then: etl resync TABLE",
)
_FULL = ("o space left", "File too large", "quota exceeded")

# (what DuckDB's message contains, what is the matter, what to do); the first that matches.
_FILE_TROUBLES: tuple[tuple[str, str, str], ...] = (
    ("WAL does not match", *_PAIR),
    ("WAL checkpoint iteration does not match", *_PAIR),
    ("replaying WAL", "cannot be read with the .wal beside it, which is damaged or belongs to another file", _RESTORE),
    ("newer version", "was written by a newer DuckDB", "upgrade: pip install --upgrade duckdb"),
    ("not a valid DuckDB", "is not a DuckDB database", "name another file, or remove this one"),
    ("orrupt", "is corrupt", _RESTORE),
    ("checksum", "is corrupt", _RESTORE),
    ("read enough bytes", "is cut short", _RESTORE),
    ("ncrypted", "is encrypted, which this destination does not support", "name a file that is not encrypted"),
    (
        "ermission denied",
        "cannot be opened for writing",
        "give this user the right to write the file and its directory",
    ),
    ("ead-only", "cannot be opened for writing", "give this user the right to write the file and its directory"),
    ("o such file or directory", "cannot be created: its directory does not exist", "create the directory"),
    ("s a directory", "is a directory", "name a file"),
)

_REPORT = "report this as a bug"


class DiskFull(DestinationUnusable):
    """The file or its log cannot grow. Whether a transaction was committed before is read from the watermarks."""


def explain(error: duckdb.Error, path: Path) -> EtlError:
    """The error for a failure of the file as a whole."""
    message = str(error)
    if _is_half_open(message):
        return DestinationUnavailable(f"{path} is just being opened by another thread of this process")
    if any(part in message for part in _FULL):
        return DiskFull(
            f"{path} cannot grow: the disk is full, or a limit of this user or process is reached",
            hint="free disk space beside the file, then start again",
        )
    for part, trouble, hint in _FILE_TROUBLES:
        if part in message:
            return DestinationUnusable(f"{path} {trouble}", hint=hint)
    if is_out_of_memory(error):
        return out_of_memory(path, None)
    if isinstance(error, duckdb.ConnectionException):
        return DestinationUnavailable(
            f"{path} is open in this process with other settings",
            hint="close the other connection, or open it with duckdb.connect(path) and no config",
        )
    if isinstance(error, (duckdb.TransactionException, duckdb.FatalException)):
        return DestinationUnavailable(f"DuckDB gave up a transaction on {path} ({type(error).__name__})")
    if isinstance(error, duckdb.IOException):
        return DestinationError(f"{path}: {message.splitlines()[0]}", hint="check the disk the file is on")
    if isinstance(error, (duckdb.CatalogException, duckdb.BinderException)):
        return DestinationUnusable(
            f"the bookkeeping in {path} (schema _etl) is missing or was changed: the file was replaced, or someone "
            "altered that schema",
            hint="start again: tables whose progress is not known are named then; copy them: etl resync TABLE",
        )
    return DestinationError(f"DuckDB refused the work on {path} ({type(error).__name__})", hint=_REPORT)


def _is_half_open(message: str) -> bool:
    """DuckDB 2.0 lends a thread the database that another one is opening before its Python functions are there."""
    return "python_arrow_scan" in message or "Unique file handle conflict" in message


def of_reader(error: OSError) -> duckdb.Error:
    """DuckDB's error, of which a reader of its rows that fails in the middle leaves nothing but the text."""
    kinds = {"Out of Memory Error": duckdb.OutOfMemoryException, "IO Error": duckdb.IOException}
    kind = next((kind for words, kind in kinds.items() if words in str(error)), duckdb.Error)
    return kind(str(error))


def explain_table(error: duckdb.Error, name: TableName, path: Path) -> EtlError:
    """The error for a failure while one table was worked on."""
    if _is_half_open(str(error)):
        return explain(error, path)
    if is_out_of_memory(error):
        return out_of_memory(path, name)
    failure = table_failure(error, name, DIALECT.product, str(path))
    if failure is not None:
        return failure
    explained = explain(error, path)
    if type(explained) is DestinationError and explained.hint == _REPORT:
        # Not a failure of the file: whatever it is, it is met with this table's rows.
        return TableError(
            f"DuckDB refused the changes of {name} ({type(error).__name__})", table=str(name), hint=_REPORT
        )
    return explained
