"""Where segments and batches end, message by message."""

from __future__ import annotations

import collections
from contextlib import closing

import pytest

from etl_core.errors import MalformedMessage
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import ZERO, Lsn
from etl_core.protocol.messages import (
    Begin,
    Commit,
    Insert,
    LogicalDecodingMessage,
    Message,
    Origin,
    Relation,
    RelationColumn,
    StreamStart,
    Truncate,
    Type,
)
from etl_core.protocol.segment import PADDING, SEGMENT_BYTES, row_numbers, tags_of
from etl_core.protocol.timestamp import EPOCH, to_datetime
from etl_core.replication.assembler import Assembler, Piece
from etl_core.replication.spool import SpooledFrames
from etl_core.schema import pg_types
from etl_core.schema.table import Column, PgType, ReplicaIdentity, TableSchema
from etl_core.testing.feeding import feed
from etl_core.testing.pgoutput import build_tuple
from etl_core.testing.source_model import build_frame

A, B = TableId(16384), TableId(16385)
START = Lsn(0x100)


def describe(relation: Relation, _: Lsn = ZERO) -> TableSchema:
    columns = tuple(Column(column.name, PgType(column.type_oid, "int4")) for column in relation.columns)
    return TableSchema(relation.table_id, TableName(relation.namespace, relation.name), columns, ("id",))


def relation(table_id: TableId, *names: str) -> Relation:
    columns = tuple(RelationColumn(name == "id", name, pg_types.INT4, -1) for name in names)
    return Relation(None, table_id, "public", f"t{table_id}", ReplicaIdentity.DEFAULT, columns)


def begin(number: int) -> Begin:
    return Begin(Lsn(number * 0x100), number, number)


def commit(number: int) -> Commit:
    return Commit(Lsn(number * 0x100), Lsn(number * 0x100 + 0x30), number)


def truncate(*tables: TableId) -> Truncate:
    return Truncate(None, False, False, tables)


def row(table_id: TableId, number: int = 1) -> bytes:
    return build_frame(Insert(None, table_id, build_tuple(str(number))))


def assembler(memory_limit: int = 1 << 30, segment_bytes: int = SEGMENT_BYTES) -> Assembler:
    return Assembler(describe, memory_limit=memory_limit, start_lsn=START, segment_bytes=segment_bytes)


def shape(piece: Piece) -> tuple[int, set[TableId], list[int]]:
    """Rows, tables truncated at its beginning, its transactions by number."""
    frames = piece.load()
    assert piece.rows == row_numbers(tags_of(frames.heads)).size
    assert frames.bounds[-1] + len(PADDING) == frames.data.size
    return piece.rows, set(frames.truncated), [int(lsn) >> 8 for lsn in frames.transactions()[1]]


RA, RB = relation(A, "id"), relation(B, "id")
RA2 = relation(A, "id", "added")


