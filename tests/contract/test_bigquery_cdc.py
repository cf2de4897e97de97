"""Changes streamed to BigQuery end exact, whatever fails in between. Over a server that keeps Google's rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import MonthDayNano

pytest.importorskip("google.cloud.bigquery_storage_v1", reason="needs the extra bigquery")

import grpc
from google.cloud.bigquery_storage_v1 import BigQueryWriteClient
from google.cloud.bigquery_storage_v1.services.big_query_write.transports import (
    BigQueryWriteGrpcTransport,
)

from etl_core.batch import TableChanges
from etl_core.destination.bigquery import row_stream
from etl_core.destination.bigquery.cdc import CdcWriter, needs_merge
from etl_core.destination.bigquery.row_stream import RowsRefused
from etl_core.destination.bigquery.types import arrow_schema_for, bigquery_field, from_bigquery, to_bigquery
from etl_core.errors import DestinationUnavailable, TableError, ValueOutOfRange
from etl_core.lsn import Lsn
from etl_core.schema import pg_types
from etl_core.schema.table import Column, PgType, TableSchema
from etl_core.testing.destination_tables import (
    INT4,
    INT8,
    TEXT,
    Row,
    array_of,
    changes,
    comparable,
    numeric_modifier,
    orders,
    partial,
    rows,
    table,
)
from etl_core.testing.destination_values_suite import CASES
from etl_core.testing.servers.bigquery_write_server import BigQueryWriteServer, Fault, Kind

PATH = "projects/p/datasets/d/tables/orders"
Rows = Sequence[Sequence[Any]]


@pytest.fixture(scope="module")
def server() -> Iterator[BigQueryWriteServer]:
    with BigQueryWriteServer() as running:
        yield running


@pytest.fixture(scope="module")
def client(server: BigQueryWriteServer) -> Iterator[BigQueryWriteClient]:
    with grpc.insecure_channel(server.address) as channel:
        yield BigQueryWriteClient(transport=BigQueryWriteGrpcTransport(channel=channel))  # type: ignore[no-untyped-call]


@dataclass
class Target:
    """A table in the server and what writes to it."""

    server: BigQueryWriteServer
    client: BigQueryWriteClient
    schema: TableSchema

    def create(self, data: Rows = (), *, key: Sequence[str] | None = None) -> None:
        held = to_bigquery(rows(self.schema, data), self.schema.columns, self.schema.name)
        columns = {column.name: bigquery_field(column).sql for column in self.schema.columns}
        self.server.create_table(PATH, columns, self.schema.key if key is None else key, held)

    def writer(self, **options: Any) -> CdcWriter:
        return CdcWriter(self.client, PATH, self.schema, self.schema.column_names, **{"waits": (0, 0, 0), **options})

    def contents(self) -> Counter[Row]:
        read = self.server.read(PATH, arrow_schema_for(self.schema.columns))
        counted: Counter[Row] = Counter()
        for batch in read.to_batches():
            counted.update(comparable(pa.Table.from_batches([from_bigquery(batch, self.schema.columns)])))
        return counted

    def expected(self, data: Rows) -> Counter[Row]:
        return Counter(comparable(rows(self.schema, data)))

    def fail(self, *kinds: Kind, after: int = 0) -> None:
        """The next requests, after the next `after`, meet these faults."""
        first = len(self.server.requests) + 1 + after
        self.server.inject(*(Fault(kind, first + at) for at, kind in enumerate(kinds)))


@pytest.fixture
def target(server: BigQueryWriteServer, client: BigQueryWriteClient) -> Target:
    made = Target(server, client, orders())
    made.create()
    return made


def test_inserts_upserts_and_deletes(target: Target) -> None:
    target.create([(1, "old", "n", 1), (2, "old", "n", 2), (3, "old", "n", 3)])
    batch = changes(
        target.schema,
        inserts=[(4, "new", None, 4)],
        upserts=[(2, "changed", "", -2)],
        deletes=[(1,)],
    )
    with target.writer() as writer:
        sent = writer.write(batch, Lsn(100), 1, 0)
    assert target.contents() == target.expected([(2, "changed", "", -2), (3, "old", "n", 3), (4, "new", None, 4)])
    assert (sent.rows, sent.requests) == (3, 2)


def test_an_update_that_moves_a_row_to_another_key_and_one_that_takes_its_place(target: Target) -> None:
    target.create([(1, "a", None, 1), (2, "b", None, 2)])
    # 1 → 2 and 2 → 1: both keys are left and both are set.
    swap = changes(target.schema, upserts=[(2, "a", None, 1), (1, "b", None, 2)], deletes=[(1,), (2,)])
    with target.writer() as writer:
        writer.write(swap, Lsn(100), 1, 0)
        assert target.contents() == target.expected([(2, "a", None, 1), (1, "b", None, 2)])
        writer.write(changes(target.schema, upserts=[(7, "b", None, 2)], deletes=[(1,)]), Lsn(200), 2, 0)
    assert target.contents() == target.expected([(2, "a", None, 1), (7, "b", None, 2)])


def test_a_delete_that_comes_after_the_upsert_of_its_part_does_not_take_the_row(target: Target) -> None:
    target.create([(1, "a", None, 1)])
    with target.writer() as writer:
        target.fail("late")  # the deletes' request
        writer.write(changes(target.schema, upserts=[(1, "b", None, 2)], deletes=[(1,)]), Lsn(100), 1, 0)
    target.server.deliver_late()
    assert target.contents() == target.expected([(1, "b", None, 2)])


def test_a_later_part_and_a_later_batch_win(target: Target) -> None:
    with target.writer() as writer:
        writer.write(changes(target.schema, inserts=[(1, "first", None, 0)]), Lsn(100), 1, 0)
        writer.write(changes(target.schema, upserts=[(1, "second", None, 0)]), Lsn(100), 1, 1)
        assert target.contents() == target.expected([(1, "second", None, 0)])
        writer.write(changes(target.schema, deletes=[(1,)]), Lsn(100), 1, 2)
        assert target.contents() == Counter()
        writer.write(changes(target.schema, inserts=[(1, "again", None, 0)]), Lsn(200), 2, 0)
    assert target.contents() == target.expected([(1, "again", None, 0)])


@pytest.mark.parametrize("kind", ["lose answer", "reset", "quota", "quota answer", "not found", "twice"])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_every_fault_ends_exact(target: Target, kind: Kind, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # So small that a batch is many requests.
    monkeypatch.setattr(row_stream, "MAX_REQUEST_BYTES", row_stream._ENVELOPE_BYTES + 450)
    target.create([(at, "old", "x" * 20, at) for at in range(10)])
    with target.writer() as writer:
        writer.write(changes(target.schema, inserts=[(99, "before", None, 0)]), Lsn(50), 1, 0)
        target.fail(kind, kind, after=after)
        sent = writer.write(
            changes(
                target.schema,
                upserts=[(at, "new", "y" * 30, -at) for at in range(5, 15)],
                deletes=[(at,) for at in range(5)],
            ),
            Lsn(100),
            2,
            0,
        )
    assert sent.rows == 15
    assert sent.requests >= 4
    wanted = [(at, "new", "y" * 30, -at) for at in range(5, 15)]
    assert target.contents() == target.expected([*wanted, (99, "before", None, 0)])


def test_a_fault_that_stays_is_reported_and_the_batch_can_be_written_again(target: Target) -> None:
    batch = changes(target.schema, inserts=[(1, "a", None, 1)])
    with target.writer() as writer:
        target.fail("reset", "lose answer", "reset", "reset")
        with pytest.raises(DestinationUnavailable):
            writer.write(batch, Lsn(100), 1, 0)
        writer.write(batch, Lsn(100), 2, 0)
    assert target.contents() == target.expected([(1, "a", None, 1)])


def test_a_quota_that_stays_says_so(target: Target) -> None:
    target.fail("quota", "quota answer", "quota", "quota")
    with target.writer() as writer, pytest.raises(DestinationUnavailable, match="quota") as raised:
        writer.write(changes(target.schema, inserts=[(1, "a", None, 1)]), Lsn(100), 1, 0)
    assert raised.value.hint


def test_no_answer_is_not_waited_for_without_end(target: Target) -> None:
    target.fail("silent")
    with target.writer(patience=0.2) as writer:
        writer.write(changes(target.schema, inserts=[(1, "a", None, 1)]), Lsn(100), 1, 0)
    assert target.contents() == target.expected([(1, "a", None, 1)])


def test_a_request_that_is_overtaken_does_not_go_back(target: Target) -> None:
    with target.writer() as writer:
        target.fail("late")
        writer.write(changes(target.schema, inserts=[(1, "a", None, 1), (2, "a", None, 1)]), Lsn(100), 1, 0)
        writer.write(changes(target.schema, upserts=[(1, "b", None, 1)], deletes=[(2,)]), Lsn(200), 2, 0)
    target.server.deliver_late()
    assert target.contents() == target.expected([(1, "b", None, 1)])


def test_a_deleted_row_comes_back_only_if_a_request_is_later_than_deletes_are_remembered(target: Target) -> None:
    """Two days. It is why a request may not wait longer anywhere."""
    with target.writer() as writer:
        target.fail("late")
        writer.write(changes(target.schema, inserts=[(1, "a", None, 1)]), Lsn(100), 1, 0)
        writer.write(changes(target.schema, deletes=[(1,)]), Lsn(200), 2, 0)
    target.server.forget_deletes()
    target.server.deliver_late()
    assert target.contents() == target.expected([(1, "a", None, 1)])


def test_a_connection_is_kept_and_a_broken_one_replaced(target: Target) -> None:
    before = target.server.connections
    with target.writer() as writer:
        for at in range(3):
            writer.write(changes(target.schema, inserts=[(at, "a", None, 1)]), Lsn(100 + at), at, 0)
        assert target.server.connections == before + 1
        target.fail("lose answer")
        writer.write(changes(target.schema, inserts=[(9, "a", None, 1)]), Lsn(200), 9, 0)
    assert target.server.connections == before + 2
    assert sum(target.contents().values()) == 4


def test_nothing_to_send_opens_nothing(target: Target) -> None:
    before = target.server.connections
    with target.writer() as writer:
        assert writer.write(changes(target.schema), Lsn(100), 1, 0).requests == 0
    assert target.server.connections == before


def test_requests_are_as_large_as_allowed_and_not_larger(target: Target) -> None:
    before = len(target.server.requests)
    data = [(at, "x" * 1_000_000, None, at) for at in range(25)]
    with target.writer() as writer:
        sent = writer.write(changes(target.schema, inserts=data), Lsn(100), 1, 0)
    sizes = target.server.requests[before:]
    assert len(sizes) == sent.requests == 3
    assert max(sizes) < row_stream.MAX_REQUEST_BYTES
    assert sorted(sizes)[1] > 8_900_000
    assert target.contents() == target.expected(data)


def test_a_row_larger_than_a_request_stops_the_table(target: Target) -> None:
    with target.writer() as writer, pytest.raises(TableError, match="larger than") as raised:
        writer.write(changes(target.schema, inserts=[(1, "x" * 10_000_000, None, 1)]), Lsn(100), 1, 0)
    assert raised.value.table == "public.orders"


_DATE = PgType(pg_types.DATE, "date")


def test_refused_rows_are_named_by_number_and_not_by_value(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = table("orders", Column("id", INT8), Column("day", _DATE))
    odd = Target(target.server, target.client, schema)
    odd.create()
    # The column is a smaller one in BigQuery than we believe.
    odd.server.create_table(PATH, {"id": "INT64", "day": "DATE"}, ("id",))
    monkeypatch.setattr("etl_core.destination.bigquery.types.LAST_DAY", 2**31 - 1)
    data = [(1, 0), (2, 2_932_897), (3, None), (4, 2_932_898)]
    with odd.writer() as writer:
        with pytest.raises(RowsRefused) as raised:
            writer.write(changes(schema, inserts=data[:1], upserts=data[1:]), Lsn(100), 1, 0)
        assert (raised.value.change, raised.value.rows) == ("UPSERT", (1, 3))
        assert "2932897" not in str(raised.value)
        assert odd.contents() == Counter()  # the request is refused whole
        writer.write(changes(schema, inserts=[data[0], data[2]]), Lsn(100), 2, 0)
    assert odd.contents() == odd.expected([data[0], data[2]])


def test_a_value_bigquery_cannot_hold_is_refused_before_anything_is_sent(target: Target) -> None:
    schema = table("orders", Column("id", INT8), Column("day", _DATE))
    before = len(target.server.requests)
    with Target(target.server, target.client, schema).writer() as writer, pytest.raises(ValueOutOfRange):
        writer.write(changes(schema, inserts=[(1, 2**31 - 1)], deletes=[(2,)]), Lsn(100), 1, 0)
    assert len(target.server.requests) == before


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("lacks a column", lambda t: t.server.create_table(PATH, {"id": "INT64"}, ("id",))),
        ("refused the changes", lambda t: t.create(key=())),
        ("refused the changes", lambda t: t.server.create_table(
            PATH, {"id": "STRING", "status": "STRING", "note": "STRING", "amount": "INT64"}, ("id",))),
        ("has no table", lambda t: t.server.drop_table(PATH)),
    ],
    ids=["column", "key", "type", "table"],
)  # fmt: skip
def test_a_table_changed_from_outside_stops_with_what_to_do(target: Target, message: str, make: Any) -> None:
    make(target)
    with target.writer() as writer, pytest.raises(TableError, match=message) as raised:
        writer.write(changes(target.schema, inserts=[(1, "a", None, 1)]), Lsn(100), 1, 0)
    assert raised.value.hint
    assert raised.value.table == "public.orders"


def test_a_column_that_bigquery_does_not_know_yet_is_waited_for(target: Target) -> None:
    target.server.create_table(PATH, {"id": "INT64", "status": "STRING", "note": "STRING"}, ("id",))
    waits: list[float] = []

    class Waits(tuple[float, ...]):
        def __getitem__(self, at: Any) -> Any:
            waits.append(at)
            target.server.add_column(PATH, "amount", "INT64")
            return 0

    with target.writer() as writer:
        writer._waits = Waits((0,))
        writer.write(changes(target.schema, inserts=[(1, "a", None, 1)]), Lsn(100), 1, 0)
    assert waits == [0]
    assert target.contents() == target.expected([(1, "a", None, 1)])


def test_columns_go_by_their_names_in_bigquery(target: Target) -> None:
    target.server.create_table(PATH, {"id": "INT64", "a": "STRING", "b": "STRING", "c": "INT64"}, ("id",))
    with CdcWriter(target.client, PATH, target.schema, ["id", "a", "b", "c"], waits=()) as writer:
        writer.write(changes(target.schema, inserts=[(1, "x", "y", 2)]), Lsn(100), 1, 0)
    fields: dict[str, pa.DataType] = {"id": pa.int64(), "a": pa.string(), "b": pa.string(), "c": pa.int64()}
    read = target.server.read(PATH, pa.schema(fields))
    assert read.to_pylist() == [{"id": 1, "a": "x", "b": "y", "c": 2}]


def test_every_type_arrives(target: Target) -> None:
    schema = table(
        "orders",
        Column("id", INT8),
        Column("n", PgType(pg_types.NUMERIC, "numeric"), numeric_modifier(12, 2)),
        Column("big", PgType(pg_types.NUMERIC, "numeric"), numeric_modifier(38, 20)),
        Column("b", PgType(pg_types.BOOL, "bool")),
        Column("f", PgType(pg_types.FLOAT4, "float4")),
        Column("raw", PgType(pg_types.BYTEA, "bytea")),
        Column("day", _DATE),
        Column("t", PgType(pg_types.TIME, "time")),
        Column("ts", PgType(pg_types.TIMESTAMP, "timestamp")),
        Column("tz", PgType(pg_types.TIMESTAMPTZ, "timestamptz")),
        Column("gap", PgType(pg_types.INTERVAL, "interval")),
        Column("tags", array_of(1009, TEXT)),
        Column("ints", array_of(1007, INT4)),
        key=("id", "day"),
    )
    build: Any = MonthDayNano
    gap = build((14, -3, -4_000_005_000))
    last = 253_402_300_799_999_999
    data = [
        (
            1,
            Decimal("-1.10"),
            Decimal("0.00000000000000000001"),
            True,
            1.5,
            b"\x00",
            0,
            1,
            -1,
            last,
            gap,
            ["", None],
            [],
        ),
        (2, *[None] * 5, -719_162, *[None] * 6),
        (3, Decimal(0), Decimal(-1), False, float("nan"), b"", 2_932_896, 86_399_999_999, last, -1, gap, None, [None]),
    ]
    odd = Target(target.server, target.client, schema)
    odd.create()
    with odd.writer() as writer:
        writer.write(changes(schema, inserts=data), Lsn(100), 1, 0)
        assert odd.contents() == odd.expected(data)
        writer.write(changes(schema, deletes=[(3, 2_932_896)]), Lsn(200), 2, 0)
    assert odd.contents() == odd.expected(data[:2])


_NESTED = (
    *("xid8", "bit", "timetz", "point", "path", "polygon", "hstore", "vector", "pair"),
    *("points", "hstores", "vectors", "pairs"),
)


@pytest.mark.parametrize("name", _NESTED)
def test_structs_and_maps_arrive(target: Target, name: str) -> None:
    column, values = next(case for case in CASES if case[0].name == name)
    schema = table("orders", Column("id", INT8), column)
    odd = Target(target.server, target.client, schema)
    odd.create()
    data = list(enumerate([*values, None]))
    with odd.writer() as writer:
        writer.write(changes(schema, inserts=data), Lsn(100), 1, 0)
    assert odd.contents() == odd.expected(data)


def test_what_cannot_be_streamed_says_why() -> None:
    schema = orders()
    assert needs_merge(changes(schema, inserts=[(1, "a", None, 1)])) is None
    assert "truncated" in (needs_merge(changes(schema, truncate=True)) or "")
    toast = changes(schema, partials=[partial(schema, ["note"], {(1,): (1, "a", 1)})])
    assert "TOAST" in (needs_merge(toast) or "")
    assert "no key" in (needs_merge(changes(table("t", Column("a", INT4), key=()))) or "")
    wide = tuple(Column(f"k{at}", INT4) for at in range(17))
    assert "17" in (needs_merge(changes(table("t", *wide, key=[c.name for c in wide]))) or "")
    raw = table("t", Column("id", PgType(pg_types.BYTEA, "bytea")))
    assert "id is BYTES" in (needs_merge(changes(raw)) or "")


def test_what_cannot_be_streamed_is_not_sent(target: Target) -> None:
    before = len(target.server.requests)
    with target.writer() as writer, pytest.raises(TableError, match="truncated"):
        writer.write(changes(target.schema, truncate=True), Lsn(100), 1, 0)
    assert len(target.server.requests) == before


# A history: transactions of changes to few keys. Each is cut into batches, and batches into parts, as a try likes.
_Change = tuple[int, int | None]  # key, and its value or None for a delete
_KEYS = 4


@st.composite
def _histories(draw: st.DrawFn) -> list[list[_Change]]:
    """Transactions; a key is deleted only when it is there."""
    there: set[int] = set()
    history = []
    for _ in range(draw(st.integers(1, 8))):
        transaction: list[_Change] = []
        for _ in range(draw(st.integers(1, 4))):
            key = draw(st.integers(0, _KEYS - 1))
            if key in there and draw(st.booleans()):
                there.discard(key)
                transaction.append((key, None))
            else:
                there.add(key)
                transaction.append((key, draw(st.integers(0, 999))))
        history.append(transaction)
    return history


def _collapsed(schema: TableSchema, part: Sequence[_Change]) -> TableChanges:
    """The last word on every key, with a delete for each that ends gone, also if the part inserted it."""
    last = dict(part)
    return changes(
        schema,
        upserts=[(key, value) for key, value in last.items() if value is not None],
        deletes=[(key,) for key, value in last.items() if value is None],
    )


def _cut(draw: Callable[..., Any], items: Sequence[Any]) -> list[Sequence[Any]]:
    """Stretches of `items`, none of them empty."""
    places = sorted(draw(st.sets(st.integers(1, len(items) - 1))) if len(items) > 1 else set())
    return [items[a:b] for a, b in zip([0, *places], [*places, len(items)], strict=True)]


@settings(max_examples=80)
@given(data=st.data())
def test_any_crash_and_any_new_cut_ends_exact(
    server: BigQueryWriteServer, client: BigQueryWriteClient, data: st.DataObject
) -> None:
    """Tries that die after some part, restarts that cut batches and parts elsewhere, requests that come too late."""
    schema = table("orders", Column("id", INT8), Column("value", INT4))
    target = Target(server, client, schema)
    target.create()
    history = data.draw(_histories())
    watermark, attempt = 0, 0
    while watermark < len(history):
        attempt += 1
        end = data.draw(st.integers(watermark + 1, len(history)))
        touched = [change for transaction in history[watermark:end] for change in transaction]
        parts = _cut(data.draw, touched)
        dies_at = data.draw(st.none() | st.integers(0, len(parts) - 1)) if attempt < 6 else None
        with target.writer() as writer:
            for at, part in enumerate(parts[:dies_at]):
                if attempt < 6 and data.draw(st.integers(0, 4)) == 0:
                    target.fail("late")
                writer.write(_collapsed(schema, part), Lsn(watermark), attempt, at)
        if dies_at is None:
            watermark = end
        else:
            # The last request of a process that is gone: it comes when it comes.
            target.fail("late")
            with target.writer(waits=()) as writer, pytest.raises(DestinationUnavailable):
                writer.write(_collapsed(schema, parts[dies_at]), Lsn(watermark), attempt, dies_at)
        if data.draw(st.booleans()):
            server.deliver_late()
    server.deliver_late()
    source: dict[int, int] = {}
    for key, value in (change for transaction in history for change in transaction):
        source.pop(key, None)
        if value is not None:
            source[key] = value
    assert target.contents() == target.expected(list(source.items()))


def test_a_key_inserted_and_deleted_in_one_batch_must_be_among_its_deletes(target: Target) -> None:
    """A try that ended between the two has left the row, and only a delete takes it away."""
    with target.writer() as writer:
        writer.write(changes(target.schema, inserts=[(1, "short-lived", None, 1)]), Lsn(100), 1, 0)
        # The crash. The next try reads further, to beyond the delete.
        writer.write(changes(target.schema, inserts=[(2, "other", None, 2)]), Lsn(100), 2, 0)
        assert (1, "short-lived", None, 1) in target.contents()
        writer.write(changes(target.schema, inserts=[(2, "other", None, 2)], deletes=[(1,)]), Lsn(100), 3, 0)
    assert target.contents() == target.expected([(2, "other", None, 2)])
