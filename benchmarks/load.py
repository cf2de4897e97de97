"""The shapes of load that applications have, as SQL: tables, and a procedure that commits N transactions of changes."""
# ruff: noqa: S608 the benchmarks write their own SQL

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from benchmarks.server import PUBLICATION, Server

_PGBENCH_CLIENTS = 4
_WIDE_COLUMNS = 100
_TABLES = 64
_ROW = "id bigint PRIMARY KEY, qty integer NOT NULL, name text NOT NULL, amount numeric(12, 2), at timestamptz"


@dataclass(frozen=True, slots=True)
class Shape:
    """`rows` are changed by each of `transactions` transactions, when the benchmarks run at their full size.

    `change` is the body of one transaction in PL/pgSQL, with its number in `n`, from 0 on; None is pgbench's own.
    """

    transactions: int
    rows: int
    setup: str = ""
    change: str | None = None


def _inserted(columns: str, rows: int) -> str:
    return f"INSERT INTO t SELECT {columns} FROM generate_series(n * {rows} + 1, n * {rows} + {rows}) i;"


def _wide() -> Shape:
    """Five types in turn."""
    types = ("integer", "text", "numeric(12, 2)", "timestamptz", "boolean")
    values = (
        "i + {k}",
        "'value ' || (i + {k})",
        "(i + {k})::numeric / 100",
        "timestamptz '2024-01-01' + i * interval '1 s'",
        "(i + {k}) % 2 = 0",
    )
    columns = ", ".join(f"c{k} {types[k % 5]}" for k in range(_WIDE_COLUMNS))
    selected = ", ".join(values[k % 5].format(k=k) for k in range(_WIDE_COLUMNS))
    return Shape(1_500, 100, f"CREATE TABLE t (id bigint PRIMARY KEY, {columns})", _inserted(f"i, {selected}", 100))


SHAPES: dict[str, Shape] = {
    # A load job: a thousand rows at a time.
    "batch": Shape(
        600,
        1_000,
        f"CREATE TABLE t ({_ROW}, note text, ok boolean)",
        _inserted(
            "i, i, 'customer ' || i % 100000, i::numeric / 100, timestamptz '2024-01-01' + i * interval '1 s',"
            " 'note number ' || i || ' of some length', i % 2 = 0",
            1_000,
        ),
    ),
    # What most applications do: one row of a table that is there, found by a prime so that neighbours are far apart.
    "single": Shape(
        200_000,
        1,
        f"CREATE TABLE t ({_ROW});"
        " INSERT INTO t SELECT i, i, 'name ' || i, i::numeric / 100, now() FROM generate_series(1, 100000) i",
        "UPDATE t SET qty = qty + 1, at = clock_timestamp() WHERE id = 1 + n::bigint * 7919 % 100000;",
    ),
    # TPC-B as pgbench has it: three updates and an insert, in four tables, by four clients at once.
    "oltp": Shape(100_000, 4),
    "tables": Shape(
        5_000,
        _TABLES,
        "; ".join(f"CREATE TABLE t{k} ({_ROW})" for k in range(_TABLES)),
        " ".join(
            f"INSERT INTO t{k} VALUES (n, n, 'name ' || n, n::numeric / 100, clock_timestamp());"
            for k in range(_TABLES)
        ),
    ),
    "wide": _wide(),
    # 10 kB that PostgreSQL does not compress.
    "large": Shape(
        800,
        100,
        "CREATE TABLE t (id bigint PRIMARY KEY, body text NOT NULL); ALTER TABLE t ALTER body SET STORAGE EXTERNAL",
        _inserted("i, repeat(md5(i::text), 320)", 100),
    ),
    "typed": Shape(
        300,
        700,
        "CREATE TABLE t (id uuid PRIMARY KEY, doc jsonb, tags text[], nums integer[], raw bytea, day date,"
        " at timestamp, took interval, score double precision, amount numeric, ip inet)",
        _inserted(
            "md5(i::text)::uuid, jsonb_build_object('a', i, 'b', 'text ' || i, 'c', jsonb_build_array(1, 2, i)),"
            " ARRAY['x' || i, 'y'], ARRAY[i, i + 1, i + 2]::integer[], decode(md5(i::text), 'hex'),"
            " date '2024-01-01' + (i % 100000)::integer, timestamp '2024-01-01' + i * interval '1 s',"
            " i * interval '1 s', i * 0.37, round(i::numeric / 7, 9), '10.0.0.1'::inet + i",
            700,
        ),
    ),
}


def create_shape(server: Server, database: str, shape: Shape) -> None:
    """A new database with the shape's tables, what makes its changes, and the publication."""
    server.database(database)
    if shape.change is None:
        _pgbench(server, database, "--initialize", "--scale=5", "--quiet")
    with server.connect(database) as connection:
        if shape.change is None:
            connection.execute("ALTER TABLE pgbench_history ADD COLUMN id bigserial PRIMARY KEY")
        else:
            connection.execute(shape.setup.encode())
            connection.execute(
                "CREATE PROCEDURE make_changes(transactions bigint) LANGUAGE plpgsql AS $$ BEGIN"
                f" FOR n IN 0 .. transactions - 1 LOOP {shape.change} COMMIT; END LOOP; END $$".encode()
            )
        connection.execute("VACUUM ANALYZE")
        connection.execute(f"CREATE PUBLICATION {PUBLICATION} FOR ALL TABLES".encode())


def make_changes(server: Server, database: str, shape: Shape, transactions: int) -> int:
    """Commits so many transactions, or a few less; returns how many rows they changed."""
    if shape.change is None:
        each = max(1, transactions // _PGBENCH_CLIENTS)
        clients = f"--client={_PGBENCH_CLIENTS}"
        _pgbench(server, database, "--no-vacuum", clients, "--jobs=2", f"--transactions={each}")
        return each * _PGBENCH_CLIENTS * shape.rows
    with server.connect(database) as connection:
        connection.execute("CALL make_changes(%s)", (transactions,))
    return transactions * shape.rows


def _pgbench(server: Server, database: str, *options: str) -> None:
    program = str(server.postgres.binaries.path("pgbench"))
    done = subprocess.run([program, *options, server.dsn(database, "unix")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
