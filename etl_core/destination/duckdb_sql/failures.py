"""Which of DuckDB's exceptions are a table's own. Its messages about data quote values and are not repeated."""

from __future__ import annotations

import re

import duckdb

from etl_core.errors import EtlError, TableError, ValueOutOfRange
from etl_core.identifiers import TableName

_HOLDER = re.compile(r"lock is held in (?P<program>.*?) \(PID (?P<pid>\d+)\)")


def table_failure(error: duckdb.Error, name: TableName, product: str, place: str) -> EtlError | None:
    """The error for a failure that the rows or the definition of one table cause; None for any other.

    `place` is where the table is, for people.
    """
    if isinstance(error, (duckdb.ConversionException, duckdb.OutOfRangeException)):
        return ValueOutOfRange(
            f"{name} has a value that its column in {product} cannot hold",
            table=str(name),
            hint="leave the column out of the publication, or change its type at the source",
        )
    if isinstance(error, duckdb.ConstraintException):
        return TableError(
            f"a constraint or unique index of {name} in {place}, which this pipeline did not create, refuses rows of "
            "the source; none of them was written",
            table=str(name),
            hint=f"drop the constraint in {product}, then: etl resync {name}",
        )
    if isinstance(error, (duckdb.CatalogException, duckdb.BinderException, duckdb.DependencyException)):
        return TableError(
            f"{name} is not as this pipeline left it in {place} ({type(error).__name__})",
            table=str(name),
            hint=f"someone changed the table; copy it again: etl resync {name}",
        )
    return None


def is_held(error: duckdb.Error) -> bool:
    """Whether a file could not be opened because another process holds it, or a thread of this one is closing it."""
    return "Could not set lock" in str(error) or "Unique file handle conflict" in str(error)


def holder(error: duckdb.Error) -> str:
    """The process that holds the file, as DuckDB names it."""
    match = _HOLDER.search(str(error))
    return "another process" if match is None else "process {pid} ({program})".format(**match.groupdict())
