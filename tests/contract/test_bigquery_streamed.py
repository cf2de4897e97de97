"""Tables whose changes are streamed: the destination over the emulator, its streams over a server with Google's rules.

The emulator knows no change data capture: it has the copy and the watermarks, the server has the rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pytest

pytest.importorskip("google.cloud.bigquery", reason="the extra is missing: pip install 'etl-dagster[bigquery]'")

import grpc
from google.cloud import bigquery
from google.cloud.bigquery_storage_v1 import BigQueryWriteClient
from google.cloud.bigquery_storage_v1.services.big_query_write.transports import BigQueryWriteGrpcTransport

from etl_core.batch import TableChanges
from etl_core.destination.bigquery import bookkeeping, change_streams, redo_log, statements
from etl_core.destination.bigquery import destination as destination_module
from etl_core.destination.bigquery.bookkeeping import Bookkeeping
from etl_core.destination.bigquery.cdc import CdcWriter
from etl_core.destination.bigquery.change_streams import Attempt
from etl_core.destination.bigquery.columns import stored_columns
from etl_core.destination.bigquery.connection import Clients
from etl_core.destination.bigquery.destination import BigQueryDestination, from_options
from etl_core.destination.bigquery.names import quoted
from etl_core.destination.bigquery.redo_log import RedoLog
from etl_core.destination.bigquery.row_stream import RowStream
from etl_core.destination.bigquery.staging import append_all
from etl_core.destination.bigquery.types import arrow_schema_for, bigquery_field, from_bigquery, to_bigquery
from etl_core.errors import CopiedAgain, DestinationUnavailable, TableError, WatermarkConflict
from etl_core.identifiers import TableId
from etl_core.lsn import Lsn
from etl_core.schema.table import Column, ReplicaIdentity, TableSchema
from etl_core.testing.destination_tables import (
    INT4,
    Row,
    batch,
    changes,
    comparable,
    contents,
    orders,
    partial,
    publish,
    rows,
)
from etl_core.testing.servers.bigquery_write_server import BigQueryWriteServer, Fault
from tests.contract.stalls import dies, once_before

ORDERS = replace(orders(), replica_identity=ReplicaIdentity.FULL)
ROW, NEXT, LAST = (1, "a", "b", 1), (2, "c", "d", 2), (3, "e", "f", 3)


@dataclass
class Warehouse:
    """BigQuery, for one pipeline: processes open destinations on it."""

    server: BigQueryWriteServer
    options: dict[str, str]
    opened: list[BigQueryDestination] = field(default_factory=list)
    copied: dict[TableId, TableSchema] = field(default_factory=dict)

    def process(self, **options: str) -> BigQueryDestination:
        mark = self.options["dataset"].partition("_")[0]
        opened = from_options({"method": "auto", **self.options, **options}, f"shop_{mark}")
        opened.prepare()
        self.opened.append(opened)
        return opened

    def copies(self, destination: BigQueryDestination, schema: TableSchema, data: Sequence[Row]) -> None:
        publish(destination, schema, data)
        self.copied[schema.table_id] = schema
        columns = {column.name: bigquery_field(column).sql for column in schema.columns}
        held = to_bigquery(rows(schema, data), schema.columns, schema.name)
        self.server.create_table(destination.place(schema).path, columns, schema.key, held)

    def reflect(self, clients: Clients) -> None:
        """Queries, which are the emulator's, find what the server has."""
        book = self.opened[0]._book
        for schema in self.copied.values():
            place = self.opened[0].place(schema)
            held = self.server.read(place.path, arrow_schema_for(schema.columns))
            staged = book.staging_place("test")
            book.create_staging(staged, statements.fields(stored_columns(schema), schema))
            append_all(clients, staged, held.combine_chunks(), schema.name)
            # Appended to the table itself, they might be out of reach of the next TRUNCATE for a while.
            names = ", ".join(quoted(column.column) for column in stored_columns(schema))
            filled = f"INSERT INTO {place.sql} ({names}) SELECT {names} FROM {staged.sql}"  # noqa: S608
            clients.run(f"TRUNCATE TABLE {place.sql}; {filled}", "a test")

    def has(self, schema: TableSchema) -> Counter[Row]:
        path = self.opened[0].place(schema).path
        counted: Counter[Row] = Counter()
        for block in self.server.read(path, arrow_schema_for(schema.columns)).to_batches():
            counted.update(comparable(pa.Table.from_batches([from_bigquery(block, schema.columns)])))
        return counted


