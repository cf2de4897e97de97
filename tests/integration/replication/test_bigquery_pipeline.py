"""The engine into BigQuery: copied, streamed, a schema changed, proven equal by `verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

pytest.importorskip("google.cloud.bigquery", reason="the extra is missing: pip install 'etl-dagster[bigquery]'")

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
