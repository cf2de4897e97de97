"""Tables that are logs: every change is a row, the same wherever batches, segments and restarts cut the stream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from etl_core.decode.decoder import decode_frames
from etl_core.identifiers import TableId
from etl_core.lsn import ZERO, Lsn
from etl_core.protocol.messages import ColumnKind, Delete, Insert, Truncate, TupleData, Update
from etl_core.replication.assembler import Assembler
from etl_core.schema.change_log import sent_columns
from etl_core.schema.table import ReplicaIdentity, TableSchema
from etl_core.shape.shapes import Shapes
from etl_core.testing.source_model import SourceModel, Transaction
from etl_core.write_mode import WriteMode
from tests.unit.decode.test_history import Plan, Replication, Session, feed_transaction, plans, read, short_plans

LOGS = Shapes(write_mode=WriteMode.APPEND)
Row = dict[str, Any]


@dataclass
class Log:
    """What a destination would have of every table: rows in their order, and its watermark."""

    watermarks: dict[TableId, Lsn]
    rows: dict[TableId, list[Row]] = field(default_factory=dict)

    def apply(self, source: SourceModel, plan: Plan, start: int, stop: int, segments: Iterator[int]) -> None:
        """Reads the transactions start:stop by a stream of their own."""
        describe = Replication(source, Plan([], [], [])).describe
        assembler = Assembler(describe, memory_limit=plan.memory_limit, start_lsn=ZERO, segment_bytes=1)
        items = source.stream(start)
        for _ in range(stop - start):
            feed_transaction(assembler, items, segments)
        with closing(assembler.take()) as assembled:
            for piece in assembled.pieces:
                shapes = {table_id: LOGS.of(schema) for table_id, schema in piece.schemas.items()}
                schemas = {table_id: shape.read for table_id, shape in shapes.items()}
                for changes in decode_frames(piece.load(), schemas, self.watermarks):
                    shaped = shapes[changes.schema.table_id].changes(changes)
                    assert (shaped.upserts.num_rows, shaped.deletes.num_rows, shaped.truncate) == (0, 0, False)
                    assert changes.counts.logged == shaped.inserts.num_rows
                    shaped.inserts.validate(full=True)
                    self.rows.setdefault(changes.schema.table_id, []).extend(shaped.inserts.to_pylist())
        for table_id in self.watermarks:
            self.watermarks[table_id] = max(self.watermarks[table_id], assembled.end_lsn)


def expected(transactions: list[Transaction], table_id: TableId, after: Lsn) -> list[Row]:
    """The rows that the table's changes behind `after` are, from the messages themselves."""
    found = []
    for transaction in transactions:
        place, truncate = 0, None
        for schema, message in transaction.changes:
            place += message is not truncate  # one message for all tables
            truncate = message if isinstance(message, Truncate) else None
            if schema.table_id == table_id and transaction.end_lsn > after:
                ours = {"_etl_lsn": int(transaction.commit_lsn), "_etl_seq": place}
                found.append(values(schema, message) | ours)
    return found


def values(schema: TableSchema, message: Insert | Update | Delete | Truncate) -> Row:
    row = dict.fromkeys(LOGS.of(schema).target.column_names)
    row["_etl_op"] = type(message).__name__.lower()
    if isinstance(message, Truncate):
        return row
    old = None if isinstance(message, Insert) else message.key or message.old
    before = None if old is None else loaded(schema, old)
    if isinstance(message, Delete):
        assert before is not None
        return row | before
    after = loaded(schema, message.new)
    unchanged = [name for name, value in after.items() if value is ColumnKind.UNCHANGED]
    for name in unchanged:
        if before is not None and before[name] is not None:
            after[name] = before[name]  # the source did send it
    unchanged = [name for name in unchanged if after[name] is ColumnKind.UNCHANGED]
    row |= after | dict.fromkeys(unchanged) | {"_etl_unchanged": unchanged or None}
    told_by = schema.key or schema.column_names
    if before is not None and (not schema.key or any(before[name] != after[name] for name in schema.key)):
        row |= {f"_etl_old_{name}": before[name] for name in told_by}
    return row


def loaded(schema: TableSchema, sent: TupleData) -> Row:
    """The values, or ColumnKind.UNCHANGED."""
    found: Row = {}
    for column, value in zip(schema.columns, sent.columns, strict=True):
        text = None if value.data is None else value.data.decode()
        is_sent = value.kind is not ColumnKind.UNCHANGED
        found[column.name] = read(text, column.type.name) if is_sent else ColumnKind.UNCHANGED
    return found


@given(plan=st.one_of(plans(), short_plans()))
@settings(max_examples=300)
def test_every_change_is_a_row_however_the_stream_is_cut(plan: Plan) -> None:
    source = Session(plan).source
    copied = {
        table.table_id: source.transactions[min(at, len(source.transactions)) - 1].end_lsn if at else ZERO
        for table, at in zip(source.tables, plan.copied_at, strict=False)
        if at >= 0
    }
    log = Log(dict(copied))
    segments, sizes, restarts = Replication.cycle(plan.segments), Replication.cycle(plan.batches), iter(plan.restarts)
    done = 0
    while done < len(source.transactions):
        stop = min(len(source.transactions), done + next(sizes))
        log.apply(source, plan, max(0, done - next(restarts, 0)), stop, segments)
        done = stop
    for table_id, after in copied.items():
        wanted = expected(source.transactions, table_id, after)
        assert [compared(row) for row in log.rows.get(table_id, [])] == [compared(row) for row in wanted]


def compared(row: Row) -> Row:
    """Truncations may be written under the columns of the next row."""
    is_row = row["_etl_op"] != "truncate"
    return {name: value for name, value in row.items() if name != "_etl_committed_at" and (is_row or value is not None)}


def test_old_values_are_of_what_tells_rows_apart() -> None:
    source = SourceModel()
    keyed = source.create("keyed", {"a": "int8", "b": "text", "c": "text"}, key=("a", "b"))
    whole = source.create("whole", {"a": "int8", "b": "text"}, identity=ReplicaIdentity.FULL)
    bare = source.create("bare", {"a": "int8"})
    names = {table.schema.name.name: LOGS.of(table.schema).target.column_names for table in (keyed, whole, bare)}
    ours = ("_etl_op", "_etl_lsn", "_etl_seq", "_etl_committed_at", "_etl_unchanged")
    assert names == {
        "keyed": ("a", "b", "c", "_etl_old_a", "_etl_old_b", *ours),
        "whole": ("a", "b", "_etl_old_a", "_etl_old_b", *ours),
        "bare": ("a", *ours),
    }
    for table in (keyed, whole, bare):
        shape = LOGS.of(table.schema)
        assert shape.target.key == ()
        assert shape.row_key == table.schema.key
        assert sent_columns(shape.read) == table.schema.columns


def test_a_column_that_is_called_like_one_of_a_log_is_the_source_s() -> None:
    table = SourceModel().create("kept", {"id": "int8", "_etl_old_a": "text"}, key=("id",))
    read = Shapes.checked((), None, WriteMode.SOFT_DELETE).of(table.schema).read
    assert sent_columns(read) == table.schema.columns