@pytest.fixture(scope="module")
def server() -> Iterator[BigQueryWriteServer]:
    with BigQueryWriteServer() as running:
        yield running


@pytest.fixture
def warehouse(
    server: BigQueryWriteServer, bigquery_options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Warehouse]:
    monkeypatch.setattr("etl_core.destination.bigquery.connection._WAIT", 0.01)
    warehouse = Warehouse(server, bigquery_options)
    real = Clients.run

    def run(self: Clients, sql: str, doing: str, *rest: Any, **keywords: Any) -> Any:
        if doing == "completing rows":
            warehouse.reflect(self)
        job = real(self, sql, doing, *rest, **keywords)
        if doing == "adding a column":
            server.add_column(warehouse.opened[0].place(ORDERS).path, "extra", "INT64")
        return job

    monkeypatch.setattr(Clients, "run", run)
    with grpc.insecure_channel(server.address) as channel:
        strict = BigQueryWriteClient(transport=BigQueryWriteGrpcTransport(channel=channel))  # type: ignore[no-untyped-call]
        monkeypatch.setattr(
            change_streams,
            "CdcWriter",
            lambda _client, path, schema, names: CdcWriter(strict, path, schema, names, waits=(0, 0, 0)),
        )
        monkeypatch.setattr(
            redo_log, "RowStream", lambda _, path, name, encoder: RowStream(strict, path, name, encoder, waits=(0, 0))
        )
        yield warehouse
        for destination in warehouse.opened:
            destination.close()


