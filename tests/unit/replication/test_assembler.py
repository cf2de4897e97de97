"""Where segments and batches end, message by message."""

from __future__ import annotations

from collections.abc import Sequence
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
from etl_core.protocol.timestamp import EPOCH
from etl_core.replication.assembler import Assembler
from etl_core.replication.spool import SpooledSegment
from etl_core.schema import pg_types
from etl_core.schema.table import Column, PgType, ReplicaIdentity, TableSchema
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
    return Begin(Lsn(number * 0x100), 0, number)


def commit(number: int) -> Commit:
    return Commit(Lsn(number * 0x100), Lsn(number * 0x100 + 0x30), number)


def truncate(*tables: TableId) -> Truncate:
    return Truncate(None, False, False, tables)


def row(table_id: TableId, number: int = 1) -> bytes:
    return build_frame(Insert(None, table_id, build_tuple(str(number))))


def assembler(memory_limit: int = 1 << 30) -> Assembler:
    return Assembler(describe, memory_limit=memory_limit, start_lsn=START)


def feed(to: Assembler, items: Sequence[Message | bytes]) -> Assembler:
    for item in items:
        if isinstance(item, bytes):
            to.segment.offsets.append(to.segment.size)
            to.segment.data += item
            to.segment.size += len(item)
        else:
            to.on_message(item)
    return to


RA, RB = relation(A, "id"), relation(B, "id")
RA2 = relation(A, "id", "added")


# Per piece: rows, tables truncated at its beginning, its transactions as (first row, number).
@pytest.mark.parametrize(
    ("items", "pieces"),
    [
        pytest.param([begin(2), commit(2), begin(3), commit(3)], [], id="empty transactions"),
        pytest.param([begin(2), RA, row(A), row(A), commit(2)], [(2, set(), [(0, 2)])], id="one transaction"),
        pytest.param(
            [begin(2), RA, row(A), commit(2), begin(3), RB, row(B), row(A), commit(3)],
            [(3, set(), [(0, 2), (1, 3)])],
            id="two transactions of two tables share a segment",
        ),
        pytest.param(
            [begin(2), commit(2), begin(3), RA, row(A), commit(3), begin(4), commit(4), begin(5), row(A), commit(5)],
            [(2, set(), [(0, 3), (1, 4), (1, 5)])],
            id="empty transactions before the first row leave nothing behind",
        ),
        pytest.param(
            [begin(2), RA, row(A), RA2, row(A), commit(2)],
            [(1, set(), [(0, 2)]), (1, set(), [(0, 2)])],
            id="a changed relation in a transaction begins a segment",
        ),
        pytest.param([begin(2), RA, row(A), RA, row(A), commit(2)], [(2, set(), [(0, 2)])], id="a repeated relation"),
        pytest.param(
            [begin(2), RA, RA2, row(A), commit(2)], [(1, set(), [(0, 2)])], id="a relation changed before rows"
        ),
        pytest.param(
            [begin(2), RA, row(A), RB, row(B), commit(2)], [(2, set(), [(0, 2)])], id="a new relation changes no other"
        ),
        pytest.param(
            [begin(2), RA, truncate(A), row(A), row(A), commit(2)], [(2, {A}, [(0, 2)])], id="truncate at the start"
        ),
        pytest.param(
            [begin(2), RA, row(A), truncate(A), row(A), commit(2)],
            [(1, set(), [(0, 2)]), (1, {A}, [(0, 2)])],
            id="truncate in the middle",
        ),
        pytest.param(
            [begin(2), RA, row(A), truncate(A), commit(2), begin(3), row(A), commit(3)],
            [(1, set(), [(0, 2)]), (1, {A}, [(0, 2), (0, 3)])],
            id="truncate at the end",
        ),
        pytest.param(
            [begin(2), RA, RB, truncate(A, B), commit(2)], [(0, {A, B}, [(0, 2)])], id="truncate of two tables, alone"
        ),
        pytest.param(
            [begin(2), commit(2), begin(3), RA, truncate(A), commit(3), begin(4), RB, truncate(B), commit(4)],
            [(0, {A}, [(0, 3), (0, 4)]), (0, {B}, [(0, 4)])],
            id="each truncation begins with its own transaction",
        ),
        pytest.param(
            [begin(2), RA, truncate(A), truncate(A), commit(2)],
            [(0, {A}, [(0, 2)]), (0, {A}, [(0, 2)])],
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
            [(1, set(), [(0, 2)])],
            id="messages that say nothing about rows",
        ),
    ],
)
def test_pieces(items: list[Message | bytes], pieces: list[tuple[int, set[TableId], list[tuple[int, int]]]]) -> None:
    subject = feed(assembler(), items)
    assert subject.has_changes == bool(pieces)
    batch = subject.take()
    found = [
        (piece.load().rows, set(piece.load().truncated), [(at, lsn >> 8) for at, lsn in piece.load().transactions])
        for piece in batch.pieces
    ]
    assert found == pieces
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
    assert [piece.load().transactions for piece in second.pieces] == [[(0, 0x300)]]
    assert second.pieces[0].schemas[A] == describe(RA)


