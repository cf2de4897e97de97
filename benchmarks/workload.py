"""What is replicated: a table of eight typical columns, and the changes of each backlog, made by the server itself."""

from __future__ import annotations

from benchmarks.server import PUBLICATION, Server

TRANSACTION_ROWS = 1_000

_TABLE = """
CREATE TABLE orders (
    id bigint PRIMARY KEY,
    customer_id integer NOT NULL,
    amount numeric(12, 2) NOT NULL,
    name text NOT NULL,
    note text,
    ok boolean NOT NULL,
    created_at timestamptz NOT NULL,
    score double precision NOT NULL
)
"""
# About 80 bytes of text; every fifth note is NULL.
_ROWS = """
CREATE FUNCTION make_orders(first bigint, last bigint) RETURNS SETOF orders LANGUAGE sql STABLE AS $$
    SELECT i, (i * 7919 % 100000)::integer, (i % 1000000)::numeric / 100, 'customer ' || i % 100000,
           CASE WHEN i % 5 > 0 THEN 'order ' || i || ' is to be left with the neighbours' END,
           i % 3 = 0, timestamptz '2024-01-01' + i * interval '1.234567 s', i * 0.37
    FROM generate_series(first, last) i
$$
"""
_INSERTS = """
CREATE PROCEDURE insert_backlog(changes bigint, chunk bigint) LANGUAGE plpgsql AS $$
DECLARE first bigint;
BEGIN
    FOR first IN SELECT generate_series(1, changes, chunk) LOOP
        INSERT INTO orders SELECT * FROM make_orders(first, least(first + chunk - 1, changes));
        COMMIT;
    END LOOP;
END $$
"""
_UPDATES = """
CREATE PROCEDURE update_backlog(changes bigint, chunk bigint) LANGUAGE plpgsql AS $$
DECLARE first bigint;
BEGIN
    FOR first IN SELECT generate_series(1, changes, chunk) LOOP
        UPDATE orders SET amount = amount + 1, note = 'changed' WHERE id BETWEEN first AND first + chunk - 1;
        COMMIT;
    END LOOP;
END $$
"""
# Of `base` rows the even ids are updated and the odd ones deleted, scattered by a prime over the whole table. A quarter
# of the updates goes to rows that the transaction before has inserted, so that changes of one key meet in a batch.
_MIXED = """
CREATE PROCEDURE mixed_backlog(changes bigint, base bigint) LANGUAGE plpgsql AS $$
DECLARE half bigint := base / 2;
BEGIN
    FOR n IN 0 .. changes / 1000 - 1 LOOP
        INSERT INTO orders SELECT * FROM make_orders(base + n * 700 + 1, base + n * 700 + 700);
        UPDATE orders SET amount = amount + 1, note = 'changed'
        WHERE id = ANY (ARRAY(
            SELECT CASE WHEN k % 4 = 0 AND n > 0 THEN base + n * 700 - k
                   ELSE 2 * ((n * 200 + k) * 104729 % half) + 2 END
            FROM generate_series(0::bigint, 199) k));
        DELETE FROM orders
        WHERE id = ANY (ARRAY(SELECT 2 * ((n * 100 + k) * 104729 % half) + 1 FROM generate_series(0::bigint, 99) k));
        COMMIT;
    END LOOP;
END $$
"""


def create_workload(server: Server, database: str, *, base: int = 0) -> None:
    """A new database with the table of `base` rows, its procedures and its publication."""
    server.database(database)
    with server.connect(database) as connection:
        for statement in (_TABLE, _ROWS, _INSERTS, _UPDATES, _MIXED):
            connection.execute(statement)
        insert_rows(server, database, base, base or 1)
        connection.execute("VACUUM ANALYZE orders")
        connection.execute(f"CREATE PUBLICATION {PUBLICATION} FOR TABLE orders".encode())


def insert_rows(server: Server, database: str, rows: int, chunk: int = TRANSACTION_ROWS) -> int:
    """Inserts rows 1 to `rows` in transactions of `chunk`."""
    with server.connect(database) as connection:
        connection.execute("CALL insert_backlog(%s, %s)", (rows, chunk))
    return rows


def update_rows(server: Server, database: str, rows: int, chunk: int = TRANSACTION_ROWS) -> int:
    """Updates rows 1 to `rows` in transactions of `chunk`."""
    with server.connect(database) as connection:
        connection.execute("CALL update_backlog(%s, %s)", (rows, chunk))
    return rows


def mix_changes(server: Server, database: str, changes: int, base: int) -> int:
    """Makes 70 % inserts, 20 % updates and 10 % deletes in transactions of 1,000; returns how many changes."""
    changes = max(1, changes // TRANSACTION_ROWS) * TRANSACTION_ROWS
    with server.connect(database) as connection:
        connection.execute("CALL mixed_backlog(%s, %s)", (changes, base))
    return changes