# Per piece: rows, tables truncated at its beginning, its transactions by number.
@pytest.mark.parametrize(
    ("items", "pieces"),
    [
        pytest.param([begin(2), commit(2), begin(3), commit(3)], [], id="empty transactions"),
        pytest.param([begin(2), RA, row(A), row(A), commit(2)], [(2, set(), [2])], id="one transaction"),
        pytest.param(
            [begin(2), RA, row(A), commit(2), begin(3), RB, row(B), row(A), commit(3)],
            [(3, set(), [2, 3])],
            id="two transactions of two tables share a segment",
        ),
        pytest.param(
            [begin(2), commit(2), begin(3), RA, row(A), commit(3), begin(4), commit(4), begin(5), row(A), commit(5)],
            [(2, set(), [3, 4, 5])],
            id="empty transactions before the first row leave nothing behind",
        ),
        pytest.param(
            [begin(2), RA, row(A), RA2, row(A), commit(2)],
            [(1, set(), [2]), (1, set(), [2])],
            id="a changed relation in a transaction begins a segment",
        ),
        pytest.param([begin(2), RA, row(A), RA, row(A), commit(2)], [(2, set(), [2])], id="a repeated relation"),
        pytest.param([begin(2), RA, RA2, row(A), commit(2)], [(1, set(), [2])], id="a relation changed before rows"),
        pytest.param(
            [begin(2), RA, row(A), RB, row(B), commit(2)], [(2, set(), [2])], id="a new relation changes no other"
        ),
        pytest.param(
            [begin(2), RA, truncate(A), row(A), row(A), commit(2)], [(2, {A}, [2])], id="truncate at the start"
        ),
        pytest.param(
            [begin(2), RA, row(A), truncate(A), row(A), commit(2)],
            [(1, set(), [2]), (1, {A}, [2])],
            id="truncate in the middle",
        ),
        pytest.param(
            [begin(2), RA, row(A), truncate(A), commit(2), begin(3), row(A), commit(3)],
            [(1, set(), [2]), (1, {A}, [2, 3])],
            id="truncate at the end",
        ),
        pytest.param(
            [begin(2), RA, RB, truncate(A, B), commit(2)], [(0, {A, B}, [2])], id="truncate of two tables, alone"
        ),
        pytest.param(
            [begin(2), commit(2), begin(3), RA, truncate(A), commit(3), begin(4), RB, truncate(B), commit(4)],
            [(0, {A}, [3]), (0, {B}, [4])],
            id="each truncation begins with its own transaction",
        ),
        pytest.param(
            [begin(2), RA, truncate(A), truncate(A), commit(2)],
            [(0, {A}, [2]), (0, {A}, [2])],
            id="truncated twice is counted twice",
        ),
        pytest.param(
            [
                begin(2),
                Origin(Lsn(1), "elsewhere"),
                Type(None, 20000, "public", "mood"),
                LogicalDecodingMessage(None, True, Lsn(1), "p", b""),
                RA,
                row(A),
                commit(2),
            ],
            [(1, set(), [2])],
            id="messages that say nothing about rows",
        ),
    ],
)
def test_pieces(items: list[Message | bytes], pieces: list[tuple[int, set[TableId], list[int]]]) -> None:
    subject = feed(assembler(), items)
    assert subject.has_changes == bool(pieces)
    batch = subject.take()
    assert [shape(piece) for piece in batch.pieces] == pieces
    last = items[-1]
    assert isinstance(last, Commit)
    assert batch.end_lsn == last.end_lsn
    assert batch.rows == sum(isinstance(item, bytes) for item in items)


def test_each_piece_has_the_schemas_its_rows_were_sent_under() -> None:
    batch = feed(assembler(), [begin(2), RA, RB, row(A), row(B), RA2, row(A), commit(2)]).take()
    assert [piece.schemas[A].column_names for piece in batch.pieces] == [("id",), ("id", "added")]
    assert [piece.schemas[B].column_names for piece in batch.pieces] == [("id",), ("id",)]
    assert [piece.tables for piece in batch.pieces] == [{A, B}, {A}]
    assert batch.tables == {A, B}


def test_a_batch_says_when_it_was_committed_and_the_next_begins_anew() -> None:
    subject = feed(assembler(), [begin(2), RA, row(A), commit(2)])
    first = subject.take()
    assert first.commit_time is not None
    assert (first.commit_time - EPOCH).microseconds == 2
    assert (subject.rows, subject.size, subject.has_changes) == (0, 0, False)
    second = feed(subject, [begin(3), row(A), commit(3)]).take()
    assert second.end_lsn == 0x330
    assert [shape(piece) for piece in second.pieces] == [(1, set(), [3])]
    assert second.pieces[0].schemas[A] == describe(RA)


def test_the_first_change_that_waits_is_that_of_the_first_row_at_hand() -> None:
    subject = feed(assembler(), [begin(2), commit(2), begin(3), RA, row(A), commit(3), begin(4), row(A)])
    assert subject.waiting_since == to_datetime(3)
    assert subject.take().since == to_datetime(3)
    assert subject.waiting_since == to_datetime(4), "the open transaction waits, too"
    assert feed(subject, [commit(4)]).take().since == to_datetime(4)
    assert subject.waiting_since is None