def test_no_batch_ends_inside_a_transaction() -> None:
    subject = feed(assembler(), [begin(2), RA, row(A)])
    assert subject.in_transaction
    with pytest.raises(RuntimeError, match="transaction boundary"):
        subject.take()
    assert feed(subject, [commit(2)]).take().rows == 1


def test_a_segment_closed_in_a_transaction_goes_on_in_the_next() -> None:
    subject = feed(assembler(), [begin(2), RA, row(A)])
    subject.finish_segment()
    assert subject.rows == 1
    batch = feed(subject, [row(A), commit(2), begin(3), row(A), commit(3)]).take()
    assert [piece.load().transactions for piece in batch.pieces] == [[(0, 0x200)], [(0, 0x200), (1, 0x300)]]


@pytest.mark.parametrize(
    ("items", "match"),
    [
        ([begin(2), RA, row(A), commit(3)], "does not match its begin"),
        ([commit(2)], "does not match its begin"),
        ([begin(2), begin(3)], "inside another"),
        ([RA, truncate(A)], "outside of a transaction"),
        ([begin(2), Commit(Lsn(0x200), Lsn(0x230), 1 << 62)], "years 1 to 9999"),
        ([begin(2), StreamStart(2, True)], "StreamStart does not belong"),
        ([begin(2), RA, Insert(None, A, build_tuple("1"))], "Insert does not belong"),
    ],
)
def test_what_a_server_never_sends(items: list[Message | bytes], match: str) -> None:
    with pytest.raises(MalformedMessage, match=match):
        feed(assembler(), items)


def test_beyond_the_memory_limit_segments_wait_on_disk_and_read_back_the_same() -> None:
    frames = [row(A, number) for number in range(1, 7)]
    plain, spooling = assembler(), assembler(memory_limit=2 * len(frames[0]))
    for subject in (plain, spooling):
        feed(subject, [begin(2), RA])
        for frame in frames:
            feed(subject, [frame])
            subject.finish_segment()
        assert subject.size == sum(map(len, frames))
        feed(subject, [commit(2)])
    expected, batch = plain.take(), spooling.take()
    assert (expected.is_spooled, batch.is_spooled) == (False, True)
    assert (batch.rows, batch.tables) == (expected.rows, expected.tables)
    with closing(batch):
        for piece, other in zip(batch.pieces, expected.pieces, strict=True):
            loaded = piece.load()
            assert bytes(loaded.data[: loaded.size]) == bytes(other.load().data[: other.load().size])
            assert (loaded.offsets, loaded.transactions) == (other.load().offsets, other.load().transactions)
    for piece in batch.pieces:
        if isinstance(piece.segment, SpooledSegment):
            with pytest.raises(ValueError, match="closed file"):
                piece.load()


def test_discard_forgets_all_that_was_not_taken() -> None:
    subject = feed(assembler(memory_limit=0), [begin(2), RA, row(A), commit(2)])
    subject.take().close()
    feed(subject, [begin(3), row(A), commit(3), begin(4), row(A)])
    subject.finish_segment()
    subject.discard()
    assert (subject.in_transaction, subject.has_changes, subject.rows, subject.size) == (False, False, 0, 0)
    assert subject.end_lsn == 0x230, "the transactions that were forgotten are to be read again"
    again = feed(subject, [begin(3), RA, row(A), commit(3)]).take()
    assert (again.rows, again.end_lsn) == (1, 0x330)
    again.close()


# A stream that ends


@pytest.mark.parametrize("memory_limit", [1 << 30, 0], ids=["in memory", "spooled"])
@pytest.mark.parametrize(
    ("items", "rows", "end"),
    [
        ([], None, START),
        ([begin(2), RA, row(A)], None, START),
        ([begin(2), RA, row(A), commit(2)], 1, Lsn(0x230)),
        ([begin(2), RA, row(A), commit(2), begin(3)], 1, Lsn(0x230)),
        ([begin(2), RA, row(A), commit(2), begin(3), row(A), row(A)], 1, Lsn(0x230)),
        # The open transaction changes a schema, so that it begins a segment of its own within itself …
        ([begin(2), RA, row(A), commit(2), begin(3), row(A), RA2, row(A)], 1, Lsn(0x230)),
        ([begin(2), RA, row(A), commit(2), begin(3), RA2, row(A), truncate(A), row(A)], 1, Lsn(0x230)),
        # … or truncates first.
        ([begin(2), RA, row(A), commit(2), begin(3), truncate(A), row(A)], 1, Lsn(0x230)),
        ([begin(2), RA, truncate(A), commit(2), begin(3), row(A), truncate(A)], 0, Lsn(0x230)),
    ],
)
def test_what_was_received_whole_is_kept(
    items: Sequence[Message | bytes], rows: int | None, end: Lsn, memory_limit: int
) -> None:
    ended = feed(assembler(memory_limit), items)
    batch = ended.take_received()
    assert ended.end_lsn == end
    assert (None if batch is None else batch.rows) == rows
    if batch is not None:
        with closing(batch):
            assert batch.end_lsn == end
            for piece in batch.pieces:
                segment = piece.load()
                assert segment.seal().bounds[-1] == segment.size
                assert len(segment.offsets) == segment.rows
                # Described as it was then, not as the transaction that is forgotten said.
                assert piece.schemas[A].column_names == ("id",)
    ended.discard()
    assert not ended.in_transaction
