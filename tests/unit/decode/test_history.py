"""Random histories of several tables, cut at random: after every batch the destination is the source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from etl_core.batch import ChangeCounts
from etl_core.decode.decoder import decode_frames
from etl_core.identifiers import TableId
from etl_core.lsn import ZERO, Lsn
from etl_core.protocol.messages import Commit, Delete, Insert, Message, Relation, Truncate, Update
from etl_core.replication.assembler import Assembler
from etl_core.schema.table import ReplicaIdentity, TableSchema
from etl_core.testing.destination_model import DestinationModel
from etl_core.testing.feeding import feed
from etl_core.testing.source_model import SourceModel, SourceTable, TableContent

# Few keys, so that they meet; texts that look alike when they are put together.
KEY_TEXTS = ("a", "ab", "", "a,b", "é")
OTHER_TYPES = ("int4", "text", "bool", "numeric")


@dataclass(frozen=True)
class TableShape:
    """Columns in order: whether each is part of the key, its type, whether its values are TOASTed."""

    columns: tuple[tuple[bool, str, bool], ...]
    identity: ReplicaIdentity


@dataclass(frozen=True)
class Op:
    """One thing a session does. The numbers are taken modulo what there is to choose from."""

    kind: str
    table: int = 0
    row: int = 0
    key: int = 0
    named: int = 0
    """Bits: which of the columns an update names."""


@dataclass
class Plan:
    """A history and where it is cut."""

    shapes: list[TableShape]
    transactions: list[list[Op]]
    copied_at: list[int]
    """Per table: the transaction whose content the initial copy had; -1 for one that is not replicated."""
    batches: list[int] = field(default_factory=list)
    """Transactions per batch."""
    restarts: list[int] = field(default_factory=list)
    """Per batch: how many transactions are read again after it, by a new stream."""
    segments: list[int] = field(default_factory=list)
    """Frames per segment."""
    memory_limit: int = 1 << 30


def shapes() -> st.SearchStrategy[TableShape]:
    key = st.tuples(st.just(True), st.sampled_from(["int8", "text"]), st.booleans())
    other = st.tuples(st.just(False), st.sampled_from(OTHER_TYPES), st.booleans())
    toasted = st.tuples(st.just(False), st.just("text"), st.just(True))
    keys = st.one_of(st.lists(key, min_size=1, max_size=2), st.lists(key, max_size=2))
    columns = st.tuples(keys, st.lists(st.one_of(toasted, other), min_size=1, max_size=6)).flatmap(
        lambda parts: st.permutations(parts[0] + parts[1])
    )
    identity = st.sampled_from([ReplicaIdentity.DEFAULT, ReplicaIdentity.FULL, ReplicaIdentity.INDEX])
    return st.builds(TableShape, columns.map(tuple), identity)


def ops() -> st.SearchStrategy[Op]:
    kind = st.sampled_from(
        ["insert", "insert", "update", "update", "move", "delete", "replace", "swap", "truncate", "add_column"]
    )
    named = st.one_of(st.sampled_from([0, 1, 2, 4, 8]), st.integers(0, 63))
    return st.builds(Op, kind, st.sampled_from([0, 0, 1, 2]), st.integers(0, 3), st.integers(0, 7), named)


def short_plans() -> st.SearchStrategy[Plan]:
    """Rows, then batches so short that hardly a row is changed twice in one; values of a column are seldom named."""
    key = st.just((True, "int8", False))
    toasted, plain = st.just((False, "text", True)), st.just((False, "int4", False))
    shape = st.builds(TableShape, st.tuples(key, toasted, plain), st.just(ReplicaIdentity.DEFAULT))
    insert = st.builds(Op, st.just("insert"), key=st.integers(0, 9))
    kind = st.sampled_from(["update", "update", "move", "move", "insert", "delete"])
    change = st.builds(Op, kind, row=st.integers(0, 7), key=st.integers(0, 9), named=st.sampled_from([0, 0, 1, 2]))
    transactions = st.lists(st.lists(change, min_size=2, max_size=4), min_size=1, max_size=4)
    return st.builds(
        Plan,
        st.tuples(shape).map(list),
        st.tuples(st.lists(insert, min_size=3, max_size=8), transactions).map(lambda parts: [parts[0], *parts[1]]),
        st.just([0, 0, 0]),
        batches=st.just([1]),
    )


def plans() -> st.SearchStrategy[Plan]:
    numbers: st.SearchStrategy[list[int]] = st.one_of(st.just([]), st.lists(st.integers(1, 6), max_size=6))
    return st.builds(
        Plan,
        st.lists(shapes(), min_size=1, max_size=3),
        st.lists(st.lists(ops(), max_size=16), min_size=1, max_size=6),
        st.lists(st.sampled_from([0, 0, 1, 2, 4, -1]), min_size=3, max_size=3),
        batches=numbers,
        restarts=st.lists(st.integers(0, 3), max_size=4),
        segments=numbers,
        memory_limit=st.sampled_from([1 << 30, 0, 200]),
    )


class Session:
    """Turns a plan's operations into changes of a source; those that make no sense at the time are passed over."""

    def __init__(self, plan: Plan) -> None:
        self.source = SourceModel()
        self.number = 0
        for number, shape in enumerate(plan.shapes):
            names = [f"{'Key' if is_key else 'c'}{at}" for at, (is_key, _, _) in enumerate(shape.columns)]
            self.source.create(
                f"Table {number}",
                {name: type_name for name, (_, type_name, _) in zip(names, shape.columns, strict=True)},
                key=[name for name, (is_key, _, _) in zip(names, shape.columns, strict=True) if is_key],
                toasted=[
                    name
                    for name, (_, type_name, toasted) in zip(names, shape.columns, strict=True)
                    if toasted and type_name == "text"
                ],
                identity=shape.identity,
            )
        for transaction in plan.transactions:
            for op in transaction:
                self.run(op)
            self.source.commit()

    def run(self, op: Op) -> None:
        table = self.source.tables[op.table % len(self.source.tables)]
        if op.kind == "insert":
            self.insert(table, op)
        elif op.kind == "truncate":
            others = [other for at, other in enumerate(self.source.tables) if op.named >> at & 1 and other is not table]
            self.source.truncate(table, *others)
        elif op.kind == "add_column" and len(table.schema.columns) < 9:
            self.source.add_column(table, f"added{len(table.schema.columns)}", "text")
        elif table.rows and (table.schema.key or table.schema.is_multiset):
            keys = list(table.rows)
            self.change(table, keys[op.row % len(keys)], op)

    def insert(self, table: SourceTable, op: Op) -> None:
        row = {**self.values(table, -1), **self.key_values(table, op.key)}
        if not table.schema.key or table.key_of(row) not in table.rows:
            self.source.insert(table, **row)

    def change(self, table: SourceTable, key: tuple[str | None, ...], op: Op) -> None:
        if op.kind == "update":
            self.source.update(table, key, **self.values(table, op.named))
        elif op.kind == "move" and table.schema.key:
            moved = {**table.rows[key], **self.key_values(table, op.key)}
            if table.key_of(moved) not in table.rows:
                new_key = {name: moved[name] for name in table.schema.key if moved[name] != table.rows[key][name]}
                self.source.update(table, key, **new_key, **self.values(table, op.named))
        elif op.kind == "delete":
            self.source.delete(table, key)
        elif op.kind == "replace":
            row = table.rows[key]
            self.source.delete(table, key)
            self.source.insert(table, **{**row, **self.values(table, op.named)})
        elif op.kind == "swap" and table.schema.key:
            self.swap(table, key, op)

    def swap(self, table: SourceTable, key: tuple[str | None, ...], op: Op) -> None:
        other = list(table.rows)[op.key % len(table.rows)]
        names = [name for name in table.schema.column_names if name in table.schema.key]
        aside = tuple("99" if table.schema.column(name).type.name == "int8" else "zz" for name in names)
        if other == key or aside in table.rows:
            return
        self.source.update(table, key, **dict(zip(names, aside, strict=True)))
        self.source.update(table, other, **dict(zip(names, key, strict=True)), **self.values(table, op.named))
        self.source.update(table, aside, **dict(zip(names, other, strict=True)))

    def key_values(self, table: SourceTable, number: int) -> dict[str, str]:
        values = {}
        for name in table.schema.column_names:
            if name in table.schema.key:
                values[name] = str(number) if table.schema.column(name).type.name == "int8" else KEY_TEXTS[number % 5]
                number //= 2
        return values

    def values(self, table: SourceTable, named: int) -> dict[str, str | None]:
        """A new value for every column outside the key that `named` has a bit for; some are NULL.

        None comes twice but in a table without a key, whose rows are to be equal often.
        """
        columns = [column for column in table.schema.columns if column.name not in table.schema.key]
        values: dict[str, str | None] = {}
        for at, column in enumerate(columns):
            if named >> at & 1:
                self.number += 1
                number = self.number if table.schema.key else self.number % 3
                text = "tf"[number % 2] if column.type.name == "bool" else str(number)
                values[column.name] = None if number % 5 == 0 else text
        return values