def test_a_batch_leaves_the_open_transaction() -> None:
    subject = feed(assembler(), [begin(2), RA, row(A), commit(2), begin(3), row(A, 2)])
    assert (subject.rows, subject.end_lsn, subject.in_transaction) == (1, 0x230, True)
    assert [shape(piece) for piece in subject.take().pieces] == [(1, set(), [2])]
    assert (subject.rows, subject.size, subject.has_changes, subject.in_transaction) == (0, 0, False, True)
    assert subject.take().pieces == ()
    batch = feed(subject, [row(A, 3), commit(3)]).take()
    assert [shape(piece) for piece in batch.pieces] == [(2, set(), [3])]
    assert batch.end_lsn == 0x330


def test_a_segment_closed_in_a_transaction_goes_on_in_the_next() -> None:
    subject = assembler(segment_bytes=1)
    reads: list[list[Message | bytes]] = [
        [begin(2), RA, row(A)],
        [row(A), commit(2), begin(3), row(A), commit(3)],
        [begin(4), row(A)],
    ]
    for items in reads:
        feed(subject, items)
    # What a transaction has in a piece of its own, and the rest of it with what came after.
    assert [shape(piece) for piece in subject.take().pieces] == [(1, set(), [2]), (2, set(), [2, 3])]
    assert [shape(piece) for piece in feed(subject, [commit(4)]).take().pieces] == [(1, set(), [4])]


def test_a_transaction_larger_than_a_segment_goes_on_in_quarters_of_one() -> None:
    size = len(row(A))
    subject = feed(assembler(segment_bytes=8 * size), [begin(2), RA])
    for _ in range(16):
        feed(subject, [row(A)])
    batch = feed(subject, [commit(2), begin(3), row(A), row(A), row(A), commit(3)]).take()
    # The first has the frame of the Begin too. Where the large transaction is over, segments are whole again.
    assert [piece.rows for piece in batch.pieces] == [7, 2, 2, 2, 2, 4]
    assert shape(batch.pieces[-1])[2] == [2, 3]


def test_a_relation_described_in_the_open_transaction_is_remembered_until_it_ends() -> None:
    subject = feed(assembler(), [begin(2), row(A)])
    assert not subject.has_described
    assert feed(subject, [RA, row(A)]).has_described
    assert not feed(subject, [commit(2)]).has_described


