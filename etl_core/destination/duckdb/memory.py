"""How much memory DuckDB may take for a file: little, until rows need more.

DuckDB evicts and spills (next to the file, in `<file>.tmp`) everything but what it works on at the moment, and that is
up to 2,048 rows of a table: of rows of 100 kB 200 MB, of rows of 8 MB as much as there is. No setting cuts this
smaller, and nobody knows beforehand how large the rows are that an update leaves unchanged. So a transaction that ran
out of memory is repeated with twice as much, and at last under DuckDB's own limit, 80 % of the machine's memory. The
file keeps its limit until the process ends. More than is needed costs memory: DuckDB fills it with blocks that are not
read again. A process that did nothing but write had 386 MB for one insert of 10 M rows with 192 MB, and 271 with 64;
for a copy of 300 rows of 1 MB 900 MB under DuckDB's own limit, and 680 with 512 MB.

Reading a table once, which fills whatever memory there is with blocks that are not read again, has less: measured with
2.5 M rows of 8 columns 60 MB of this process in place of 110, for a tenth more CPU.
"""

from __future__ import annotations

import threading
from pathlib import Path

import duckdb

from etl_core.errors import DestinationError, EtlError, TableError, TryAgain
from etl_core.identifiers import TableName

_READING_MB = 28
_DOUBLINGS = 4
"""How often the usual memory is doubled; the next step is DuckDB's own limit."""
_raised: dict[Path, int] = {}
"""How often more memory was needed."""
_in_force: dict[Path, int] = {}
"""The same when the file was opened last: until it is again, another thread may run out of the smaller memory."""
_guard = threading.Lock()


class MemoryRaised(TryAgain):
    """DuckDB needed more memory than it was given. It has more from now on: the same work may succeed."""


def memory_limit(path: Path, usual_mb: int) -> str:
    """The statement that sets the limit: `usual_mb` megabytes, or what the rows of the file have needed."""
    with _guard:
        raised = _in_force[path.resolve()] = _raised.get(path.resolve(), 0)
    return "RESET memory_limit" if raised > _DOUBLINGS else f"SET memory_limit = '{usual_mb << raised}MB'"


def reading_limit(path: Path, columns: int) -> str | None:
    """The statement that sets the limit for reading rows of so many columns; None if rows of the file need more.

    Two threads hold a block of 256 kB of each column.
    """
    if is_raised(path):
        return None
    return f"SET memory_limit = '{_READING_MB + columns // 2}MB'"


def is_raised(path: Path) -> bool:
    """Whether rows of the file have needed more than the usual memory, or than that for reading."""
    with _guard:
        return path.resolve() in _raised


def is_out_of_memory(error: duckdb.Error) -> bool:
    """Also a commit that failed for want of memory, which is an exception of another class."""
    message = str(error)
    return isinstance(error, duckdb.OutOfMemoryException) or any(
        part in message for part in ("failed to pin block", "failed to allocate data")
    )


def out_of_memory(path: Path, table: TableName | None) -> EtlError:
    """Raises the limit and returns the error to raise: MemoryRaised unless it is DuckDB's own already."""
    with _guard:
        in_force = _in_force.get(path.resolve(), 0)
        if in_force <= _DOUBLINGS:
            _raised[path.resolve()] = in_force + 1
    if in_force <= _DOUBLINGS:
        return MemoryRaised(f"DuckDB needs more memory for rows of {path}: it has more now")
    hint = "give the machine or the container more memory: DuckDB needs that of 2,048 rows of a table at once"
    if table is None:
        return DestinationError(f"DuckDB ran out of this machine's memory while working on {path}", hint=hint)
    return TableError(
        f"DuckDB ran out of this machine's memory while writing {table} to {path}", table=str(table), hint=hint
    )
