"""BigQuery when answers are lost, streams break, quotas end, processes die: each ends exact, or says what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("google.cloud.bigquery", reason="the extra is missing: pip install 'etl-dagster[bigquery]'")

import requests
from google.api_core import exceptions
from google.cloud import bigquery

from etl_core.destination.bigquery import connection, staging
from etl_core.destination.bigquery.bookkeeping import Bookkeeping
from etl_core.destination.bigquery.connection import Clients
from etl_core.destination.bigquery.destination import BigQueryDestination, from_options
from etl_core.destination.protocol import KeptRows, Positions
from etl_core.errors import (
    ConfigError,
    DestinationError,
    DestinationUnavailable,
    EtlError,
    TableError,
    WatermarkConflict,
)
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.schema.table import Column
from etl_core.testing.destination_deleted_suite import EARLY, LATER, THEN, at, copy_again, items
from etl_core.testing.destination_tables import (
    INT8,
    batch,
    changes,
    contents,
    orders,
    partial,
    publish,
    rows,
    stream_at,
    table,
)
from tests.contract.losses import LostOnce

ROW = (1, "a", "b", 1)
NEXT = (2, "c", "d", 2)


@pytest.fixture
def destination(bigquery_options: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[BigQueryDestination]:
    monkeypatch.setattr("etl_core.destination.bigquery.connection._WAIT", 0.01)
    monkeypatch.setattr("etl_core.destination.bigquery.staging._WAIT", 0.01)
    mark = bigquery_options["dataset"].partition("_")[0]
    destination = from_options(bigquery_options, f"shop_{mark}")
    destination.prepare()
    yield destination
    destination.close()


class Once:
    """In place of a function: the first call that `picks` does its work and loses the answer, or fails before it."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        owner: Any,
        name: str,
        error: Exception,
        *,
        before: bool = False,
        picks: Callable[..., bool] = lambda *_: True,
        times: int = 1,
    ) -> None:
        real = getattr(owner, name)
        self.left = times

        def call(*arguments: Any, **keywords: Any) -> Any:
            is_hit = self.left > 0 and picks(*arguments)
            if is_hit:
                self.left -= 1
                if before:
                    raise error
            result = real(*arguments, **keywords)
            if is_hit:
                raise error
            return result

        monkeypatch.setattr(owner, name, call)


def is_script(_: Any, sql: str, *__: Any) -> bool:
    return sql.startswith("BEGIN TRANSACTION")


@pytest.mark.parametrize("before", [False, True], ids=["answers", "requests"])
def test_every_request_is_lost_once(
    bigquery_options: dict[str, str], monkeypatch: pytest.MonkeyPatch, *, before: bool
) -> None:
    if "storage_endpoint" not in bigquery_options:
        pytest.skip("what stands between us and the Storage API has no certificate of Google's")
    for module in (connection, staging):
        monkeypatch.setattr(module, "_WAIT", 0.01)
    for retry in (connection.RETRY, connection.STORAGE_RETRY, staging._NEW_TABLE_RETRY):
        monkeypatch.setattr(retry, "_initial", 0.01)
    mark = bigquery_options["dataset"].partition("_")[0]
    lost = LostOnce(monkeypatch, before=before)
    with lost.storage(bigquery_options["storage_endpoint"]) as endpoint:
        options = {**bigquery_options, "storage_endpoint": endpoint}
        with closing(from_options(options, f"shop_{mark}")) as destination:
            destination.prepare()
            assert publish(destination, orders(), [ROW]) == 1
            wider = replace(orders(), columns=(*orders().columns, Column("extra", INT8)))
            destination.write(batch(changes(wider, inserts=[(*NEXT, 3)]), expected=100, new=200, stream=200))
            destination.write(batch(changes(orders(), deletes=[(1,)]), expected=200, new=300))
            assert contents(destination, orders()) == Counter([NEXT])
            publish(destination, orders(), [ROW], watermark=400)
            assert contents(destination, orders()) == Counter([ROW])
            destination.forget(orders().table_id)
            assert destination.positions() == Positions({}, stream_at(200))
    kinds = Counter(what.rpartition("/")[2] for what, _ in lost.seen)
    assert kinds["AppendRows"] == 4
    assert min(kinds[call] for call in ("CreateWriteStream", "FinalizeWriteStream", "BatchCommitWriteStreams")) == 2
    assert min(kinds[call] for call in ("CreateReadSession", "ReadRows", "POST", "GET", "DELETE", "PATCH")) > 0


