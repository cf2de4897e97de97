"""Partitions, clusters and labels of the tables in BigQuery."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("google.cloud.bigquery", reason="the extra is missing: pip install 'etl-dagster[bigquery]'")

from google.api_core import exceptions
from google.cloud import bigquery

from etl_core.destination.bigquery.connection import Clients
from etl_core.destination.bigquery.destination import BigQueryDestination, from_options
from etl_core.errors import TableError
from etl_core.identifiers import TableName
from etl_core.schema import pg_types
from etl_core.schema.table import Column, PgType
from etl_core.testing.destination_tables import INT8, batch, changes, contents, publish, table

DATE = PgType(pg_types.DATE, "date")
EVENTS = table(TableName("public", "events"), Column("id", INT8), Column("day", DATE))
DAY = 20_484
"""As Arrow has it here: in days since 1970."""

Opens = Callable[..., BigQueryDestination]


@pytest.fixture
def opens(bigquery_options: dict[str, str]) -> Iterator[Opens]:
    opened = []

    def opens(**options: Any) -> BigQueryDestination:
        destination = from_options({**bigquery_options, **options}, f"shop_{bigquery_options['dataset'][:9]}")
        destination.prepare()
        opened.append(destination)
        return destination

    yield opens
    for destination in opened:
        destination.close()


def in_bigquery(destination: BigQueryDestination) -> bigquery.Table:
    return destination._clients.rest().get_table(str(destination.place(EVENTS)))


def test_a_table_is_partitioned_and_clustered(opens: Opens, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    real = Clients.run

    def run(self: Clients, sql: str, *rest: Any, **keywords: Any) -> Any:
        sent.append(sql)
        return real(self, sql, *rest, **keywords)

    monkeypatch.setattr(Clients, "run", run)
    destination = opens(partition_by={"events": "day"}, labels={"team": "data"})
    publish(destination, EVENTS, [(1, DAY)])
    [created] = [sql for sql in sent if sql.startswith("CREATE OR REPLACE")]
    assert "PARTITION BY `day` CLUSTER BY `id` OPTIONS" in created
    destination.write(batch(changes(EVENTS, upserts=[(1, None), (2, DAY)]), expected=100, new=200))
    assert contents(destination, EVENTS) == Counter([(1, None), (2, DAY)])
    publish(destination, EVENTS, [(3, DAY)], watermark=300)
    assert contents(destination, EVENTS) == Counter([(3, DAY)])


def test_comments_are_descriptions(opens: Opens) -> None:
    said = 'It\'s "ours" \\ äöü 😀\n\tsecond line; DROP TABLE x'
    columns = (replace(EVENTS.columns[0], comment=said), replace(EVENTS.columns[1], comment="x" * 2_000))
    destination = opens()
    publish(destination, replace(EVENTS, comment=said, columns=columns), [(1, DAY)])
    made = in_bigquery(destination)
    assert made.description == said
    assert [field.description for field in made.schema] == [said, "x" * 1_024]
    assert contents(destination, EVENTS) == Counter([(1, DAY)])


def test_what_a_person_wrote_about_a_table_stays(opens: Opens) -> None:
    destination = opens(labels={"team": "data"})
    publish(destination, EVENTS, [(1, DAY)])
    made = in_bigquery(destination)
    made.description = "by hand"
    made.labels = {**made.labels, "cost-centre": "42"}
    made.schema = [bigquery.SchemaField("id", "INTEGER", description="mine"), made.schema[1]]
    destination._clients.rest().update_table(made, ["description", "labels", "schema"])
    commented = replace(EVENTS, columns=(EVENTS.columns[0], replace(EVENTS.columns[1], comment="of the source")))
    publish(destination, commented, [(1, DAY)], watermark=200)
    again = in_bigquery(destination)
    assert (again.description, again.labels["cost-centre"], again.labels["team"]) == ("by hand", "42", "data")
    assert [field.description for field in again.schema] == ["mine", "of the source"]


def test_labels_of_your_own_stay_when_a_table_is_given_up(opens: Opens) -> None:
    destination = opens(labels={"team": "data", "cost-centre": "42"})
    publish(destination, EVENTS, [(1, DAY)])
    pipeline = in_bigquery(destination).labels["etl_pipeline"]
    assert in_bigquery(destination).labels == {"team": "data", "cost-centre": "42", "etl_pipeline": pipeline}
    destination.forget(EVENTS.table_id)
    assert in_bigquery(destination).labels == {"team": "data", "cost-centre": "42", "etl_pipeline": ""}


@pytest.mark.parametrize(("column", "said"), [("id", "id, which is INT64"), ("when", "when, which is not there")])
def test_a_column_that_nothing_can_be_partitioned_by(opens: Opens, column: str, said: str) -> None:
    destination = opens(partition_by={"public.events": column})
    with pytest.raises(TableError, match=said) as caught:
        destination.copy(EVENTS)
    assert "partition_by" in str(caught.value.hint)


def test_a_table_that_is_partitioned_otherwise_is_left_as_it_is(opens: Opens, monkeypatch: pytest.MonkeyPatch) -> None:
    """In BigQuery's words; the emulator would replace it."""
    destination = opens(partition_by={"public.events": "day"})
    publish(destination, EVENTS, [(1, DAY)])
    real = bigquery.Client.query

    def query(self: bigquery.Client, sql: str, *rest: Any, **keywords: Any) -> Any:
        if sql.startswith("CREATE OR REPLACE"):
            text = (
                "Cannot replace a table with a different partitioning spec. Instead, DROP the table, and then recreate"
            )
            raise exceptions.BadRequest(text)  # type: ignore[no-untyped-call]
        return real(self, sql, *rest, **keywords)

    monkeypatch.setattr(bigquery.Client, "query", query)
    with pytest.raises(TableError, match="partitioned otherwise"):
        publish(destination, EVENTS, [(2, DAY)], watermark=300)
    assert contents(destination, EVENTS) == Counter([(1, DAY)])
