"""A small shop in PostgreSQL: tables with every kind of column a warehouse meets, and a workload that changes them."""

from __future__ import annotations

import random
import re
import threading
import time
from dataclasses import dataclass

import psycopg

TABLES = ("customers", "products", "orders", "order_items", "payments", "events", "shipments", "carts")

SCHEMA = """
CREATE TYPE order_status AS ENUM ('new', 'paid', 'shipped', 'returned');

CREATE TABLE customers (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL, email varchar(120) NOT NULL, country char(2) NOT NULL,
    birthday date, newsletter boolean NOT NULL DEFAULT false, created_at timestamptz NOT NULL DEFAULT now());

CREATE TABLE products (
    sku text PRIMARY KEY,
    title text NOT NULL, price numeric(10,2) NOT NULL, weight_kg real, tags text[] NOT NULL DEFAULT '{}',
    description text, picture bytea);

CREATE TABLE orders (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer_id bigint NOT NULL, status order_status NOT NULL DEFAULT 'new', total numeric(12,2) NOT NULL,
    note text, placed_at timestamptz NOT NULL DEFAULT now());

CREATE TABLE order_items (
    order_id bigint NOT NULL, line int NOT NULL, sku text NOT NULL, quantity smallint NOT NULL,
    price numeric(10,2) NOT NULL,
    PRIMARY KEY (order_id, line));

CREATE TABLE payments (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    order_id bigint NOT NULL, amount numeric(12,2) NOT NULL, method text NOT NULL, took interval, paid_at timestamp);
CREATE INDEX ON payments (order_id);

CREATE TABLE events (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    at timestamptz NOT NULL DEFAULT clock_timestamp(), kind text NOT NULL, payload jsonb NOT NULL,
    measures double precision[], page text, local_time time);
CREATE INDEX ON events (kind) WHERE length(page) > 3000;

CREATE TABLE shipments (
    id bigint GENERATED ALWAYS AS IDENTITY, shipped_on date NOT NULL, order_id bigint NOT NULL, carrier text NOT NULL,
    PRIMARY KEY (id, shipped_on)) PARTITION BY RANGE (shipped_on);
CREATE TABLE shipments_2025 PARTITION OF shipments FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE shipments_2026 PARTITION OF shipments FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');

CREATE TABLE carts (customer_id bigint PRIMARY KEY, items int NOT NULL, updated_at timestamptz NOT NULL DEFAULT now());
"""

# Pages are random enough that PostgreSQL stores them out of line (TOAST) even after compression.
SEED = """
INSERT INTO customers (name, email, country, birthday, newsletter)
SELECT 'Customer ' || g, 'c' || g || '@example.com', (ARRAY['DE','FR','US','JP'])[1 + g % 4],
       CASE WHEN g % 7 > 0 THEN date '1950-01-01' + g % 20000 END, g % 3 = 0
FROM generate_series(1, 20000 * scale) g;

INSERT INTO products (sku, title, price, weight_kg, tags, description, picture)
SELECT 'SKU-' || g, 'Product ' || g, (g % 9000) / 100.0 + 1, CASE WHEN g % 5 > 0 THEN g / 10.0 END,
       ARRAY['tag' || g % 10, 'shelf "' || g % 7 || '"'], repeat('Fine thing. ', g % 60), decode(md5(g::text), 'hex')
FROM generate_series(1, 2000 * scale) g;

INSERT INTO orders (customer_id, status, total, note, placed_at)
SELECT 1 + g % (20000 * scale), (ARRAY['new','paid','shipped','returned'])[1 + g % 4]::order_status,
       (g % 100000) / 100.0,
       CASE WHEN g % 10 = 0 THEN 'please ring, ' || g END, timestamptz '2025-01-01' + g * interval '3 minutes'
FROM generate_series(1, 120000 * scale) g;

INSERT INTO order_items (order_id, line, sku, quantity, price)
SELECT g, l, 'SKU-' || 1 + (g * l) % (2000 * scale), 1 + g % 5, (g % 9000) / 100.0
FROM generate_series(1, 120000 * scale) g, generate_series(1, 3) l;

INSERT INTO payments (order_id, amount, method, took, paid_at)
SELECT g, (g % 100000) / 100.0, (ARRAY['card','transfer','cash'])[1 + g % 3], g % 90 * interval '1 second',
       timestamp '2025-01-01' + g * interval '3 minutes'
FROM generate_series(1, 90000 * scale) g;

INSERT INTO events (kind, payload, measures, page, local_time)
SELECT (ARRAY['view','click','buy'])[1 + g % 3],
       jsonb_build_object('n', g, 'path', '/p/' || g, 'tags', jsonb_build_array(g % 3, null)),
       CASE WHEN g % 4 > 0 THEN ARRAY[g / 7.0, NULL, -g] END,
       CASE WHEN g % 200 = 0 THEN (SELECT string_agg(md5((g * i)::text), '') FROM generate_series(1, 120) i)
            ELSE 'page ' || g END,
       time '00:00' + g * interval '1 second'
FROM generate_series(1, 60000 * scale) g;

INSERT INTO shipments (shipped_on, order_id, carrier)
SELECT date '2025-01-01' + g % 700, g, (ARRAY['post','van','bike'])[1 + g % 3]
FROM generate_series(1, 40000 * scale) g;

INSERT INTO carts (customer_id, items) SELECT g, g % 9 FROM generate_series(1, 3000 * scale) g;
"""


