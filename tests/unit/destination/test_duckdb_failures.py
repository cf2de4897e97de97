from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from etl_core.destination.duckdb.failures import DiskFull, explain, explain_table
from etl_core.destination.duckdb.memory import MemoryRaised, memory_limit, reading_limit
from etl_core.destination.duckdb_sql.failures import holder, is_held
from etl_core.errors import (
    DestinationError,
    DestinationUnavailable,
    DestinationUnusable,
    EtlError,
    TableError,
    ValueOutOfRange,
)
from etl_core.identifiers import TableName

_PATH = Path("/data/shop.duckdb")
_NAME = TableName("public", "orders")

_HELD = (
    'IO Error: Could not set lock on file "/data/shop.duckdb": Conflicting lock is held in '
    "/usr/bin/python3.11 (PID 9351). See also https://duckdb.org/docs/stable/connect/concurrency"
)
_NEWER = (
    "IO Error: Trying to read a database file with version number 999, but we can only read versions between 64 and "
    "68.\n"
    "The database file was created with an newer version of DuckDB."
)


def test_the_holder_is_named() -> None:
    assert is_held(duckdb.IOException(_HELD))
    assert holder(duckdb.IOException(_HELD)) == "process 9351 (/usr/bin/python3.11)"
    assert not is_held(duckdb.IOException(_NEWER))


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (duckdb.IOException(_NEWER), DestinationUnusable, "newer DuckDB"),
        (duckdb.IOException('Could not write file "x": No space left on device'), DiskFull, "disk is full"),
        (duckdb.IOException('Cannot open file "x": Permission denied'), DestinationUnusable, "for writing"),
        (duckdb.IOException("something new"), DestinationError, "something new"),
        (duckdb.TransactionException("conflict"), DestinationUnavailable, "gave up"),
        (duckdb.FatalException("database has been invalidated"), DestinationUnavailable, "gave up"),
        (duckdb.InternalException("SECRET"), DestinationError, "InternalException"),
    ],
)
def test_a_failure_of_the_file(error: duckdb.Error, kind: type[EtlError], message: str) -> None:
    explained = explain(error, _PATH)
    assert type(explained) is kind
    assert message in str(explained)
    assert str(_PATH) in str(explained)
    assert "SECRET" not in str(explained)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (duckdb.ConversionException("Could not convert string 'SECRET' to INT32"), ValueOutOfRange),
        (duckdb.CatalogException("Table SECRET does not exist"), TableError),
        (duckdb.IOException("No space left on device"), DiskFull),
        (duckdb.InternalException("SECRET"), TableError),
    ],
)
def test_a_failure_while_a_table_is_worked_on(error: duckdb.Error, kind: type[EtlError]) -> None:
    explained = explain_table(error, _NAME, _PATH)
    assert type(explained) is kind
    assert "SECRET" not in str(explained)
    assert explained.hint


def test_a_file_that_another_thread_is_opening_is_waited_for() -> None:
    error = duckdb.CatalogException("Catalog Error: Table Function with name python_arrow_scan does not exist!")
    assert type(explain_table(error, _NAME, _PATH)) is DestinationUnavailable


@pytest.mark.parametrize(
    "error",
    [
        duckdb.OutOfMemoryException("Out of Memory Error: SECRET"),
        duckdb.TransactionException("Failed to commit: failed to pin block of size 980.0 KiB (183.0 MiB used) SECRET"),
    ],
)
def test_memory_is_doubled_and_in_the_end_the_table_is_at_fault(error: duckdb.Error, tmp_path: Path) -> None:
    path = tmp_path / "shop.duckdb"
    assert reading_limit(path, 8) is not None
    for megabytes in (64, 128, 256, 512, 1024):
        assert memory_limit(path, 64) == f"SET memory_limit = '{megabytes}MB'"
        # Another thread may run out of the smaller memory before the file is opened again.
        assert type(explain_table(error, _NAME, path)) is type(explain(error, path)) is MemoryRaised
        assert reading_limit(path, 8) is None
    assert memory_limit(path, 64) == "RESET memory_limit"
    explained = explain_table(error, _NAME, path)
    assert type(explained) is TableError
    assert "SECRET" not in str(explained)
    assert type(explain(error, path)) is DestinationError
