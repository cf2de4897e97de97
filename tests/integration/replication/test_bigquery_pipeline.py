"""The engine into BigQuery: copied, streamed, a schema changed, proven equal by `verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

pytest.importorskip("google.cloud.bigquery", reason="the extra is missing: pip install 'etl-dagster[bigquery]'")

from etl_core.config_tables import read_tables
from etl_core.destination.bigquery.destination import from_options
from etl_core.errors import EtlError

if TYPE_CHECKING:
    from tests.integration.replication.conftest import Lab

pytestmark = pytest.mark.timeout(600)


def test_a_pipeline_into_bigquery(lab: Lab, bigquery_options: dict[str, str]) -> None:
    lab.execute("CREATE TABLE orders (id int PRIMARY KEY, n numeric(12, 2), note text, tags text[], doc jsonb)")
    lab.execute("ALTER TABLE orders ALTER note SET STORAGE EXTERNAL")
    lab.execute("CREATE TABLE log (line text)")
    lab.execute(
        "INSERT INTO orders SELECT g, g / 7.0, repeat(md5(g::text), 200), ARRAY['a', NULL], '{\"a\": 1.10}'"
        " FROM generate_series(1, 500) g"
    )
    lab.publish()
    destination = from_options(bigquery_options, lab.config.pipeline)
    pipeline = lab.pipeline(destination=destination)
    assert not [outcome for outcome in pipeline.sync() if isinstance(outcome, EtlError)]
    lab.execute("INSERT INTO log VALUES ('one'), ('one')")
    lab.execute("UPDATE orders SET n = n + 1 WHERE id % 3 = 0")  # the note is not in the WAL
    lab.execute("UPDATE orders SET id = id + 1000 WHERE id % 50 = 0")
    lab.execute("DELETE FROM orders WHERE id % 7 = 0")
    pipeline.stream(until=pipeline.current_lsn())
    lab.execute("ALTER TABLE orders ADD COLUMN rating int DEFAULT 5")
    lab.execute("ALTER TABLE orders DROP COLUMN doc")
    lab.execute("INSERT INTO orders (id, note, rating) VALUES (9001, NULL, NULL)")
    pipeline.stream(until=pipeline.current_lsn())
    comparisons = pipeline.verify()
    assert [comparison.table.name for comparison in comparisons] == ["log", "orders"]
    assert all(comparison.is_equal for comparison in comparisons), comparisons
    lab.execute("TRUNCATE orders")
    lab.execute("INSERT INTO orders (id, note) VALUES (1, 'after')")
    pipeline.stream(until=pipeline.current_lsn())
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
