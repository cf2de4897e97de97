"""A copy and a batch of changes into one destination, by us and by hand: a task of `benchmarks.child`.

By hand is what a person writes who has Arrow tables and the product's own client: one load, and one transaction that
deletes the keys and inserts the rows. It keeps no watermarks, fences nobody and compares nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.csv

from benchmarks.pipelines import PIPELINE
from etl_core.batch import TableChanges
from etl_core.config import DestinationConfig
from etl_core.destination.protocol import Destination
from etl_core.destination.registry import build_destination
from etl_core.lsn import Lsn
from etl_core.schema import pg_types
from etl_core.schema.table import Column, PgType
from etl_core.testing.destination_tables import INT4, INT8, TEXT, batch, numeric_modifier, table
from etl_core.values.arrow import arrow_schema, key_schema

_COPIED_AT, _CHANGED_AT = 100, 200
_BATCH_ROWS = 65_536

ORDERS = table(
    "orders",
    Column("id", INT8),
    Column("quantity", INT4),
    Column("paid", PgType(pg_types.BOOL, "bool")),
    Column("weight", PgType(pg_types.FLOAT8, "float8")),
    Column("price", PgType(pg_types.NUMERIC, "numeric"), numeric_modifier(12, 2)),
    Column("ordered_at", PgType(pg_types.TIMESTAMPTZ, "timestamptz")),
    Column("customer", TEXT),
    Column("note", TEXT),
)


@dataclass(frozen=True, slots=True)
class Load:
    """`copied` rows with the ids from 0 on; then `upserts`, of which half are of known ids, and the `deletes`' keys."""

    copied: pa.Table
    upserts: pa.Table
    deletes: pa.Table

    @property
    def changed_rows(self) -> int:
        return self.upserts.num_rows + self.deletes.num_rows


