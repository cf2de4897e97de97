"""Long values are compressed by ZSTD and short ones as DuckDB chooses, whichever checkpoint compresses them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pytest

from etl_core.destination.duckdb.compression import TextSizes
from etl_core.destination.duckdb.connection import DatabaseFile
from etl_core.destination.duckdb.destination import DuckDBDestination
from etl_core.destination.duckdb.same_file import wal_path
from etl_core.identifiers import TableId, TableName
from etl_core.schema import pg_types
from etl_core.schema.pg_types import builtin
from etl_core.schema.table import Column, PgType, ReplicaIdentity, TableSchema
from etl_core.testing.destination_tables import Row, batch, changes, partial, publish

ROWS = 1200
LENGTH = 10_000
WAITING = 100
"""Rows that stay in the log: less than its 4 MB."""


def _builtin(oid: int) -> PgType:
    kind = builtin(oid)
    assert kind is not None
    return kind


def _schema(table_id: int, *oids: int) -> TableSchema:
    columns = [Column("id", _builtin(pg_types.INT4), attnum=1)]
    columns += [Column(f"v{at}", _builtin(oid), attnum=at + 1) for at, oid in enumerate(oids, 1)]
    name = TableName("public", f"t{table_id}")
    return TableSchema(TableId(table_id), name, tuple(columns), ("id",), ReplicaIdentity.DEFAULT)


LONG = _schema(1, pg_types.TEXT, pg_types.TEXT)
BYTES = _schema(2, pg_types.BYTEA, pg_types.TEXT)
JSON = _schema(3, pg_types.JSONB, pg_types.TEXT)
SHORT = _schema(4, pg_types.TEXT)


def _body(number: int) -> str:
    return f'"{random.Random(number).randbytes(40).hex()}"'.ljust(LENGTH)


def _rows(schema: TableSchema, start: int, count: int) -> list[tuple[Any, ...]]:
    if schema is SHORT:
        return [(n, f"customer {n % 50} of some length") for n in range(start, start + count)]
    is_bytes = schema is BYTES
    return [(n, _body(n).encode() if is_bytes else _body(n), f"note {n % 50}") for n in range(start, start + count)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.duckdb"


@pytest.fixture
def destination(path: Path) -> DuckDBDestination:
    destination = DuckDBDestination(path, "shop")
    destination.prepare()
    return destination


def _write(destination: DuckDBDestination, schema: TableSchema, start: int, count: int, at: int) -> None:
    part = changes(schema, inserts=_rows(schema, start, count))
    destination.write(batch(part, expected=at, new=at + 100))


def _methods(path: Path, schema: TableSchema, column: str) -> set[str]:
    """How the compressed values of a column are stored; nothing for what waits in the log."""
    with duckdb.connect(path) as connection:
        connection.execute("PRAGMA disable_checkpoint_on_shutdown")
        query = (
            "SELECT DISTINCT compression FROM pragma_storage_info(?)"
            " WHERE column_name = ? AND segment_type <> 'VALIDITY' AND persistent"
        )
        return {row[0] for row in connection.execute(query, [str(schema.name), column]).fetchall()}


def _old_default(tmp_path: Path, kind: str, values: Sequence[Any]) -> str:
    """What this DuckDB does by itself: before 2.0 its files have neither DICT_FSST nor ZSTD."""
    path = tmp_path / "own.duckdb"
    with duckdb.connect(path) as connection:
        connection.execute(f"CREATE OR REPLACE TABLE t (v {kind})")
        connection.execute("INSERT INTO t SELECT unnest(?)", [values])
        connection.execute("CHECKPOINT")
        query = "SELECT compression FROM pragma_storage_info('t') WHERE segment_type = 'VARCHAR'"
        return str(connection.execute(query).fetchall()[0][0])


@pytest.fixture
def short(tmp_path: Path) -> str:
    """How short values are stored where nothing is set."""
    return _old_default(tmp_path, "VARCHAR", [row[1] for row in _rows(SHORT, 0, ROWS)])


@pytest.fixture
def long(tmp_path: Path) -> str:
    """How long values are to be stored: by ZSTD where DuckDB has the choice."""
    own = _old_default(tmp_path, "VARCHAR", [row[1] for row in _rows(LONG, 0, ROWS)])
    return "ZSTD" if own == "DICT_FSST" else own


@pytest.mark.parametrize("schema", [LONG, BYTES, JSON], ids=["text", "bytea", "jsonb"])
def test_a_copy_and_a_batch(
    path: Path, destination: DuckDBDestination, long: str, short: str, schema: TableSchema
) -> None:
    publish(destination, schema, _rows(schema, 0, ROWS))
    assert not wal_path(path).exists(), "it was never in the log"
    publish(destination, SHORT, _rows(SHORT, 0, ROWS))
    destination.close()
    assert _methods(path, schema, "v1") == {long}
    assert _methods(path, SHORT, "v1") == {short}
    _write(destination, schema, ROWS, ROWS, 100)
    assert _methods(path, schema, "v1") == {long}
    if long == "ZSTD":
        assert path.stat().st_size < 2 * ROWS * LENGTH / 8


def test_rows_that_waited_in_the_log(path: Path, destination: DuckDBDestination, long: str, short: str) -> None:
    publish(destination, LONG)
    publish(destination, SHORT)
    _write(destination, LONG, 0, WAITING, 100)
    assert not _methods(path, LONG, "v1"), "they wait"
    _write(destination, SHORT, 0, WAITING, 100)
    destination.close()
    assert _methods(path, LONG, "v1") == {long}
    _write(destination, SHORT, ROWS, ROWS, 200)
    destination.close()
    assert short in _methods(path, SHORT, "v1")


def test_a_transaction_after_them(path: Path, destination: DuckDBDestination, long: str) -> None:
    """Its commit brings the log beyond its limit: the checkpoint compresses what waited, too."""
    publish(destination, LONG)
    for at in range(6):
        _write(destination, LONG, at * WAITING, WAITING, 100 + 100 * at)
        log = wal_path(path)
        assert not log.exists() or log.stat().st_size < 5_000_000
    assert _methods(path, LONG, "v1") == {long}


def test_values_that_an_update_leaves_unchanged(path: Path, destination: DuckDBDestination, long: str) -> None:
    publish(destination, LONG, _rows(LONG, 0, ROWS))
    moved: dict[Row, Sequence[Any]] = {(n,): (n, "changed") for n in range(ROWS)}
    destination.write(batch(changes(LONG, partials=[partial(LONG, ["v1"], moved)]), expected=100, new=200))
    assert _methods(path, LONG, "v1") == {long}
    destination.close()
    assert _methods(path, LONG, "v1") == {long}, "merged"


def test_nothing_is_left_set(path: Path, destination: DuckDBDestination) -> None:
    """Other connections of the process share the setting."""
    with duckdb.connect(path) as other:
        publish(destination, LONG, _rows(LONG, 0, ROWS))
        _write(destination, LONG, ROWS, ROWS, 100)
        setting = "SELECT current_setting('disabled_compression_methods')"
        assert other.execute(setting).fetchall() == [("",)]


def _note_and_fail(file: DatabaseFile, connection: duckdb.DuckDBPyConnection) -> None:
    file.compression.note(connection, TextSizes(long=1 << 30))
    raise ZeroDivisionError


def test_what_was_rolled_back_is_not_counted(path: Path, destination: DuckDBDestination, short: str) -> None:
    publish(destination, SHORT)
    file = DatabaseFile(path)
    with pytest.raises(ZeroDivisionError), file.transaction() as connection:
        _note_and_fail(file, connection)
    _write(destination, SHORT, 0, ROWS, 100)
    destination.close()
    assert _methods(path, SHORT, "v1") == {short}