def test_a_batch_is_streamed_and_moves_the_watermark(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bookkeeping is read once, and once more after a table was claimed, which is at the first."""
    destination = warehouse.process()
    warehouse.copies(destination, ORDERS, [ROW, NEXT])
    destination.write(batch(changes(ORDERS, inserts=[LAST], deletes=[(1,)]), expected=100, new=200, stream=200))
    reads = []
    real = Bookkeeping._read

    def read(self: Bookkeeping) -> Any:
        reads.append(1)
        return real(self)

    monkeypatch.setattr(Bookkeeping, "_read", read)
    moved = (9, "c", "d", 2)
    destination.write(
        batch(changes(ORDERS, upserts=[moved], deletes=[(2,)]), expected=200, new=300, stream=300, stream_from=200)
    )
    assert len(reads) == 1
    assert warehouse.has(ORDERS) == Counter([LAST, moved])
    assert destination.positions().tables == {ORDERS.table_id: Lsn(300)}


def test_one_batch_has_tables_of_both_kinds(warehouse: Warehouse) -> None:
    destination = warehouse.process()
    merged = orders(name="merged", table_id=17)  # unchanged values of `note` may be missing
    warehouse.copies(destination, ORDERS, [ROW])
    # Through a query: a read of the table itself might lack changes that are not applied yet.
    assert contents(destination, ORDERS) == Counter([ROW])
    publish(destination, merged, [ROW])
    both = [changes(ORDERS, inserts=[NEXT]), changes(merged, partials=[partial(merged, ["note"], {(1,): (1, "x", 7)})])]
    destination.write(batch(*both, expected=100, new=200))
    assert warehouse.has(ORDERS) == Counter([ROW, NEXT])
    assert contents(destination, merged) == Counter([(1, "x", "b", 7)])


def test_a_lost_answer_and_a_request_that_comes_twice(warehouse: Warehouse) -> None:
    destination = warehouse.process()
    warehouse.copies(destination, ORDERS, [ROW])
    first = len(warehouse.server.requests) + 1
    warehouse.server.inject(Fault("lose answer", first), Fault("twice", first + 1))
    destination.write(batch(changes(ORDERS, inserts=[NEXT], deletes=[(1,)]), expected=100, new=200))
    assert warehouse.has(ORDERS) == Counter([NEXT])


def test_killed_before_the_watermark_and_cut_elsewhere_afterwards(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, successor = warehouse.process(), warehouse.process()
    warehouse.copies(killed, ORDERS, [ROW])
    once_before(monkeypatch, BigQueryDestination, "_apply", dies)
    with pytest.raises(LookupError):
        killed.write(
            batch(changes(ORDERS, inserts=[NEXT, LAST], upserts=[(1, "later", "b", 1)]), expected=100, new=200)
        )
    # The next process reads less at first; then it reads on, to where one of the rows was deleted again.
    successor.write(batch(changes(ORDERS, inserts=[NEXT]), expected=100, new=150))
    successor.write(batch(changes(ORDERS, upserts=[(1, "later", "b", 1)], deletes=[(3,)]), expected=150, new=250))
    assert warehouse.has(ORDERS) == Counter([(1, "later", "b", 1), NEXT])


def test_one_that_stood_still_before_it_sent_changes_nothing(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It saw the same watermark; its rows are older than those its successor has sent since."""
    stalled, successor = warehouse.process(), warehouse.process()
    warehouse.copies(stalled, ORDERS, [ROW])

    def goes_on() -> None:
        successor.write(batch(changes(ORDERS, upserts=[(1, "newest", "b", 9)]), expected=100, new=300))

    once_before(monkeypatch, Attempt, "send", goes_on)
    with pytest.raises(WatermarkConflict):
        stalled.write(batch(changes(ORDERS, upserts=[(1, "older", "b", 5)]), expected=100, new=200))
    assert warehouse.has(ORDERS) == Counter([(1, "newest", "b", 9)])


def test_one_that_has_sent_cannot_move_the_watermark_after_another_has_begun(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other's rows outrank it: with the watermark moved beyond them, they would stay."""
    stalled, other = warehouse.process(), warehouse.process()
    warehouse.copies(stalled, ORDERS, [ROW])

    def begins_and_dies() -> None:
        once_before(monkeypatch, BigQueryDestination, "_apply", dies)
        with pytest.raises(LookupError):
            other.write(batch(changes(ORDERS, upserts=[(1, "older", "b", 5)]), expected=100, new=200))

    once_before(monkeypatch, BigQueryDestination, "_apply", begins_and_dies)
    newest = changes(ORDERS, upserts=[(1, "newest", "b", 9)])
    with pytest.raises(WatermarkConflict):
        stalled.write(batch(newest, expected=100, new=300))
    assert stalled.positions().tables == {ORDERS.table_id: Lsn(100)}
    stalled.write(batch(newest, expected=100, new=300))
    assert warehouse.has(ORDERS) == Counter([(1, "newest", "b", 9)])


def test_a_job_that_is_late_moves_no_watermark_after_the_batch_was_tried_again(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second try ends earlier and outranks the first, whose rows beyond it would be lost if its job counted."""
    destination = warehouse.process()
    warehouse.copies(destination, ORDERS, [ROW])
    late: list[tuple[Any, ...]] = []
    real = Clients.run

    def unanswered(self: Clients, sql: str, doing: str, *rest: Any, **keywords: Any) -> Any:
        if doing == "writing a batch" and not late:
            late.append((sql, doing, *rest))
            raise DestinationUnavailable("no answer")
        return real(self, sql, doing, *rest, **keywords)

    monkeypatch.setattr(Clients, "run", unanswered)
    newest = changes(ORDERS, upserts=[(1, "newest", "b", 9)])
    with pytest.raises(DestinationUnavailable):
        destination.write(batch(newest, expected=100, new=300))
    once_before(monkeypatch, BigQueryDestination, "_apply", dies)
    with pytest.raises(LookupError):
        destination.write(batch(changes(ORDERS, upserts=[(1, "older", "b", 5)]), expected=100, new=200))
    with pytest.raises(WatermarkConflict):
        real(destination._clients, *late[0])
    destination.write(batch(newest, expected=100, new=300))
    assert warehouse.has(ORDERS) == Counter([(1, "newest", "b", 9)])


def test_one_that_stood_still_while_the_table_was_copied_again_is_not_its_owner(warehouse: Warehouse) -> None:
    """The source was quiet, so the copy has the same watermark; the epochs begin again."""
    stalled, successor = warehouse.process(), warehouse.process()
    warehouse.copies(stalled, ORDERS, [ROW])
    stalled.write(batch(changes(ORDERS), expected=100, new=200))
    with successor.copy(ORDERS) as copied:
        copied.publish(Lsn(200))
    successor.write(batch(changes(ORDERS), expected=200, new=300))
    before = successor._book.tables()[ORDERS.table_id].claim
    stalled.write(batch(changes(ORDERS), expected=300, new=400))
    after = successor._book.tables()[ORDERS.table_id].claim
    assert before is not None
    assert after is not None
    assert after.number == before.number + 1


def test_another_table_that_is_written_meanwhile_does_not_mix_up_the_order(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that catches up is written by a thread of its own, at any moment of the stream's batch."""
    destination = warehouse.process()
    beside = replace(orders(name="beside", table_id=17), replica_identity=ReplicaIdentity.FULL)
    for schema in (ORDERS, beside):
        warehouse.copies(destination, schema, [ROW])
    sent: list[tuple[int, int]] = []
    real = CdcWriter.write

    def write(self: CdcWriter, part: TableChanges, watermark: Lsn, attempt: int, number: int) -> Any:
        if part.schema.table_id == ORDERS.table_id:
            if len(sent) in (0, 1):  # another batch begins and ends while this part is on its way
                at = 100 + 100 * len(sent)
                destination.write(batch(changes(beside, inserts=[(5 + at, "x", "y", 1)]), expected=at, new=at + 100))
            sent.append((attempt, number))
        return real(self, part, watermark, attempt, number)

    monkeypatch.setattr(CdcWriter, "write", write)
    parts = [changes(ORDERS, upserts=[(1, text, "b", 1)]) for text in ("first", "second", "third")]
    destination.write(batch(*parts, expected=100, new=200))
    assert len({attempt for attempt, _ in sent}) == 1, sent
    assert [number for _, number in sent] == [0, 1, 2]
    assert warehouse.has(ORDERS) == Counter([(1, "third", "b", 1)])


def test_columns_come_and_go(warehouse: Warehouse) -> None:
    destination = warehouse.process()
    warehouse.copies(destination, ORDERS, [ROW])
    grown = replace(ORDERS, columns=(*ORDERS.columns, Column("extra", INT4)))
    destination.write(batch(changes(grown, inserts=[(*NEXT, 7)]), expected=100, new=200))
    assert warehouse.has(grown) == Counter([(*ROW, None), (*NEXT, 7)])
    destination.write(batch(changes(ORDERS, inserts=[LAST]), expected=200, new=300))
    assert warehouse.has(ORDERS) == Counter([ROW, NEXT, LAST])
    fields = destination._clients.rest().get_table(str(destination.place(ORDERS))).schema
    assert {found.name for found in fields} == {"id", "status", "note", "amount"}


def test_killed_between_a_column_and_its_rows(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    killed, successor = warehouse.process(), warehouse.process()
    warehouse.copies(killed, ORDERS, [ROW])
    grown = replace(ORDERS, columns=(*ORDERS.columns, Column("extra", INT4)))
    once_before(monkeypatch, Attempt, "send", dies)
    with pytest.raises(LookupError):
        killed.write(batch(changes(grown, inserts=[(*NEXT, 7)]), expected=100, new=200))
    successor.write(batch(changes(grown, inserts=[(*NEXT, 7)]), expected=100, new=200))
    assert warehouse.has(grown) == Counter([(*ROW, None), (*NEXT, 7)])


def holds(warehouse: Warehouse) -> None:
    """What the server's rows have in the column that came; queries are the emulator's, which has no changes."""
    destination = warehouse.opened[0]
    destination._clients.run(f"UPDATE {destination.place(ORDERS).sql} SET extra = 7 WHERE TRUE", "a test")  # noqa: S608


def test_killed_after_rows_with_a_column_that_came(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the column holds is of the lost try, and all of it is sent again."""
    killed, successor = warehouse.process(), warehouse.process()
    warehouse.copies(killed, ORDERS, [ROW])
    grown = replace(ORDERS, columns=(*ORDERS.columns, Column("extra", INT4, attnum=5)))
    once_before(monkeypatch, BigQueryDestination, "_apply", dies)
    with pytest.raises(LookupError):
        killed.write(batch(changes(grown, inserts=[(*NEXT, 7)]), expected=100, new=200))
    holds(warehouse)
    successor.write(batch(changes(grown, inserts=[(*NEXT, 7)]), expected=100, new=200))
    assert warehouse.has(grown) == Counter([(*ROW, None), (*NEXT, 7)])


def test_a_column_that_comes_twice_in_a_batch_stops_the_table(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows have values of the first one, and the second begins empty at the source."""
    destination = warehouse.process()
    warehouse.copies(destination, ORDERS, [ROW])
    first, second = (
        replace(ORDERS, columns=(*ORDERS.columns, Column("extra", INT4, attnum=attnum))) for attnum in (5, 6)
    )
    real = Attempt.send

    def send(self: Attempt, *arguments: Any) -> None:
        real(self, *arguments)
        holds(warehouse)

    monkeypatch.setattr(Attempt, "send", send)
    parts = [changes(first, inserts=[(*NEXT, 7)]), changes(second, inserts=[(*LAST, 8)])]
    with pytest.raises(TableError, match="older than column extra have"):
        destination.write(batch(*parts, expected=100, new=200))


@pytest.mark.parametrize("staleness", [None, "0-0 0 0:0:0", "0-0 0 0:10:0"])
def test_a_column_that_seems_to_be_empty_is_believed_only_if_reads_are_of_the_newest(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch, staleness: str | None
) -> None:
    destination = warehouse.process()
    warehouse.copies(destination, ORDERS, [ROW])
    first, second = (
        replace(ORDERS, columns=(*ORDERS.columns, Column("extra", INT4, attnum=attnum))) for attnum in (5, 6)
    )
    monkeypatch.setattr(bigquery.Table, "max_staleness", staleness)
    again = batch(changes(first, inserts=[(*NEXT, 7)]), changes(second, inserts=[(*LAST, 8)]), expected=100, new=200)
    if staleness == "0-0 0 0:10:0":
        with pytest.raises(TableError, match="may have, a value"):
            destination.write(again)
    else:
        destination.write(again)  # the emulator has none of the streamed rows, so the column is empty there
        assert destination.positions().tables == {ORDERS.table_id: Lsn(200)}


FILLED = replace(ORDERS, columns=(*ORDERS.columns, Column("extra", INT4, missing_value="5")))


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (lambda: changes(ORDERS, truncate=True), "truncated"),
        (lambda: changes(ORDERS, partials=[partial(ORDERS, ["note"], {(1,): (1, "x", 7)})]), "TOAST"),
        (lambda: changes(FILLED, inserts=[(*NEXT, 1)]), "older than column extra have"),
    ],
    ids=["truncate", "partial", "default"],
)
def test_what_cannot_be_streamed_stops_the_table(warehouse: Warehouse, part: Any, said: str) -> None:
    destination = warehouse.process()
    warehouse.copies(destination, ORDERS, [ROW])
    with pytest.raises(TableError, match=said) as caught:
        destination.write(batch(part(), expected=100, new=200))
    assert caught.value.table == "public.orders"
    assert "etl resync public.orders" in str(caught.value.hint)
    assert warehouse.has(ORDERS) == Counter([ROW])
    assert destination.positions().tables == {ORDERS.table_id: Lsn(100)}


TOASTED = orders()
"""Its rows may come without the unchanged `note`, so they are streamed out of the redo log."""
FIRST = (1, "s", "A", 1)
CHANGED = changes(TOASTED, partials=[partial(TOASTED, ["note"], {(1,): (1, "x", 1)})])
MOVED = changes(TOASTED, upserts=[(1, "new", "B", 5)], partials=[partial(TOASTED, ["note"], {(1,): (2, "x", 1)})])
"""Then that row has key 2, and another one its key."""


def streams_logged(warehouse: Warehouse, data: Sequence[Row]) -> BigQueryDestination:
    destination = warehouse.process(method="storage_write_cdc")
    warehouse.copies(destination, TOASTED, data)
    assert destination._book.tables()[TOASTED.table_id].method == "storage_write_cdc_redo"
    return destination


def test_unchanged_values_are_looked_up_where_the_table_is_as_its_watermark_says(warehouse: Warehouse) -> None:
    """In the table, and in the parts before; with columns that come and go between them."""
    destination = streams_logged(warehouse, [FIRST, (4, "d", "D", 4)])
    destination.write(batch(CHANGED, MOVED, expected=100, new=200, stream=200))
    assert warehouse.has(TOASTED) == Counter([(2, "x", "A", 1), (1, "new", "B", 5), (4, "d", "D", 4)])
    grown = replace(TOASTED, columns=(*TOASTED.columns, Column("extra", INT4, attnum=5)))
    parts = [
        changes(TOASTED, deletes=[(4,)], upserts=[(1, "new", "C", 6)]),
        changes(grown, partials=[partial(grown, ["note", "extra"], {(1,): (1, "newer", 7), (2,): (3, "x", 1)})]),
    ]
    destination.write(batch(*parts, expected=200, new=300, stream=300, stream_from=200))
    assert warehouse.has(grown) == Counter([(1, "newer", "C", 7, None), (3, "x", "A", 1, None)])
    assert destination.positions().tables == {TOASTED.table_id: Lsn(300)}
    assert destination._book.tables()[TOASTED.table_id].redo is None
    assert not destination._book.staged("redo")
    gone = changes(TOASTED, partials=[partial(TOASTED, ["note"], {(4,): (4, "x", 1)})])
    with pytest.raises(TableError, match="unchanged values are needed are not there"):
        destination.write(batch(gone, expected=300, new=400))
    assert destination.positions().tables == {TOASTED.table_id: Lsn(300)}
    assert not destination._book.staged("redo")


def test_killed_with_unchanged_values_and_cut_elsewhere_afterwards(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a batch that is lost no row may be found by the next one, which would take the value of another row."""
    destination = streams_logged(warehouse, [FIRST])
    boundaries: list[tuple[Any, str, Callable[[], None]]] = [
        (destination_module, "transactions", dies),  # the rows are completed
        (
            RowStream,
            "send",
            lambda: once_before(monkeypatch, RowStream, "send", dies),
        ),  # streamed in part
        (Bookkeeping, "has_redone", dies),  # streamed to the end
    ]
    at = 100
    for owner, name, happens in boundaries:
        once_before(monkeypatch, owner, name, happens)
        parts = [CHANGED, MOVED] if owner is RowStream else [MOVED]
        with pytest.raises(LookupError):
            destination.write(batch(*parts, expected=at, new=at + 20))
        destination.prepare()  # as the next process does; it finishes what is committed
        if name == "transactions":
            assert warehouse.has(TOASTED) == Counter([FIRST])
            destination.write(batch(CHANGED, expected=at, new=at + 10))
            destination.write(batch(MOVED, expected=at + 10, new=at + 20))
        assert destination.positions().tables == {TOASTED.table_id: Lsn(at + 20)}
        assert warehouse.has(TOASTED) == Counter([(2, "x", "A", 1), (1, "new", "B", 5)]), name
        destination.write(batch(changes(TOASTED, upserts=[FIRST], deletes=[(1,), (2,)]), expected=at + 20, new=at + 30))
        assert warehouse.has(TOASTED) == Counter([FIRST]), name
        at += 30


def test_one_that_stood_still_before_it_streamed_what_it_committed_changes_nothing(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others have streamed it, gone on, and dropped its staging tables."""
    stalled = streams_logged(warehouse, [FIRST])

    def goes_on() -> None:
        stalled.prepare()  # as another process does
        newest = changes(TOASTED, partials=[partial(TOASTED, ["note"], {(2,): (2, "newest", 9)})])
        stalled.write(batch(newest, expected=200, new=300))

    once_before(monkeypatch, RowStream, "send", goes_on)
    stalled.write(batch(MOVED, expected=100, new=200))
    assert warehouse.has(TOASTED) == Counter([(2, "newest", "A", 9), (1, "new", "B", 5)])
    assert stalled._book.tables()[TOASTED.table_id].redo is None


def test_of_two_that_have_completed_one_commits(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """And while what it committed is not streamed yet, nobody writes on."""
    stalled = streams_logged(warehouse, [FIRST])

    def commits_and_dies() -> None:
        once_before(monkeypatch, RedoLog, "finish", dies)
        with pytest.raises(LookupError):
            stalled.write(batch(MOVED, expected=100, new=200))

    once_before(monkeypatch, destination_module, "transactions", commits_and_dies)
    with pytest.raises(WatermarkConflict):
        stalled.write(batch(CHANGED, expected=100, new=150))
    assert warehouse.has(TOASTED) == Counter([FIRST])
    assert contents(stalled, TOASTED) == Counter([FIRST])  # the emulator's, which has no changes
    assert warehouse.has(TOASTED) == Counter([(2, "x", "A", 1), (1, "new", "B", 5)])


def test_a_committed_batch_whose_staging_tables_are_gone_is_a_new_copy(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = streams_logged(warehouse, [FIRST])
    once_before(monkeypatch, RedoLog, "finish", dies)
    with pytest.raises(LookupError):
        killed.write(batch(CHANGED, expected=100, new=200))
    killed.discard_staging()  # as a week does
    killed.prepare()  # says so, and stops no other table
    with pytest.raises(CopiedAgain, match="its staging table is gone"):
        killed.write(batch(CHANGED, expected=200, new=300))
    warehouse.copies(killed, TOASTED, [FIRST])
    assert killed._book.tables()[TOASTED.table_id].redo is None


def test_a_table_that_was_given_a_staleness_completes_no_row(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = streams_logged(warehouse, [FIRST])
    monkeypatch.setattr(bigquery.Table, "max_staleness", "0-0 0 0:10:0")
    with pytest.raises(TableError, match="max_staleness"):
        destination.write(batch(CHANGED, expected=100, new=200))
    assert warehouse.has(TOASTED) == Counter([FIRST])


def test_a_table_that_cannot_be_streamed_is_refused_when_it_is_to_be(warehouse: Warehouse) -> None:
    destination = warehouse.process(method="storage_write_cdc")
    with pytest.raises(TableError, match="because the table has no key") as caught:
        destination.copy(replace(ORDERS, key=()))
    assert "method: auto" in str(caught.value.hint)


def test_staleness_is_an_option_of_streamed_tables_alone(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    real = Clients.run

    def run(self: Clients, sql: str, *rest: Any, **keywords: Any) -> Any:
        sent.append(sql)
        return real(self, sql.replace(", max_staleness = INTERVAL 600 SECOND", ""), *rest, **keywords)

    monkeypatch.setattr(Clients, "run", run)
    destination = warehouse.process(max_staleness="10m")
    publish(destination, ORDERS, [ROW])
    publish(destination, orders(name="merged", table_id=17), [ROW])
    streamed, merged = (sql for sql in sent if sql.startswith("CREATE OR REPLACE"))
    assert "max_staleness = INTERVAL 600 SECOND)" in streamed
    assert "max_staleness" not in merged


def test_a_committed_batch_is_streamed_though_its_table_has_no_more_changes(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine finds the watermark where the batch was to move it, and never writes that batch again."""
    destination = streams_logged(warehouse, [FIRST])

    def down() -> None:
        raise DestinationUnavailable("BigQuery did not answer")

    once_before(monkeypatch, RowStream, "send", down)
    with pytest.raises(DestinationUnavailable):
        destination.write(batch(MOVED, expected=100, new=200))
    assert destination.positions().tables[TOASTED.table_id] == Lsn(200)
    assert warehouse.has(TOASTED) == Counter([(2, "x", "A", 1), (1, "new", "B", 5)])


def test_a_bookkeeping_of_before_the_redo_log(bigquery_options: dict[str, str]) -> None:
    destination = from_options(bigquery_options, f"old_{bigquery_options['dataset'].partition('_')[0]}")
    book = destination._book
    book.create_dataset(book.dataset)
    columns = [column for column in bookkeeping._SCHEMA if column.name != "redo"]
    destination._clients.rest().create_table(bigquery.Table(str(book.tables_place), columns))
    destination._clients.run(
        f"INSERT INTO {book.tables_place.sql} (table_id, namespace, name, dataset, table_name, columns, watermark,"  # noqa: S608
        " method, updated_at) VALUES (0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL), (7, 'public', 'orders',"
        " 'd', 'orders', '[]', '0000000000000064', 'load_merge', CURRENT_TIMESTAMP())",
        "making an older bookkeeping",
    )
    assert destination.positions().tables == {TableId(7): Lsn(100)}  # as etl status asks, before anything is prepared
    destination.prepare()
    assert book.tables()[TableId(7)].redo is None
    destination.close()