def make_load(rows: int) -> Load:
    """A tenth as many changes as rows: four fifths upserts, the others deletes, scattered over the whole table."""
    changes = max(10, rows // 10)
    scattered = np.random.default_rng(2).permutation(rows)
    known, deleted = np.split(scattered[: 6 * changes // 10], [4 * changes // 10])
    new = np.arange(rows, rows + 4 * changes // 10)
    return Load(
        make_rows(np.arange(rows)),
        make_rows(np.concatenate([known, new])),
        pa.Table.from_arrays([pa.array(deleted)], schema=key_schema(ORDERS)),
    )


def make_rows(ids: Any) -> pa.Table:
    """Rows of `ORDERS` with these ids, a third of one column NULL; the same for the same ids."""
    random, count = np.random.default_rng(1), len(ids)
    cents = pa.array(random.integers(0, 10**9, count)).cast(pa.decimal128(19, 0)).cast(pa.decimal128(21, 2))
    moments = random.integers(1_600_000_000_000_000, 1_700_000_000_000_000, count)
    columns: list[pa.Array[Any]] = [
        pa.array(ids),
        pa.array(random.integers(-5, 100_000, count).astype(np.int32)),
        pa.array(random.random(count) > 0.5),
        pa.array(random.random(count)),
        cents.cast(pa.decimal128(12, 2)),
        pa.array(moments).cast(pa.timestamp("us", tz="UTC")),
        pa.array([f"customer {at} of a middling length" for at in ids]),
        pa.array([None if at % 3 == 0 else f"note {at}" for at in ids]),
    ]
    return pa.Table.from_arrays(columns, schema=arrow_schema(ORDERS))


Where = Mapping[str, str]
"""The options that say where a destination's server is; none of one that is a file in the directory."""
Steps = tuple[Callable[[], object], Callable[[], object]]
"""The copy, and the batch of changes after it."""


@contextmanager
def ours(destination: Destination, load: Load) -> Iterator[Steps]:
    """As the pipeline writes, without a source."""

    def copy() -> None:
        with destination.copy(ORDERS) as copied:
            for each in load.copied.to_batches(_BATCH_ROWS):
                copied.write(each)
            copied.publish(Lsn(_COPIED_AT))

    def change() -> None:
        none = arrow_schema(ORDERS).empty_table()
        changes = TableChanges(ORDERS, none, load.upserts, load.deletes)
        destination.write(batch(changes, expected=_COPIED_AT, new=_CHANGED_AT))

    try:
        destination.prepare()
        yield copy, change
    finally:
        destination.close()


@contextmanager
def by_duckdb(connection: Any, load: Load) -> Iterator[Steps]:
    """By hand, through a DuckDB connection whose current schema is the table's: a file, DuckLake, Iceberg."""

    def copy() -> None:
        connection.register("rows", load.copied)
        connection.execute("CREATE TABLE orders AS SELECT * FROM rows")

    def change() -> None:
        connection.register("upserts", load.upserts)
        connection.register("deletes", load.deletes)
        connection.execute("BEGIN")
        connection.execute("DELETE FROM orders USING deletes WHERE orders.id = deletes.id")
        connection.execute("DELETE FROM orders USING upserts WHERE orders.id = upserts.id")
        connection.execute("INSERT INTO orders SELECT * FROM upserts")
        connection.execute("COMMIT")

    with connection:
        yield copy, change


_TABLE = """
    CREATE TABLE orders (id int8 PRIMARY KEY, quantity int4, paid bool, weight float8, price numeric(12, 2),
                         ordered_at timestamptz, customer text, note text)
"""


@contextmanager
def by_psycopg(dsn: str, load: Load) -> Iterator[Steps]:
    """By hand, with COPY of CSV that Arrow writes."""
    with psycopg.connect(dsn) as connection:

        def put(name: str, rows: pa.Table) -> None:
            with connection.cursor().copy(f"COPY {name} FROM STDIN (FORMAT csv)".encode()) as copied:
                for each in rows.to_batches(_BATCH_ROWS):
                    sink = pa.BufferOutputStream()
                    pyarrow.csv.write_csv(each, sink, pyarrow.csv.WriteOptions(include_header=False))
                    copied.write(sink.getvalue().to_pybytes())

        def copy() -> None:
            connection.execute(_TABLE)
            put("orders", load.copied)
            connection.commit()

        def change() -> None:
            connection.execute("CREATE TEMP TABLE upserts (LIKE orders) ON COMMIT DROP")
            connection.execute("CREATE TEMP TABLE deletes (id int8) ON COMMIT DROP")
            put("upserts", load.upserts)
            put("deletes", load.deletes)
            connection.execute("DELETE FROM orders USING deletes WHERE orders.id = deletes.id")
            connection.execute("DELETE FROM orders USING upserts WHERE orders.id = upserts.id")
            connection.execute("INSERT INTO orders SELECT * FROM upserts")
            connection.commit()

        yield copy, change


def _duckdb(_: Where, directory: Path, load: Load) -> AbstractContextManager[Steps]:
    import duckdb

    return by_duckdb(duckdb.connect(directory / "orders.duckdb"), load)


def _ducklake(_: Where, directory: Path, load: Load) -> AbstractContextManager[Steps]:
    import duckdb

    from etl_core.destination.duckdb_sql.extensions import load_extensions

    connection = duckdb.connect()
    load_extensions(connection, "ducklake")
    options = f"DATA_PATH '{directory / 'files'}', DATA_INLINING_ROW_LIMIT 0"
    connection.execute(f"ATTACH 'ducklake:{directory / 'lake.ducklake'}' AS lake ({options})")
    connection.execute("USE lake")
    return by_duckdb(connection, load)


def _iceberg(where: Where, _: Path, load: Load) -> AbstractContextManager[Steps]:
    import duckdb

    from etl_core.destination.duckdb_sql.extensions import load_extensions

    key, _colon, secret = where["credential"].partition(":")
    storage = where["s3_endpoint"].removeprefix("http://")
    connection = duckdb.connect()
    load_extensions(connection, "httpfs", "avro", "iceberg")
    connection.execute(
        f"CREATE SECRET storage (TYPE s3, KEY_ID '{where['s3_access_key']}', SECRET '{where['s3_secret_key']}',"
        f" ENDPOINT '{storage}', URL_STYLE 'path', USE_SSL false)"
    )
    connection.execute(
        f"ATTACH '{where['warehouse']}' AS lake (TYPE iceberg, READ_ONLY false, ENDPOINT '{where['uri']}',"
        f" CLIENT_ID '{key}', CLIENT_SECRET '{secret}', OAUTH2_SERVER_URI '{where['uri']}/v1/oauth/tokens')"
    )
    connection.execute("CREATE SCHEMA lake.public")
    connection.execute("USE lake.public")
    return by_duckdb(connection, load)


def _postgres(where: Where, _: Path, load: Load) -> AbstractContextManager[Steps]:
    return by_psycopg(where["dsn"], load)


BY_HAND: Mapping[str, Callable[[Where, Path, Load], AbstractContextManager[Steps]]] = {
    "duckdb": _duckdb,
    "postgres": _postgres,
    "ducklake": _ducklake,
    "iceberg": _iceberg,
}
"""By type of destination: what is compared with ours, in a place that is new and a directory that is empty."""


def opened(kind: str, where: Where, directory: Path, load: Load, *, by_hand: bool) -> AbstractContextManager[Steps]:
    """Ours or by hand, connected and ready to begin."""
    if by_hand:
        return BY_HAND[kind](where, directory, load)
    options = {
        "duckdb": {"path": "orders.duckdb"},
        "postgres": {"staging": "staging"},
        "ducklake": {"catalog": "lake.ducklake", "data": "files", "staging": "staging", "compact_every": "0s"},
        "iceberg": {"staging": "staging"},
    }
    return ours(build_destination(DestinationConfig(kind, {**where, **options[kind]}, directory), PIPELINE), load)