def read(text: str | None, type_name: str) -> Any:
    """What a text representation means, without the code under test."""
    if text is None:
        return None
    if type_name in ("int4", "int8"):
        return int(text)
    return text == "t" if type_name == "bool" else text


def rows_of(content: TableContent, schema: TableSchema) -> list[dict[str, Any]]:
    """A table's rows under a schema that may lack its newest columns, which are NULL then."""
    missing = [column.name for column in content.schema.columns if column.name not in schema.column_names]
    assert all(row[name] is None for row in content.rows.values() for name in missing)
    return [
        {column.name: read(row[column.name], column.type.name) for column in schema.columns}
        for row in content.rows.values()
    ]


def counted(rows: list[dict[str, Any]]) -> Counter[tuple[tuple[str, Any], ...]]:
    return Counter(tuple(sorted(row.items())) for row in rows)


class Replication:
    """The way from stream to destination: assembler, decoder, and the watermark rule, as a stream worker does it."""

    def __init__(self, source: SourceModel, plan: Plan) -> None:
        self.source = source
        self.plan = plan
        self.destination = DestinationModel()
        self.watermarks: dict[TableId, Lsn] = {}
        self.segments = self.cycle(plan.segments)
        for table, copied_at in zip(source.tables, plan.copied_at, strict=False):
            if copied_at >= 0:
                self.copy(table, min(copied_at, len(source.transactions)))

    @staticmethod
    def cycle(numbers: list[int]) -> Iterator[int]:
        while True:
            yield from numbers or [1 << 30]

    def copy(self, table: SourceTable, transactions: int) -> None:
        """An initial copy with the content after so many transactions."""
        if not transactions:
            self.watermarks[table.table_id] = ZERO
            self.destination.load(self.first_schema(table), [])
            return
        last = self.source.transactions[transactions - 1]
        content = last.contents[table.table_id]
        self.watermarks[table.table_id] = last.end_lsn
        self.destination.load(content.schema, rows_of(content, content.schema))

    def first_schema(self, table: SourceTable) -> TableSchema:
        return self.source.transactions[0].contents[table.table_id].schema

    def describe(self, relation: Relation, _: Lsn) -> TableSchema:
        for transaction in self.source.transactions:
            for schema, _change in transaction.changes:
                names = tuple(column.name for column in relation.columns)
                if schema.table_id == relation.table_id and schema.column_names == names:
                    return schema
        raise AssertionError("a Relation of an unknown table")

    def run(self) -> None:
        done = 0
        sizes = self.cycle(self.plan.batches)
        restarts = iter(self.plan.restarts)
        while done < len(self.source.transactions):
            start = max(0, done - next(restarts, 0))
            stop = min(len(self.source.transactions), done + next(sizes))
            before = dict(self.watermarks)
            counts = self.batch(start, stop)
            self.check(stop, before, counts)
            done = stop

    def batch(self, start: int, stop: int) -> dict[TableId, ChangeCounts]:
        """Reads the transactions start:stop by a stream of their own and applies them."""
        assembler = Assembler(self.describe, memory_limit=self.plan.memory_limit, start_lsn=ZERO, segment_bytes=1)
        items = self.source.stream(start)
        for _ in range(stop - start):
            feed_transaction(assembler, items, self.segments)
        counts: dict[TableId, ChangeCounts] = {}
        with closing(assembler.take()) as assembled:
            assert assembled.end_lsn == self.source.transactions[stop - 1].end_lsn
            for piece in assembled.pieces:
                for changes in decode_frames(piece.load(), piece.schemas, self.watermarks):
                    table_id = changes.schema.table_id
                    assert table_id in piece.tables
                    self.destination.apply(changes)
                    counts[table_id] = counts.get(table_id, ChangeCounts()) + changes.counts
        for table_id in self.watermarks:
            self.watermarks[table_id] = max(self.watermarks[table_id], assembled.end_lsn)
        return counts

    def check(self, stop: int, before: dict[TableId, Lsn], counts: dict[TableId, ChangeCounts]) -> None:
        assert set(self.destination.tables) == set(self.watermarks)
        reached = self.source.transactions[stop - 1]
        for table_id, model in self.destination.tables.items():
            copied = [one for one in self.source.transactions if one.end_lsn == before[table_id]]
            truth = max([reached, *copied], key=lambda one: one.end_lsn).contents[table_id]
            assert counted(self.destination.content(table_id)) == counted(rows_of(truth, model.schema))
            assert counts.get(table_id, ChangeCounts()) == self.changes_between(table_id, before[table_id], stop)

    def changes_between(self, table_id: TableId, after: Lsn, stop: int) -> ChangeCounts:
        tags: Counter[type] = Counter()
        for transaction in self.source.transactions[:stop]:
            if transaction.end_lsn > after:
                tags.update(type(message) for schema, message in transaction.changes if schema.table_id == table_id)
        return ChangeCounts(tags[Insert], tags[Update], tags[Delete], tags[Truncate])


def feed_transaction(assembler: Assembler, items: Iterator[Message | bytes], reads: Iterator[int]) -> None:
    """Feeds one transaction, in reads of the given numbers of frames, each of which ends a segment."""
    left = next(reads)
    for item in items:
        feed(assembler, [item] if left <= 1 or not isinstance(item, bytes) else [])
        if left > 1 and isinstance(item, bytes):
            assembler.segment.append(item)
        if isinstance(item, bytes):
            left = left - 1 or next(reads)
        if isinstance(item, Commit):
            return


@given(plan=st.one_of(plans(), short_plans()))
@settings(max_examples=500)
def test_destination_equals_source_after_every_batch(plan: Plan) -> None:
    session = Session(plan)
    Replication(session.source, plan).run()