def test_the_answer_to_the_start_of_a_job_is_lost(
    destination: BigQueryDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(destination, orders(), [ROW])
    lost = Once(monkeypatch, bigquery.Client, "query", requests.exceptions.ConnectionError(), picks=is_script)
    destination.write(batch(changes(orders(), inserts=[NEXT]), expected=100, new=200, stream=200))
    assert lost.left == 0
    assert contents(destination, orders()) == Counter([ROW, NEXT])
    assert destination.positions() == Positions({orders().table_id: Lsn(200)}, stream_at(200))


def test_a_job_that_never_arrived_is_sent_again(
    destination: BigQueryDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(destination, orders(), [ROW])
    error = requests.exceptions.ConnectionError()
    lost = Once(monkeypatch, bigquery.Client, "query", error, before=True, picks=is_script)
    destination.write(batch(changes(orders(), inserts=[NEXT]), expected=100, new=200))
    assert lost.left == 0
    assert contents(destination, orders()) == Counter([ROW, NEXT])


def test_the_answer_to_a_finished_job_is_lost(
    destination: BigQueryDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(destination, orders(), [ROW])
    lost = Once(monkeypatch, bigquery.QueryJob, "result", requests.exceptions.ReadTimeout())
    destination.write(batch(changes(orders(), inserts=[NEXT]), expected=100, new=200))
    assert lost.left == 0
    assert contents(destination, orders()) == Counter([ROW, NEXT])


def test_the_connection_stays_away(destination: BigQueryDestination, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(destination, orders(), [ROW])
    error = requests.exceptions.ConnectionError()
    with monkeypatch.context() as patched:
        Once(patched, bigquery.QueryJob, "result", error, times=100)
        with pytest.raises(DestinationUnavailable, match="could not be reached while writing a batch"):
            destination.write(batch(changes(orders(), inserts=[NEXT]), expected=100, new=200))
    # All of it was applied, which the positions say; the batch that is sent again changes nothing.
    assert destination.positions().tables == {orders().table_id: Lsn(200)}
    with pytest.raises(WatermarkConflict):
        destination.write(batch(changes(orders(), inserts=[NEXT]), expected=100, new=200))
    assert contents(destination, orders()) == Counter([ROW, NEXT])


@pytest.mark.parametrize("before", [False, True], ids=["lost answer", "reset"])
def test_an_append_is_sent_again(
    destination: BigQueryDestination, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    error = exceptions.ServiceUnavailable("reset")  # type: ignore[no-untyped-call]
    lost = Once(monkeypatch, staging, "_send", error, before=before, times=2)
    assert publish(destination, orders(), [ROW]) == 1
    assert lost.left == 0
    again = Once(monkeypatch, staging, "_send", error, before=before)
    destination.write(batch(changes(orders(), inserts=[NEXT]), expected=100, new=200))
    assert again.left == 0
    assert contents(destination, orders()) == Counter([ROW, NEXT])


def test_an_append_to_a_table_without_a_key_counts_once(
    destination: BigQueryDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = replace(orders(), key=())
    publish(destination, log, [ROW, ROW])
    error = exceptions.ServiceUnavailable("reset")  # type: ignore[no-untyped-call]
    lost = Once(monkeypatch, staging, "_send", error)
    destination.write(batch(replace(changes(log, inserts=[ROW, NEXT])), expected=100, new=200))
    assert lost.left == 0
    assert contents(destination, log) == Counter({ROW: 3, NEXT: 1})


@pytest.mark.parametrize("place", ["remove", "run", "put_table"])
def test_a_process_dies_while_it_publishes(
    destination: BigQueryDestination, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    publish(destination, orders(), [ROW])

    def is_swap(_: Any, sql: str, *__: Any) -> bool:
        return sql.startswith("CREATE OR REPLACE")

    with monkeypatch.context() as patched:
        if place == "run":
            Once(patched, Clients, "run", LookupError("killed"), picks=is_swap)
        else:
            Once(patched, Bookkeeping, place, LookupError("killed"))
        with pytest.raises(LookupError):
            publish(destination, orders(), [NEXT], watermark=300)
    assert contents(destination, orders()) in (Counter([ROW]), Counter([NEXT]))
    assert destination.positions().tables in ({}, {orders().table_id: Lsn(300)})
    with pytest.raises(WatermarkConflict):  # a stream that does not know of it yet
        destination.write(batch(changes(orders(), inserts=[(3, "", "", 3)]), expected=100, new=200))
    assert publish(destination, orders(), [ROW, NEXT], watermark=400) == 2
    assert contents(destination, orders()) == Counter([ROW, NEXT])
    assert destination.positions().tables == {orders().table_id: Lsn(400)}


@pytest.mark.parametrize("before", [False, True], ids=["after", "before"])
@pytest.mark.parametrize("place", ["forget", "remove_others", "run", "change_table"])
def test_a_process_dies_while_it_publishes_and_keeps_deleted_rows(
    destination: BigQueryDestination, monkeypatch: pytest.MonkeyPatch, place: str, *, before: bool
) -> None:
    schema = items()
    publish(destination, schema, [(1, "a", 10, None), (2, "b", 20, at(EARLY)), (3, "c", 30, None)])

    def is_swap(_: Any, sql: str, *__: Any) -> bool:
        return sql.startswith("CREATE OR REPLACE")

    with monkeypatch.context() as patched:
        if place == "run":
            died = Once(patched, Clients, "run", LookupError("killed"), before=before, picks=is_swap)
        else:
            died = Once(patched, Bookkeeping, place, LookupError("killed"), before=before)
        with pytest.raises(LookupError):
            copy_again(destination, schema, [(1, "new", 11, None)], KeptRows(THEN), watermark=300)
        assert died.left == 0
    assert copy_again(destination, schema, [(1, "new", 11, None)], KeptRows(LATER), watermark=400) == 1
    found = {row[0]: row[1:] for row in contents(destination, schema)}
    assert found[1] == ("new", 11, None)
    assert found[2] == ("b", 20, at(EARLY))
    assert found[3] in (("c", 30, at(THEN)), ("c", 30, at(LATER)))
    assert len(found) == 3
    assert destination.positions().tables == {schema.table_id: Lsn(400)}


def test_a_new_table_keeps_no_rows_of_one_that_had_its_name(destination: BigQueryDestination) -> None:
    """The older one was renamed and copied under its new name; its table of before is still there."""
    old = items(name="events")
    publish(destination, old, [(1, "a", 10, None), (2, "b", 20, at(EARLY))])
    renamed = replace(old, name=TableName("public", "events_2024"))
    copy_again(destination, renamed, [(1, "a", 10, None)], KeptRows(LATER), watermark=300)
    new = replace(old, table_id=TableId(old.table_id + 1))
    assert copy_again(destination, new, [(9, "n", 90, None)], KeptRows(LATER), watermark=300) == 1
    assert contents(destination, new) == Counter([(9, "n", 90, None)])
    assert contents(destination, renamed) == Counter([(1, "a", 10, None), (2, "b", 20, at(EARLY))])


def test_the_script_itself_checks_the_watermarks(
    destination: BigQueryDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another writer may have come between our look and our script."""
    publish(destination, orders(), [ROW])
    monkeypatch.setattr(Bookkeeping, "fenced_tables", lambda book, _: book.tables())
    with pytest.raises(WatermarkConflict):
        destination.write(batch(changes(orders(), inserts=[NEXT]), expected=50, new=200, stream=200))
    assert contents(destination, orders()) == Counter([ROW])
    assert destination.positions() == Positions({orders().table_id: Lsn(100)}, None)


def test_nothing_staged_is_left(destination: BigQueryDestination) -> None:
    publish(destination, orders(), [ROW])
    destination.write(batch(changes(orders(), inserts=[NEXT]), expected=100, new=200))
    with destination.copy(orders()) as copy:
        copy.write(rows(orders(), [ROW]).to_batches()[0])
    for prefix in ("copy", "part", "fill"):
        assert destination._book.staged(prefix) == []


def test_what_a_killed_copy_left_goes_with_the_next(destination: BigQueryDestination) -> None:
    left = destination._book.staging_place(f"copy_{orders().table_id}")
    destination._book.create_staging(left, [bigquery.SchemaField("id", "INT64")])
    publish(destination, orders(), [ROW])
    assert left not in destination._book.staged("copy")


def google_says(kind: type[exceptions.GoogleAPICallError], reason: str, message: str = "no") -> Exception:
    return kind(message, errors=[{"reason": reason, "message": message}])


@pytest.mark.parametrize(
    ("error", "expected", "said", "hint"),
    [
        (google_says(exceptions.Forbidden, "quotaExceeded"), DestinationUnavailable, "quota", "slower"),
        (google_says(exceptions.Forbidden, "rateLimitExceeded"), DestinationUnavailable, "quota", "slower"),
        (google_says(exceptions.ServiceUnavailable, "backendError"), DestinationUnavailable, "backendError", None),
        (google_says(exceptions.Forbidden, "accessDenied"), DestinationError, "permission", "bigquery.dataEditor"),
        (
            google_says(exceptions.NotFound, "notFound", "Dataset x was not found in location EU"),
            DestinationError,
            "location",
            "destination.location",
        ),
        (google_says(exceptions.BadRequest, "invalidQuery", "secret 42"), DestinationError, "invalidQuery", "history"),
    ],
    ids=["quota", "rate", "backend", "access", "location", "query"],
)
def test_what_google_says_is_said_in_a_sentence(
    destination: BigQueryDestination,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    expected: type[EtlError],
    said: str,
    hint: str | None,
) -> None:
    publish(destination, orders(), [ROW])
    Once(monkeypatch, bigquery.Client, "query", error, before=True, picks=is_script, times=9)
    with pytest.raises(expected, match=said) as caught:
        destination.write(batch(changes(orders(), inserts=[NEXT]), expected=100, new=200))
    assert "42" not in str(caught.value)
    assert (hint is None) == (caught.value.hint is None)
    assert hint is None or hint in str(caught.value.hint)


def test_batches_slow_down_after_a_quota_was_used_up(
    destination: BigQueryDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(destination, orders(), [ROW])
    waits: list[float] = []
    # No time passes by itself: a batch that takes long here would be far enough from the next.
    clock = SimpleNamespace(monotonic=lambda: 1000.0, sleep=waits.append)
    monkeypatch.setattr("etl_core.destination.bigquery.pace.time", clock)
    quota = google_says(exceptions.Forbidden, "quotaExceeded")
    with monkeypatch.context() as patched:
        Once(patched, bigquery.Client, "query", quota, before=True, picks=is_script)
        with pytest.raises(DestinationUnavailable):
            destination.write(batch(changes(orders(), inserts=[NEXT]), expected=100, new=200))
    assert waits == []
    destination.write(batch(changes(orders(), inserts=[NEXT]), expected=100, new=200))
    assert waits == [5.0]
    assert contents(destination, orders()) == Counter([ROW, NEXT])


def test_a_table_that_somebody_dropped_stops_alone(destination: BigQueryDestination) -> None:
    publish(destination, orders(), [ROW])
    destination._clients.rest().delete_table(str(destination.place(orders())))
    with pytest.raises(TableError, match=r"public\.orders.*is not there"):
        destination.write(batch(changes(orders(), inserts=[NEXT]), expected=100, new=200))
    destination.forget(orders().table_id)
    assert destination.positions().tables == {}
    assert publish(destination, orders(), [ROW], watermark=300) == 1


def test_two_tables_that_would_be_one_are_refused(bigquery_options: dict[str, str]) -> None:
    mark = bigquery_options["dataset"].partition("_")[0]
    destination = from_options({**bigquery_options, "dataset": f"{mark}_all"}, f"shop_{mark}")
    destination.prepare()
    publish(destination, orders(), [ROW])
    other = table(TableName("sales", "orders"), Column("id", INT8), table_id=17)
    with pytest.raises(TableError, match="would both be") as caught:
        publish(destination, other, [(1,)])
    assert "{namespace}" in str(caught.value.hint)
    destination.close()


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({}, "destination.project"),
        ({"project": "p", "datset": "d"}, "destination.datset"),
        ({"project": "p", "dataset": "my-data"}, "destination.dataset"),
        ({"project": "p", "method": "streaming"}, "destination.method"),
        ({"project": "p", "credentials": "{nonsense"}, "destination.credentials"),
        ({"project": "p", "api_endpoint": "http://127.0.0.1:1"}, "destination.api_endpoint"),
        ({"project": 5}, "destination.project"),
        ({"project": "p", "labels": ["team"]}, "destination.labels"),
        ({"project": "p", "labels": {"Team": "data"}}, "destination.labels.Team"),
        ({"project": "p", "labels": {"etl_pipeline": "mine"}}, "destination.labels.etl_pipeline"),
        ({"project": "p", "partition_by": {"events": 5}}, "destination.partition_by"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_options(options, "shop")
    assert caught.value.field == field
    assert caught.value.hint


def test_a_column_that_differs_by_case_only_gets_another_name(destination: BigQueryDestination) -> None:
    """BigQuery folds case; what was there before keeps its name, the key's too."""
    publish(destination, orders(), [ROW, NEXT])
    grown = replace(orders(), columns=(*orders().columns, Column("ID", INT8)))
    part = changes(grown, upserts=[(1, "x", "y", 1, 7)], partials=[partial(grown, ["note"], {(2,): (3, "c", 2, 8)})])
    destination.write(batch(part, expected=100, new=200))
    assert contents(destination, grown) == Counter([(1, "x", "y", 1, 7), (3, "c", "d", 2, 8)])
