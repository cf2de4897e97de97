"""How much memory DuckDB may take for a file: little, until rows need more.

DuckDB evicts and spills (next to the file, in `<file>.tmp`) everything but what it works on at the moment, and that is
up to 2,048 rows of a table: of rows of 100 kB 200 MB, of rows of 8 MB as much as there is. No setting cuts this
smaller, and nobody knows beforehand how large the rows are that an update leaves unchanged. So a transaction that ran
out of memory is repeated under DuckDB's own limit, 80 % of the machine's memory. It takes of that what the rows need:
300 rows of 1 MB need 0.5 GB, 3 rows of 200 MB need 1.2 GB. The file keeps that limit until the process ends.

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
_DOUBLINGS = 2
_doubled: dict[Path, int] = {}
"""How often the memory for reading was doubled, because rows needed more; the next step is the usual memory."""
_raised: set[Path] = set()
_in_force: set[Path] = set()
"""Those of `_raised` that were opened since: until then another thread may run out of the smaller memory."""
_guard = threading.Lock()


class MemoryRaised(TryAgain):
    """DuckDB needed more memory than it was given. It has more from now on: the same work may succeed."""


def memory_limit(path: Path, usual_mb: int) -> str:
    """The statement that sets the limit: `usual_mb` megabytes, or what the rows of the file have needed."""
    with _guard:
        if path.resolve() in _raised:
            _in_force.add(path.resolve())
            return "RESET memory_limit"
    return f"SET memory_limit = '{usual_mb}MB'"


def reading_limit(path: Path, columns: int) -> str | None:
    """The statement that sets the limit for reading rows of so many columns; None if rows of the file need more.

    Two threads hold a block of 256 kB of each column.
    """
    with _guard:
        doubled = _doubled.get(path.resolve(), 0)
        if doubled > _DOUBLINGS or path.resolve() in _raised:
            return None
    return f"SET memory_limit = '{(_READING_MB + columns // 2) << doubled}MB'"


def needs_more_to_read(path: Path) -> EtlError | None:
    """The error to raise when reading ran out of memory; None if it had more than the memory for reading."""
    with _guard:
        doubled = _doubled.get(path.resolve(), 0)
        if doubled > _DOUBLINGS or path.resolve() in _raised:
            return None
        _doubled[path.resolve()] = doubled + 1
    return MemoryRaised(f"DuckDB needs more memory for the rows it reads from {path}: it has more now")


def is_raised(path: Path) -> bool:
    """Whether rows of the file have needed more than the usual memory."""
    with _guard:
        return path.resolve() in _raised


def is_out_of_memory(error: duckdb.Error) -> bool:
    """Also a commit that failed for want of memory, which is an exception of another class."""
    message = str(error)
    return isinstance(error, duckdb.OutOfMemoryException) or any(
        part in message for part in ("failed to pin block", "failed to allocate data")
    )


def out_of_memory(path: Path, table: TableName | None) -> EtlError:
    """Raises the limit and returns the error to raise: MemoryRaised if it was not raised before."""
    with _guard:
        is_small = path.resolve() not in _in_force
        _raised.add(path.resolve())
    if is_small:
        return MemoryRaised(f"DuckDB needs more memory for the rows it writes to {path}: it may take what it needs now")
    hint = "give the machine or the container more memory: DuckDB needs that of 2,048 rows of a table at once"
    if table is None:
        return DestinationError(f"DuckDB ran out of this machine's memory while working on {path}", hint=hint)
    return TableError(
        f"DuckDB ran out of this machine's memory while writing {table} to {path}", table=str(table), hint=hint
    )
