"""The engine into BigQuery: copied, streamed, a schema changed, proven equal by `verify`."""
# ruff: noqa: S608 the tests write their own SQL

from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

pytest.importorskip("google.cloud.bigquery", reason="the extra is missing: pip install 'etl-dagster[bigquery]'")

from etl_core.config import DestinationConfig
from etl_core.config_tables import read_tables
from etl_core.destination.bigquery.destination import from_options
from etl_core.errors import EtlError
from etl_core.state.table_state import TableState

if TYPE_CHECKING:
    from tests.integration.replication.conftest import Lab

pytestmark = pytest.mark.timeout(600)


def test_a_pipeline_into_bigquery(lab: Lab, bigquery_options: dict[str, str]) -> None:
    lab.execute("CREATE TABLE orders (id int PRIMARY KEY, n numeric(12, 2), note text, tags text[], doc jsonb)")
    lab.execute("ALTER TABLE orders ALTER note SET STORAGE EXTERNAL")
    lab.execute("CREATE TABLE log (line text, tags text[], body text); ALTER TABLE log REPLICA IDENTITY FULL")
    lab.execute(
        "ALTER TABLE log ALTER body SET STORAGE EXTERNAL;"
        "INSERT INTO log SELECT nullif(g % 3, 0), ARRAY['a', NULL], repeat('x' || g % 2, 3000)"
        " FROM generate_series(1, 30) g"
    )
    lab.execute(
        "INSERT INTO orders SELECT g, g / 7.0, repeat(md5(g::text), 200), ARRAY['a', NULL], '{\"a\": 1.10}'"
        " FROM generate_series(1, 500) g"
    )
    lab.publish()
    destination = from_options(bigquery_options, lab.config.pipeline)
    pipeline = lab.pipeline(destination=destination)
    assert not [outcome for outcome in pipeline.sync() if isinstance(outcome, EtlError)]
    lab.execute("INSERT INTO log VALUES ('one'), ('one'); UPDATE log SET line = '5' WHERE line = '2'")
    lab.execute("DELETE FROM log WHERE ctid IN (SELECT ctid FROM log WHERE line = '1' LIMIT 3)")
    lab.execute("UPDATE orders SET n = n + 1 WHERE id % 3 = 0")  # the note is not in the WAL
    lab.execute("UPDATE orders SET id = id + 1000 WHERE id % 50 = 0")
    lab.execute("DELETE FROM orders WHERE id % 7 = 0")
    pipeline.stream(until=pipeline.current_lsn())
    lab.execute("ALTER TABLE orders ADD COLUMN rating int DEFAULT 5")
    lab.execute("ALTER TABLE orders DROP COLUMN doc")
    lab.execute("INSERT INTO orders (id, note, rating) VALUES (9001, NULL, NULL)")
    lab.execute("ALTER TABLE log ADD COLUMN more int DEFAULT 5; DELETE FROM log WHERE line = 'one'")
    lab.execute("UPDATE log SET more = 6 WHERE line IS NULL; ALTER TABLE log DROP COLUMN tags")
    lab.execute("DELETE FROM log WHERE line = '5'")
    lab.execute("INSERT INTO log (line) VALUES ('two'), ('two')")
    lab.execute("DELETE FROM log WHERE ctid IN (SELECT ctid FROM log WHERE line = 'two' LIMIT 1)")
    pipeline.stream(until=pipeline.current_lsn())
    comparisons = pipeline.verify()
    assert [comparison.table.name for comparison in comparisons] == ["log", "orders"]
    assert all(comparison.is_equal for comparison in comparisons), comparisons
    lab.execute("TRUNCATE orders")
    lab.execute("INSERT INTO orders (id, note) VALUES (1, 'after')")
    pipeline.stream(until=pipeline.current_lsn())
    comparisons = pipeline.verify()
    assert all(comparison.is_equal for comparison in comparisons), comparisons


def test_tables_that_swap_their_names_in_bigquery(lab: Lab, bigquery_options: dict[str, str]) -> None:
    """Copied again, and so is the one whose place in the dataset the other has taken: no person is needed."""
    for name in ("a", "b", "quiet"):
        lab.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, t text); INSERT INTO {name} VALUES (1, '{name}')")
    lab.publish()
    pipeline = lab.synced(destination=from_options(bigquery_options, lab.config.pipeline))
    lab.execute("ALTER TABLE a RENAME TO x; ALTER TABLE b RENAME TO a; ALTER TABLE x RENAME TO b")
    lab.execute("INSERT INTO a VALUES (2, 'was b'); ALTER TABLE quiet RENAME TO still")
    while True:
        pipeline.sync()
        lab.execute("INSERT INTO b VALUES ((SELECT max(id) + 1 FROM b), 'was a')")
        pipeline.stream(until=pipeline.current_lsn())
        schemas = [pipeline.store.schema(status.table_id) for status in pipeline.store.tables()]
        is_ready = all(status.state is TableState.READY for status in pipeline.store.tables())
        if is_ready and {schema[1].name.name for schema in schemas if schema is not None} == {"a", "b", "still"}:
            break
        assert not [status.error for status in pipeline.store.tables() if status.state is TableState.ERRORED]
    comparisons = pipeline.verify()
    assert all(comparison.is_equal for comparison in comparisons), comparisons