def create_shop(dsn: str, scale: float = 1) -> int:
    """Creates and fills the tables; returns how many rows they hold. `scale` 1 is about 700,000."""
    seed = re.sub(r"(\d+) \* scale", lambda rows: str(max(1, round(int(rows[1]) * scale))), SEED)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(SCHEMA)
        # No parameters are bound: several statements at once need the simple protocol.
        connection.execute(seed)
        connection.execute("ANALYZE")
        return sum(_count(connection, table) for table in TABLES)


def _count(connection: psycopg.Connection[tuple[int]], table: str) -> int:
    row = connection.execute(
        psycopg.sql.SQL("SELECT count(*) FROM {}").format(psycopg.sql.Identifier(table))
    ).fetchone()
    assert row is not None
    return row[0]


@dataclass(slots=True)
class Worked:
    """What a workload has done to the source."""

    transactions: int = 0
    truncates: int = 0


class Workload(threading.Thread):
    """Inserts, updates, deletes and one truncate, in small transactions, until stopped."""

    def __init__(self, dsn: str, *, seed: int = 1) -> None:
        super().__init__(name="workload", daemon=True)
        self._dsn = dsn
        self._random = random.Random(seed)
        self._stop_event = threading.Event()
        self.worked = Worked()
        self.error: BaseException | None = None

    def stop(self) -> None:
        self._stop_event.set()
        self.join()

    def run(self) -> None:
        try:
            with psycopg.connect(self._dsn) as connection:
                started = time.monotonic()
                while not self._stop_event.is_set():
                    self._transaction(connection)
                    connection.commit()
                    self.worked.transactions += 1
                    if self.worked.truncates == 0 and time.monotonic() - started > 6:
                        connection.execute("TRUNCATE carts")
                        connection.commit()
                        self.worked.truncates += 1
                    self._stop_event.wait(0.002)
        except BaseException as error:  # shown by the demo, which owns this thread
            self.error = error

    def _transaction(self, connection: psycopg.Connection[tuple[int]]) -> None:
        pick = self._random.randint
        order = pick(1, 120_000)
        row = connection.execute(
            "INSERT INTO orders (customer_id, total, note) VALUES (%s, %s, %s) RETURNING id",
            (pick(1, 20_000), pick(100, 99_999) / 100, None if order % 3 else "gift – wrap it ✓"),
        ).fetchone()
        assert row is not None
        connection.execute(
            "INSERT INTO order_items SELECT %s, l, 'SKU-' || l, 1, 9.99 FROM generate_series(1, %s) l",
            (row[0], pick(1, 5)),
        )
        connection.execute(
            "UPDATE orders SET status = 'shipped', total = total + 1 WHERE id BETWEEN %s AND %s", (order, order + 4)
        )
        connection.execute("UPDATE products SET price = price + 0.01 WHERE sku = %s", (f"SKU-{pick(1, 2000)}",))
        connection.execute("DELETE FROM order_items WHERE order_id = %s AND line = %s", (order, pick(1, 3)))
        connection.execute(
            "INSERT INTO carts VALUES (%s, 1) ON CONFLICT (customer_id) DO UPDATE SET items = carts.items + 1",
            (pick(1, 5000),),
        )
        if order % 5 == 0:
            # The large page stays as it is: the WAL says only that it is unchanged.
            kinds = ["view", "click", "buy", "seen"]
            connection.execute(
                "UPDATE events SET kind = %s WHERE kind = %s AND length(page) > 3000",
                (self._random.choice(kinds), self._random.choice(kinds)),
            )
        if order % 20 == 0:
            connection.execute(
                "UPDATE shipments SET shipped_on = shipped_on + 40 WHERE id = %s AND shipped_on < '2026-10-01'",
                (order // 4,),
            )
            connection.execute(
                "UPDATE payments SET id = gen_random_uuid(), method = 'refund' WHERE order_id = %s", (order,)
            )
            connection.execute("DELETE FROM customers WHERE id = %s", (order // 6,))
