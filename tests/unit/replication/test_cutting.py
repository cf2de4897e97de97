"""However a stream is cut into reads, batches and segments: the same changes as read one message at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from etl_core.identifiers import TableId, TableName
from etl_core.lsn import ZERO, Lsn
from etl_core.protocol.messages import (
    Begin,
    Commit,
    Delete,
    Insert,
    LogicalDecodingMessage,
    Message,
    Origin,
    Relation,
    RelationColumn,
    Truncate,
    Type,
    Update,
)
from etl_core.protocol.pgoutput import parse_message
from etl_core.protocol.segment import row_numbers, tags_of
from etl_core.protocol.walsender import XLOG_DATA_HEADER_LENGTH
from etl_core.replication.assembler import Assembled, Assembler, Piece
from etl_core.schema import pg_types
from etl_core.schema.table import Column, PgType, ReplicaIdentity, TableSchema
from etl_core.testing.pgoutput import build_tuple
from etl_core.testing.source_model import build_frame

TABLES = [TableId(16384), TableId(16385), TableId(16386)]
_INSIDE = ["insert", "insert", "insert", "update", "delete", "alter", "repeat", "truncate", "other"]

# Transactions of steps: what happens, and to which table.
STEPS = st.tuples(st.sampled_from(_INSIDE), st.integers(0, len(TABLES) - 1))
TRANSACTIONS = st.lists(st.lists(STEPS, max_size=8), min_size=1, max_size=8)

# A change of a table: its transaction, its message (None for a truncation), its columns then.
Change = tuple[int, Message | None, tuple[str, ...]]
Changes = dict[TableId, list[Change]]


@dataclass(frozen=True)
class Sent:
    """What a server sends: per transaction its items, and how it is to be understood."""

    items: list[list[Message | bytes]]
    changes: list[Changes]
    ends: list[Lsn]


def describe(relation: Relation, _: Lsn) -> TableSchema:
    columns = tuple(Column(column.name, PgType(column.type_oid, "int4")) for column in relation.columns)
    return TableSchema(relation.table_id, TableName(relation.namespace, relation.name), columns, ("c0",))


def send(transactions: list[list[tuple[str, int]]]) -> Sent:
    """One message after the other, each understood by what was said before it."""
    widths = dict.fromkeys(TABLES, 0)
    sent, value = Sent([], [], []), 0
    for number, steps in enumerate(transactions, start=1):
        final = Lsn(number * 0x100)
        items: list[Message | bytes] = [Begin(final, number, number)]
        changes: Changes = {}
        for what, which in steps:
            table = TABLES[which]
            if what == "other":
                items += [Origin(Lsn(1), "o"), LogicalDecodingMessage(None, True, Lsn(1), "p", b""), _A_TYPE]
                continue
            if what == "alter" or not widths[table]:
                widths[table] += 1
            if what in ("alter", "repeat") or widths[table] == 1:
                items.append(_relation(table, widths[table]))
            names = tuple(f"c{column}" for column in range(widths[table]))
            value += 1
            row = build_tuple(*[str(value)] * widths[table])
            message: Message | None = None
            match what:
                case "insert":
                    message = Insert(None, table, row)
                case "update":
                    message = Update(None, table, row, None, row)
                case "delete":
                    message = Delete(None, table, row, None)
                case "truncate":
                    items.append(Truncate(None, False, False, (table,)))
                case _:
                    continue
            if message is not None:
                items.append(build_frame(message))
            # A truncation has no columns.
            changes.setdefault(table, []).append((final, message, () if message is None else names))
        sent.ends.append(Lsn(final + 0x30))
        items.append(Commit(final, sent.ends[-1], number))
        sent.items.append(items)
        sent.changes.append(changes)
    return sent


_A_TYPE = Type(None, 20000, "public", "mood")


def _relation(table: TableId, width: int) -> Relation:
    columns = tuple(RelationColumn(number == 0, f"c{number}", pg_types.INT4, -1) for number in range(width))
    return Relation(None, table, "public", f"t{table}", ReplicaIdentity.DEFAULT, columns)


def understand(piece: Piece, into: Changes) -> None:
    frames = piece.load()
    first, lsn = frames.transactions()
    names = {table: schema.column_names for table, schema in piece.schemas.items()}
    for table in frames.truncated:
        into.setdefault(table, []).append((int(lsn[0]), None, ()))
    numbers = row_numbers(tags_of(frames.heads))
    assert piece.rows == numbers.size
    for number in numbers:
        at, end = frames.bounds[number], frames.bounds[number + 1]
        message = parse_message(frames.data[at + XLOG_DATA_HEADER_LENGTH : end].tobytes())
        assert isinstance(message, Insert | Update | Delete)
        assert message.table_id in piece.tables
        commit = int(lsn[(first <= number).sum() - 1])
        into.setdefault(message.table_id, []).append((commit, message, names[message.table_id]))


def joined(changes: list[Changes]) -> Changes:
    result: Changes = {}
    for one in changes:
        for table, its in one.items():
            result.setdefault(table, []).extend(its)
    return result


class Reading:
    """Reads `sent` with limits that rise, and takes a batch now and then."""

    def __init__(self, sent: Sent, assembler: Assembler, data: st.DataObject) -> None:
        self.sent = sent
        self.assembler = assembler
        self.draw = data.draw
        self.limits = iter(sorted(self.draw(st.lists(st.integers(0, 0x100 * (len(sent.ends) + 1)), max_size=4))))
        self.limit = self.next_limit()
        self.found: Changes = {}
        self.taken = ZERO

    def next_limit(self) -> Lsn | None:
        limit = next(self.limits, None)
        return None if limit is None else Lsn(limit)

    def run(self) -> None:
        for item in self._items():
            if isinstance(item, bytes | Begin | Commit):
                self.assembler.segment.append(item if isinstance(item, bytes) else build_frame(item))
                if self.draw(st.booleans()):
                    self.scan()
            else:
                self.scan()
                self.assembler.on_message(item)
            if self.draw(st.integers(0, 4)) == 0:
                self.take()
        self.scan()
        self.take()

    def _items(self) -> Iterator[Message | bytes]:
        for items in self.sent.items:
            yield from items

    def scan(self) -> None:
        while self.assembler.scan(self.limit):
            assert self.limit is not None
            # All whose commit record is before the limit is at hand, and nothing else.
            self.take()
            ends = [end for end in self.sent.ends if end - 0x30 < self.limit]
            assert self.taken == (ends[-1] if ends else ZERO)
            self.limit = self.next_limit()

    def take(self) -> None:
        batch: Assembled = self.assembler.take()
        with closing(batch):
            assert batch.end_lsn >= self.taken
            assert batch.end_lsn in (*self.sent.ends, ZERO)
            self.taken = batch.end_lsn
            for piece in batch.pieces:
                understand(piece, self.found)
        whole = self.sent.changes[: sum(end <= self.taken for end in self.sent.ends)]
        assert self.found == joined(whole)


@given(transactions=TRANSACTIONS, data=st.data())
@settings(max_examples=300)
def test_the_same_changes_however_it_is_cut(transactions: list[list[tuple[str, int]]], data: st.DataObject) -> None:
    sent = send(transactions)
    assembler = Assembler(
        describe,
        memory_limit=data.draw(st.sampled_from([0, 200, 1 << 30])),
        segment_bytes=data.draw(st.sampled_from([1, 300, 1 << 30])),
        start_lsn=ZERO,
    )
    try:
        reading = Reading(sent, assembler, data)
        reading.run()
        assert reading.taken == sent.ends[-1]
        assert not assembler.in_transaction
        assert (assembler.rows, assembler.size, assembler.has_changes) == (0, 0, False)
    finally:
        assembler.discard()