def test_shaped_columns_into_bigquery(lab: Lab, bigquery_options: dict[str, str]) -> None:
    """Left out, renamed and hidden columns, by copy and by stream, with unchanged TOASTed values and moved keys."""
    lab.execute("CREATE TABLE users (id int PRIMARY KEY, email text, note text, n numeric(6,2), born date)")
    lab.execute("ALTER TABLE users ALTER note SET STORAGE EXTERNAL, ALTER email SET STORAGE EXTERNAL")
    lab.execute(
        "INSERT INTO users SELECT g, repeat('mail' || g, 600), repeat('note' || g, 600), g, '2020-02-29'"
        " FROM generate_series(1, 60) g"
    )
    lab.publish()
    columns = {"hash": ["id", "email"], "exclude": ["note"], "rename": {"id": "key"}, "null": ["born"]}
    pipeline = lab.pipeline(
        destination=from_options(bigquery_options, lab.config.pipeline),
        tables=read_tables("tables", {"public.users": {"columns": columns}}),
        hash_key="a key that is long enough",
    )
    assert not [outcome for outcome in pipeline.sync() if isinstance(outcome, EtlError)]
    lab.execute("UPDATE users SET n = n + 1 WHERE id % 3 = 0; UPDATE users SET id = id + 1000 WHERE id % 5 = 0")
    lab.execute("DELETE FROM users WHERE id % 7 = 0; INSERT INTO users VALUES (2000, NULL, NULL, NULL, NULL)")
    pipeline.stream(until=pipeline.current_lsn())
    [comparison] = pipeline.verify()
    assert comparison.is_equal, comparison
    assert comparison.source_rows > 40


RANGES = {
    "price": ("numeric", ["1.10", "-12345678901234.5000", "Infinity", "NaN"]),
    "weight": ("numeric", ["0.1", "NaN", "-Infinity"]),
    "counted": ("numeric", ["Infinity", "-0.123456789", "12345678901234567890123456789.10", "NaN"]),
    "small": ("numeric(5,2)", ["NaN", "1.5"]),
    "day": ("date", ["infinity", "0044-03-15 BC", "2024-02-29"]),
    "moment": ("timestamptz", ["-infinity", "294276-12-31 00:00+00", "10000-01-01 00:00+00", "2024-02-29 12:00+00"]),
    "days": ("date[]", ["{infinity,2024-02-29,NULL}"]),
    "clock": ("time", ["24:00", "12:00"]),
}
CLAMPED: dict[str, list[str | None]] = {
    "price": ["1.1000", "-12345678901234.5000", "9999999999999999.9999", None],
    "weight": ["0.1", "nan", "-inf"],
    "counted": ["9" * 29 + "." + "9" * 9, "-0.123456789", "12345678901234567890123456789.100000000", None],
    "small": [None, "1.50"],
    "day": ["9999-12-31", "0001-01-01", "2024-02-29"],
    "moment": [
        "0001-01-01 00:00:00+00:00",
        "9999-12-31 23:59:59.999999+00:00",
        "9999-12-31 23:59:59.999999+00:00",
        "2024-02-29 12:00:00+00:00",
    ],
    "clock": ["23:59:59.999999", "12:00:00"],
}


def test_types_as_the_settings_say_into_bigquery(lab: Lab, bigquery_options: dict[str, str]) -> None:
    """By copy, by the stream and as a default; what BigQuery cannot hold is NULL or the nearest value."""
    columns = ", ".join(f"{name} {declared}" for name, (declared, _) in RANGES.items())
    for table in ("clamped", "nulled"):
        lab.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, {columns})")

    def fill(first: int) -> None:
        for at in range(4):
            row = [first + at, *(values[at] if at < len(values) else None for _, values in RANGES.values())]
            for table in ("clamped", "nulled"):
                lab.execute(f"INSERT INTO {table} VALUES ({', '.join(['%s'] * len(row))})", row)

    fill(0)
    lab.publish()
    lab.config = replace(lab.config, destination=DestinationConfig("bigquery", bigquery_options))
    settings = {
        "clamped": {"types": {"out_of_range": "clamp"}},
        "*.*": {"types": {"numeric": "decimal(20,4)"}, "columns": {"numeric": {"weight": "double", "counted": "auto"}}},
    }
    pipeline = lab.synced(tables=read_tables("tables", settings), types={"out_of_range": "null"})
    fill(100)
    for table in ("clamped", "nulled"):
        lab.execute(f"ALTER TABLE {table} ADD until date DEFAULT 'infinity'; INSERT INTO {table} (id) VALUES (200)")
    lab.caught_up(pipeline)
    assert pipeline.observer.errors == {}
    assert [one for one in pipeline.verify() if not one.is_equal] == []
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for status in pipeline.store.tables():
        stored = pipeline.store.schema(status.table_id)
        assert stored is not None
        rows = pa.Table.from_batches(pipeline.destination.read(pipeline.shapes.of(stored[1]).target)).to_pylist()
        found[status.name.name] = {row["id"]: row for row in rows}
    for name, values in CLAMPED.items():
        for first in (0, 100):
            shown = [found["clamped"][first + at][name] for at in range(len(values))]
            assert [None if value is None else str(value) for value in shown] == values, name
    assert [found["nulled"][at]["day"] for at in (0, 1, 100, 101)] == [None] * 4
    assert [found["nulled"][at]["moment"] for at in (0, 1, 2, 100, 101, 102)] == [None] * 6
    assert found["nulled"][100]["days"] == [None, date(2024, 2, 29), None]
    assert {row["until"] for row in found["clamped"].values()} == {date.max}
    assert {row["until"] for row in found["nulled"].values()} == {None}