@pytest.mark.parametrize(
    ("items", "match"),
    [
        ([begin(2), RA, row(A), commit(3)], "does not match its begin"),
        ([commit(2)], "does not match its begin"),
        ([begin(2), commit(2), commit(2)], "does not match its begin"),
        ([begin(2), begin(3)], "inside another"),
        ([begin(2), RA, row(A), begin(3)], "inside another"),
        ([begin(2), RA, begin(3)], "inside another"),
        ([row(A)], "a change outside of a transaction"),
        ([begin(2), commit(2), row(A)], "a change outside of a transaction"),
        ([begin(2), commit(2), row(A), begin(3)], "a change outside of a transaction"),
        ([begin(3), commit(3), begin(2), commit(2)], "before the one that was sent before it"),
        ([begin(3), commit(3), begin(3), commit(3)], "before the one that was sent before it"),
        ([Begin(Lsn(0x20), 0, 2)], "before the one that was sent before it"),
        ([begin(2), Commit(Lsn(0x200), Lsn(0x200), 0)], "ends before its commit record"),
        ([begin(2), Commit(Lsn(0x200), Lsn(0), 0)], "ends before its commit record"),
        ([Begin(Lsn(0), 0, 2)], "final LSN is 0/0"),
        ([RA, truncate(A)], "outside of a transaction"),
        ([begin(2), Commit(Lsn(0x200), Lsn(0x230), 1 << 62)], "years 1 to 9999"),
        ([begin(2), StreamStart(2, True)], "StreamStart does not belong"),
        ([begin(2), RA, Insert(None, A, build_tuple("1"))], "Insert does not belong"),
        ([begin(2), build_frame(commit(2))[:-1]], "wrong length"),
        ([build_frame(begin(2)) + b"\0"], "wrong length"),
        ([begin(2), build_frame(commit(2))[:26] + b"\1" + build_frame(commit(2))[27:]], "unknown flags"),
        ([begin(2), b"k" + row(A)[1:]], "not in a message of WAL data"),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_what_a_server_never_sends(items: list[Message | bytes], match: str, at_once: bool) -> None:
    subject = assembler()
    parts = [items] if at_once else [[item] for item in items]
    with pytest.raises(MalformedMessage, match=match):
        collections.deque((feed(subject, part) for part in parts), maxlen=0)


def test_beyond_the_memory_limit_segments_wait_on_disk_and_read_back_the_same() -> None:
    frames = [row(A, number) for number in range(1, 7)]
    plain, spooling = assembler(segment_bytes=1), assembler(2 * len(frames[0]), segment_bytes=1)
    for subject in (plain, spooling):
        feed(subject, [begin(2), RA])
        for frame in frames:
            feed(subject, [frame])
        feed(subject, [commit(2)])
    expected, batch = plain.take(), spooling.take()
    assert (expected.is_spooled, batch.is_spooled) == (False, True)
    assert (batch.rows, batch.tables) == (expected.rows, expected.tables)
    assert batch.rows == 6
    with closing(batch):
        for piece, other in zip(batch.pieces, expected.pieces, strict=True):
            one, two = piece.load(), other.load()
            assert one.data[: one.size].tobytes() == two.data[: two.size].tobytes()
            assert (one.bounds.tolist(), one.open_lsn) == (two.bounds.tolist(), two.open_lsn)
    for piece in batch.pieces:
        if isinstance(piece.frames, SpooledFrames):
            with pytest.raises(ValueError, match="closed file"):
                piece.load()


@pytest.mark.parametrize("memory_limit", [1 << 30, 0], ids=["in memory", "spooled"])
@pytest.mark.parametrize(
    "items",
    [
        [begin(3)],
        [begin(3), row(A), row(A)],
        # The open transaction changes a schema, so that it begins a segment of its own within itself …
        [begin(3), row(A), RA2, row(A)],
        [begin(3), RA2, row(A), truncate(A), row(A)],
        # … or truncates first.
        [begin(3), truncate(A), row(A)],
        [begin(3), row(A), commit(3), begin(4), row(A), truncate(A)],
    ],
)
def test_what_was_received_whole_is_kept_all_else_forgotten(items: list[Message | bytes], memory_limit: int) -> None:
    subject = feed(assembler(memory_limit, segment_bytes=1), [begin(2), RA, row(A), commit(2), *items])
    batch = subject.take()
    assert (batch.rows, batch.end_lsn) == ((2, 0x330) if commit(3) in items else (1, 0x230))
    with closing(batch):
        # Described as it was then, not as the transaction that is forgotten said.
        assert {piece.schemas[A].column_names for piece in batch.pieces} == {("id",)}
    subject.discard()
    assert (subject.in_transaction, subject.has_changes, subject.rows, subject.size) == (False, False, 0, 0)
    assert subject.end_lsn == batch.end_lsn, "the transactions that were forgotten are to be read again"
    again = feed(subject, [begin(5), RA, row(A), commit(5)]).take()
    assert (again.rows, again.end_lsn) == (1, 0x530)
    again.close()


@pytest.mark.parametrize(
    ("limit", "numbers"),
    [
        pytest.param(0x100, [], id="before all"),
        pytest.param(0x200, [], id="at the commit record of the first"),
        pytest.param(0x230, [2], id="at the end of the first"),
        pytest.param(0x300, [2], id="at the commit record of the second"),
        pytest.param(0x330, [2, 3], id="at its end, where the third is open"),
        pytest.param(0x400, [2, 3], id="at the commit record of the third"),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_what_is_beyond_the_limit_is_put_aside(limit: int, numbers: list[int], at_once: bool) -> None:
    items: list[Message | bytes] = [begin(2), row(A), commit(2), begin(3), row(A), row(A), commit(3), begin(4), row(A)]
    subject = assembler()
    subject.on_message(RA)
    for part in [items] if at_once else [[item] for item in items]:
        feed(subject, part, Lsn(limit))
    assert subject.scan(Lsn(limit)), "it says so again and again"
    batch = subject.take()
    assert [number for piece in batch.pieces for number in shape(piece)[2]] == numbers
    # The limit moves, and what was put aside is there.
    assert not feed(subject, [commit(4)]).scan()
    rest = subject.take()
    assert [number for piece in rest.pieces for number in shape(piece)[2]] == [2, 3, 4][len(numbers) :]
    assert (batch.rows + rest.rows, rest.end_lsn) == (4, 0x430)
