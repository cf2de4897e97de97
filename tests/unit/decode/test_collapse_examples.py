"""What becomes of the changes of one key in one segment, case by case."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from etl_core.batch import ChangeCounts, TableChanges
from etl_core.decode.decoder import decode_frames
from etl_core.errors import CopyNeeded, TableError
from etl_core.identifiers import TableId
from etl_core.lsn import ZERO, Lsn
from etl_core.protocol.messages import UNCHANGED, Begin, Commit, Delete, Insert, Relation, Update
from etl_core.replication.assembler import Assembler
from etl_core.schema.table import ReplicaIdentity
from etl_core.testing.destination_model import check_changes
from etl_core.testing.feeding import feed
from etl_core.testing.pgoutput import build_tuple
from etl_core.testing.source_model import SourceModel, SourceTable, build_frame

Session = Callable[[SourceModel, SourceTable], None]
Rows = list[tuple[Any, ...]]


def orders(identity: ReplicaIdentity = ReplicaIdentity.DEFAULT) -> tuple[SourceModel, SourceTable]:
    """A table with two rows, which the destination has: (1, 'one', 'long one') and (2, 'two', 'long two')."""
    source = SourceModel()
    columns = {"id": "int8", "note": "text", "body": "text"}
    table = source.create("orders", columns, key=("id",), toasted=("body",), identity=identity)
    source.insert(table, id=1, note="one", body="long one")
    source.insert(table, id=2, note="two", body="long two")
    source.commit()
    return source, table


def decode(
    source: SourceModel, first: int = 1, watermarks: Mapping[TableId, Lsn] | None = None
) -> dict[TableId, list[TableChanges]]:
    """The changes of each table in the transactions from `first` on, one per segment."""
    schemas = {table.table_id: table.schema for table in source.tables}

    def describe(relation: Relation, _: Lsn) -> Any:
        return schemas[relation.table_id]

    assembler = Assembler(describe, memory_limit=1 << 30, start_lsn=ZERO)
    feed(assembler, source.stream(first))
    found: dict[TableId, list[TableChanges]] = {}
    for piece in assembler.take().pieces:
        marks = dict.fromkeys(schemas, ZERO) if watermarks is None else watermarks
        for changes in decode_frames(piece.load(), piece.schemas, marks):
            check_changes(changes)
            found.setdefault(changes.schema.table_id, []).append(changes)
    return found


def rows(table: Any) -> Rows:
    return [tuple(row.values()) for row in table.to_pylist()]


def shown(changes: TableChanges) -> dict[str, Any]:
    """The parts of the changes that are not empty."""
    parts: dict[str, Any] = {
        "inserts": rows(changes.inserts),
        "upserts": rows(changes.upserts),
        "deletes": rows(changes.deletes),
        "partials": [(part.unchanged, rows(part.origin_keys), rows(part.rows)) for part in changes.partials],
        "removals": [] if changes.removals is None else rows(changes.removals),
    }
    return {name: value for name, value in parts.items() if value}


def insert(source: SourceModel, table: SourceTable) -> None:
    source.insert(table, id=3, note="three", body="long three")


def insert_update(source: SourceModel, table: SourceTable) -> None:
    insert(source, table)
    source.update(table, (3,), note="drei")


def insert_delete(source: SourceModel, table: SourceTable) -> None:
    insert(source, table)
    source.delete(table, (3,))


def insert_delete_insert(source: SourceModel, table: SourceTable) -> None:
    insert_delete(source, table)
    source.insert(table, id=3, note="again")


def update_all(source: SourceModel, table: SourceTable) -> None:
    source.update(table, (1,), note="eins", body="lang eins")


def update_in_place(source: SourceModel, table: SourceTable) -> None:
    source.update(table, (1,), note="eins")


def update_twice(source: SourceModel, table: SourceTable) -> None:
    source.update(table, (1,), body="lang eins")
    source.update(table, (1,), note="eins")
    source.update(table, (1,), note="uno")


def delete(source: SourceModel, table: SourceTable) -> None:
    source.delete(table, (1,))


def update_delete(source: SourceModel, table: SourceTable) -> None:
    source.update(table, (1,), note="eins")
    source.delete(table, (1,))


def delete_insert(source: SourceModel, table: SourceTable) -> None:
    source.delete(table, (1,))
    source.insert(table, id=1, note="new")


def delete_insert_update(source: SourceModel, table: SourceTable) -> None:
    source.delete(table, (1,))
    source.insert(table, id=1, note="new", body="long new")
    source.update(table, (1,), note="newer")


def move(source: SourceModel, table: SourceTable) -> None:
    source.update(table, (1,), id=3)


def move_all(source: SourceModel, table: SourceTable) -> None:
    source.update(table, (1,), id=3, note="drei", body="lang drei")


def move_back(source: SourceModel, table: SourceTable) -> None:
    source.update(table, (1,), id=3)
    source.update(table, (3,), id=1, note="back")


def move_on(source: SourceModel, table: SourceTable) -> None:
    source.update(table, (1,), note="eins")
    source.update(table, (1,), id=3)
    source.update(table, (3,), id=4)


def move_inserted(source: SourceModel, table: SourceTable) -> None:
    insert(source, table)
    source.update(table, (3,), id=4)


def move_and_insert(source: SourceModel, table: SourceTable) -> None:
    source.update(table, (1,), id=3)
    source.insert(table, id=1, note="new")


def move_and_delete(source: SourceModel, table: SourceTable) -> None:
    source.update(table, (1,), id=3)
    source.delete(table, (3,))


def take_the_place(source: SourceModel, table: SourceTable) -> None:
    source.delete(table, (2,))
    source.update(table, (1,), id=2)


def swap(source: SourceModel, table: SourceTable) -> None:
    source.update(table, (1,), id=9)
    source.update(table, (2,), id=1)
    source.update(table, (9,), id=2)


def two_patterns(source: SourceModel, table: SourceTable) -> None:
    source.update(table, (1,), note="eins")
    source.update(table, (2,), body="lang zwei")


def update_one_and_move_another(source: SourceModel, table: SourceTable) -> None:
    source.update(table, (1,), note="eins")
    source.update(table, (2,), id=3)


BODY = ("body",)


@pytest.mark.parametrize(
    ("session", "expected"),
    [
        (insert, {"inserts": [(3, "three", "long three")]}),
        (insert_update, {"inserts": [(3, "drei", "long three")]}),
        (insert_delete, {"deletes": [(3,)]}),
        (insert_delete_insert, {"inserts": [(3, "again", None)]}),
        (update_all, {"upserts": [(1, "eins", "lang eins")]}),
        (update_in_place, {"partials": [(BODY, [(1,)], [(1, "eins")])]}),
        (update_twice, {"upserts": [(1, "uno", "lang eins")]}),
        (delete, {"deletes": [(1,)]}),
        (update_delete, {"deletes": [(1,)]}),
        (delete_insert, {"upserts": [(1, "new", None)]}),
        (delete_insert_update, {"upserts": [(1, "newer", "long new")]}),
        (move, {"deletes": [(1,)], "partials": [(BODY, [(1,)], [(3, "one")])]}),
        (move_all, {"deletes": [(1,)], "inserts": [(3, "drei", "lang drei")]}),
        (move_back, {"deletes": [(3,)], "partials": [(BODY, [(1,)], [(1, "back")])]}),
        (move_on, {"deletes": [(1,), (3,)], "partials": [(BODY, [(1,)], [(4, "eins")])]}),
        (move_inserted, {"inserts": [(4, "three", "long three")], "deletes": [(3,)]}),
        (move_and_insert, {"upserts": [(1, "new", None)], "partials": [(BODY, [(1,)], [(3, "one")])]}),
        (move_and_delete, {"deletes": [(1,), (3,)]}),
        (take_the_place, {"deletes": [(1,)], "partials": [(BODY, [(1,)], [(2, "one")])]}),
        (swap, {"deletes": [(9,)], "partials": [(BODY, [(2,), (1,)], [(1, "two"), (2, "one")])]}),
        (
            update_one_and_move_another,
            {"deletes": [(2,)], "partials": [(BODY, [(1,), (2,)], [(1, "eins"), (3, "two")])]},
        ),
        (two_patterns, {"upserts": [(2, "two", "lang zwei")], "partials": [(BODY, [(1,)], [(1, "eins")])]}),
    ],
)
def test_one_transaction(session: Session, expected: dict[str, Any]) -> None:
    source, table = orders()
    session(source, table)
    source.commit()
    (changes,) = decode(source)[table.table_id]
    assert shown(changes) == expected


@pytest.mark.parametrize("session", [update_in_place, move, move_back, move_on, swap, two_patterns])
def test_with_replica_identity_full_the_old_tuple_has_every_unchanged_value(session: Session) -> None:
    source, table = orders(ReplicaIdentity.FULL)
    session(source, table)
    source.commit()
    (changes,) = decode(source)[table.table_id]
    assert changes.partials == ()
    truth = [tuple(int(v) if n == "id" and v else v for n, v in row.items()) for row in table.rows.values()]
    assert set(rows(changes.inserts) + rows(changes.upserts)) <= set(truth)


def test_counts_are_those_of_the_source() -> None:
    source, table = orders()
    insert_update(source, table)
    source.delete(table, (1,))
    source.commit()
    (changes,) = decode(source)[table.table_id]
    assert changes.counts == ChangeCounts(inserted=1, updated=1, deleted=1)


def test_a_truncation_between_changes() -> None:
    source, table = orders()
    source.update(table, (1,), note="lost")
    source.truncate(table)
    source.insert(table, id=1, note="new")
    source.commit()
    before, after = decode(source)[table.table_id]
    assert (before.truncate, after.truncate) == (False, True)
    assert shown(after) == {"inserts": [(1, "new", None)]}


def test_a_toasted_key_that_stays_and_one_that_moves() -> None:
    source = SourceModel()
    table = source.create("t", {"v": "int4", "a": "text", "b": "text"}, key=("a", "b"), toasted=("a",))
    source.insert(table, v=1, a="long a", b="b")
    source.insert(table, v=2, a="long b", b="b")
    source.commit()
    source.update(table, ("long a", "b"), v=3)
    source.update(table, ("long b", "b"), b="c")
    source.commit()
    (changes,) = decode(source)[table.table_id]
    assert shown(changes) == {
        "inserts": [(2, "long b", "c")],
        "upserts": [(3, "long a", "b")],
        "deletes": [("long b", "b")],
    }


def test_composite_keys_are_not_their_texts_put_together() -> None:
    source = SourceModel()
    table = source.create("t", {"a": "text", "n": "int4", "b": "text"}, key=("a", "b"))
    for a, b in [
        ("a", "bc"),
        ("ab", "c"),
        ("abc", ""),
        ("", "abc"),
        ("a,b", "c"),
        ("a", "b,c"),
        ("1", "11"),
        ("11", "1"),
    ]:
        source.insert(table, a=a, n=0, b=b)
    source.commit()
    source.update(table, ("a", "bc"), n=1)
    source.delete(table, ("ab", "c"))
    source.commit()
    (changes,) = decode(source, first=0)[table.table_id]
    assert changes.inserts.num_rows == 7
    assert ("a", 1, "bc") in rows(changes.inserts)
    assert "c" not in [row[2] for row in rows(changes.inserts) if row[0] == "ab"]


def test_mixed_case_names_and_a_key_behind_other_columns() -> None:
    source = SourceModel()
    table = source.create('Order "Lines"', {"Note": "text", "Order Id": "int8", "ID": "int4"}, key=("ID", "Order Id"))
    assert table.schema.key == ("Order Id", "ID")
    source.insert(table, **{"Note": "n", "Order Id": 7, "ID": 1})
    source.insert(table, **{"Note": "n", "Order Id": 1, "ID": 7})
    source.commit()
    source.delete(table, (7, 1))
    source.commit()
    (changes,) = decode(source)[table.table_id]
    assert changes.deletes.to_pylist() == [{"Order Id": 7, "ID": 1}]


def test_a_transaction_at_the_watermark_is_skipped_and_the_next_is_not() -> None:
    source, table = orders()
    other = source.create("other", {"id": "int8"}, key=("id",))
    source.insert(other, id=1)
    source.update(table, (1,), note="in the copy", body="x")
    copied = source.commit()
    source.update(table, (2,), note="after it", body="y")
    source.insert(other, id=2)
    last = source.commit()
    found = decode(source, watermarks={table.table_id: copied.end_lsn})
    assert {table_id: [shown(part) for part in parts] for table_id, parts in found.items()} == {
        table.table_id: [{"upserts": [(2, "after it", "y")]}]
    }
    assert decode(source, watermarks={table.table_id: last.end_lsn}) == {}


@pytest.mark.parametrize("kind", ["update", "delete"])
def test_a_table_without_a_key_and_without_whole_old_rows_takes_only_inserts(kind: str) -> None:
    source = SourceModel()
    table = source.create("log", {"line": "text"})
    source.insert(table, line="a")
    source.insert(table, line="a")
    source.commit()
    (changes,) = decode(source, first=0)[table.table_id]
    assert shown(changes) == {"inserts": [("a",), ("a",)]}
    if kind == "update":
        source.update(table, ("0",), line="b")
    else:
        source.delete(table, ("0",))
    source.commit()
    with pytest.raises(TableError, match=r"public.log is published without a key") as caught:
        decode(source)
    assert caught.value.table == "public.log"


@pytest.mark.parametrize("toasted", [(), ("body",)], ids=["whole rows", "unchanged values"])
def test_of_a_table_without_a_key_equal_rows_are_counted(toasted: tuple[str, ...]) -> None:
    source = SourceModel()
    columns = {"line": "text", "body": "text"}
    table = source.create("log", columns, toasted=toasted, identity=ReplicaIdentity.FULL)
    for line in ("a", "a", "b", None, None):
        source.insert(table, line=line, body="long")
    source.update(table, (0,), line="c")
    source.update(table, (1,), line="c")
    source.delete(table, (1,))
    source.delete(table, (3,))
    source.commit()
    source.insert(table, line="c", body="long")
    source.delete(table, (0,))
    source.update(table, (2,), line=None)
    source.update(table, (2,), line="")
    source.update(table, (2,), line="n", body=None)
    source.commit()
    first, second = decode(source, first=0)[table.table_id], decode(source, first=1)[table.table_id]
    assert shown(first[0]) == {"inserts": [("c", "long"), (None, "long"), ("n", None)]}
    assert first[0].counts == ChangeCounts(6, 5, 3, 0)
    assert shown(second[0]) == {"inserts": [("n", None)], "removals": [("b", "long")]}


@pytest.mark.parametrize("kind", ["update", "delete"])
def test_a_row_without_a_key_whose_old_values_are_not_whole_is_refused(kind: str) -> None:
    """As of a partition that has another replica identity than its root."""
    source = SourceModel()
    table = source.create("log", {"line": "text"}, identity=ReplicaIdentity.FULL)
    assembler = Assembler(lambda *_: table.schema, memory_limit=1 << 30, start_lsn=ZERO)
    sent: Update | Delete = Update(None, table.table_id, None, None, build_tuple("a"))
    if kind == "delete":
        sent = Delete(None, table.table_id, None, build_tuple(UNCHANGED))
    feed(assembler, [Begin(Lsn(1), 0, 1), build_frame(sent), Commit(Lsn(1), Lsn(2), 0)])
    with pytest.raises(CopyNeeded, match="without the whole old row"):
        list(decode_frames(assembler.take().pieces[0].load(), {table.table_id: table.schema}, {table.table_id: ZERO}))


@pytest.mark.parametrize("key", [("id",), ()])
@pytest.mark.parametrize("updated", [False, True])
def test_an_inserted_row_without_a_value_is_refused(key: tuple[str, ...], updated: bool) -> None:
    source = SourceModel()
    table = source.create("filtered", {"id": "int8", "body": "text"}, key=key)
    assembler = Assembler(lambda *_: table.schema, memory_limit=1 << 30, start_lsn=ZERO)
    sent = [build_frame(Insert(None, table.table_id, build_tuple("1", UNCHANGED)))]
    if updated and key:
        sent.append(build_frame(Update(None, table.table_id, None, None, build_tuple("1", UNCHANGED))))
    feed(assembler, [Begin(Lsn(1), 0, 1), *sent, Commit(Lsn(1), Lsn(2), 0)])
    frames = assembler.take().pieces[0].load()
    with pytest.raises(TableError, match="without the value of a TOASTed column") as caught:
        list(decode_frames(frames, {table.table_id: table.schema}, {table.table_id: ZERO}))
    assert caught.value.hint is not None
    assert "row filter" in caught.value.hint


def test_a_table_that_fails_does_not_stop_the_others() -> None:
    source = SourceModel()
    good = source.create("good", {"id": "int8"}, key=("id",))
    bad = source.create("bad", {"id": "int8", "n": "int4"}, key=("id",))
    source.insert(bad, id=1, n="no number")
    source.insert(good, id=1)
    source.commit()
    schemas = {table.table_id: table.schema for table in source.tables}
    assembler = Assembler(lambda relation, _: schemas[relation.table_id], memory_limit=1 << 30, start_lsn=ZERO)
    feed(assembler, source.stream())
    frames = assembler.take().pieces[0].load()
    failed: dict[TableId, TableError] = {}
    marks = dict.fromkeys(schemas, ZERO)
    found = list(decode_frames(frames, schemas, marks, on_table_error=failed.__setitem__))
    assert [changes.schema.table_id for changes in found] == [good.table_id]
    assert failed[bad.table_id].table == "public.bad"
    assert "no number" not in str(failed[bad.table_id])
    with pytest.raises(TableError, match=r"public\.bad"):
        list(decode_frames(frames, schemas, marks))
