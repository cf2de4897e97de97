"""Shapes of single tables: rows and changes commute with them, and what does not fit is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl_core.batch import PartialRows, TableChanges
from etl_core.config_tables import read_tables
from etl_core.destination.memory import StoredTable, apply_changes
from etl_core.errors import ConfigError, TableError
from etl_core.schema import pg_types
from etl_core.schema.pg_types import builtin
from etl_core.schema.table import Column, PgType, ReplicaIdentity, TableSchema
from etl_core.shape.keyed_hash import HashKey
from etl_core.shape.shape import Shape
from etl_core.shape.shapes import Shapes
from etl_core.testing.destination_tables import INT4, INT8, TEXT, table
from etl_core.values.arrow import arrow_schema, key_schema
from etl_core.write_mode import WriteMode

HASH_KEY = "correct horse battery staple"
HASH = HashKey.of(HASH_KEY)


def users(*more: Column) -> TableSchema:
    return table(
        "users",
        Column("id", INT8, nullable=False, attnum=1),
        Column("email", TEXT, attnum=2),
        Column("born", _type(pg_types.DATE), attnum=3),
        Column("note", TEXT, attnum=4),
        *more,
    )


def _type(oid: int) -> PgType:
    found = builtin(oid)
    assert found is not None
    return found


def shape_of(columns: Mapping[str, Any], schema: TableSchema | None = None) -> Shape:
    shapes = Shapes.checked(read_tables("tables", {"public.users": {"columns": columns}}), HASH_KEY)
    return shapes.of(schema or users())


def test_every_transform_on_rows() -> None:
    shape = shape_of(
        {
            "hash": ["email"],
            "mask": ["phone"],
            "truncate": {"zip": 3},
            "null": ["born"],
            "exclude": ["note"],
            "rename": {"email": "email_hash", "zip": "area"},
        },
        users(Column("phone", TEXT, nullable=False), Column("zip", INT4)),
    )
    assert [(c.name, c.type.name, c.nullable) for c in shape.target.columns] == [
        ("id", "int8", False),
        ("email_hash", "text", True),
        ("born", "date", True),
        ("phone", "text", False),
        ("area", "text", True),
    ]
    assert shape.asked.column_names == ("id", "email", "phone", "zip"), "what is not kept is not asked for"
    assert shape.asked.column("zip").type == INT4, "COPY is asked by the source's types"
    assert {shape.read.column(name).type for name in ("born", "note", "zip")} == {TEXT}, "no value of them is refused"
    rows = shape.load(b'1,ada@example.com,555,12345\n2,,,\n3,"","",-1\n')
    assert rows.schema == arrow_schema(shape.target)
    assert rows.to_pylist() == [
        {
            "id": 1,
            "email_hash": HASH.hash_text(b"ada@example.com"),
            "born": None,
            "phone": "***",
            "area": "123",
        },
        {"id": 2, "email_hash": None, "born": None, "phone": None, "area": None},
        {"id": 3, "email_hash": HASH.hash_text(b""), "born": None, "phone": "***", "area": "-1"},
    ]
    assert shape.origins == {"id": "id", "email_hash": "email", "born": "born", "phone": "phone", "area": "zip"}


def test_a_key_is_hashed_by_its_text_so_that_joins_work() -> None:
    whole = shape_of({"hash": ["id"]})
    [row] = whole.load(b"42,,,\n").to_pylist()
    assert row["id"] == HASH.hash_text(b"42")
    assert (whole.target.key, whole.target.column("id").type) == (("id",), TEXT)


def test_truncation_counts_characters() -> None:
    assert shape_of({"truncate": {"email": 2}}).load("1,äöü,,\n".encode()).to_pylist()[0]["email"] == "äö"


def test_included_columns_only_and_those_that_come_later_are_not() -> None:
    columns = {"include": ["id", "born"]}
    assert shape_of(columns).target.column_names == ("id", "born")
    assert shape_of(columns, users(Column("secret", TEXT))).target.column_names == ("id", "born")


def test_without_settings_nothing_is_copied() -> None:
    schema = users()
    for shapes in (Shapes(), Shapes(read_tables("tables", {"public.others": {"columns": {"hash": ["a"]}}}), HASH_KEY)):
        shape = shapes.of(schema)
        assert shape.is_identity
        assert shape.target is shape.read is shape.asked is shape.stored is shape.copied is schema
        rows = pa.RecordBatch.from_pylist([], arrow_schema(schema))
        assert shape.rows(rows) is rows
        changes = changes_of(schema, [], [], [])
        assert shape.changes(changes) is changes


def test_what_older_rows_hold_is_transformed_too_and_not_stored() -> None:
    added = Column("tier", TEXT, attnum=5, missing_value="gold")
    for action, held in (("hash", HASH.hash_text(b"gold")), ("mask", "***"), ("null", None)):
        shape = shape_of({action: ["tier"]}, users(added))
        assert shape.target.column("tier").missing_value == held
        assert shape.stored.column("tier").missing_value is None
    assert shape_of({"mask": ["note"]}, users(added)).stored.column("tier").missing_value == "gold"


def test_without_a_key_a_shape_tells_the_columns_and_hashes_nothing() -> None:
    shape = Shapes(read_tables("tables", {"public.users": {"columns": {"hash": ["email"]}}})).of(users())
    assert shape.target.column("email").type == TEXT
    with pytest.raises(ConfigError, match="hash_key"):
        shape.load(b"1,secret,,\n")


REFUSED: dict[str, tuple[Mapping[str, Any], str]] = {
    "key excluded": ({"exclude": ["id"]}, r"tables.public.users.columns.exclude\[0\]: column id is in the key"),
    "key not included": ({"include": ["email"]}, "column id is in the key of public.users, and cannot be left out"),
    "key masked": ({"mask": ["email", "id"]}, r"mask\[1\]: column id is in the key"),
    "key nulled": ({"null": ["id"]}, "changed by null"),
    "key truncated": ({"truncate": {"id": 3}}, "truncate.id: column id is in the key"),
    "collision": ({"rename": {"email": "note"}}, "rename.email: columns email and note .* would both be called note"),
    "two to one": ({"rename": {"email": "x", "note": "x"}}, "both be called x"),
}


@pytest.mark.parametrize(("columns", "what"), REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_fit_the_table_is_refused(columns: Mapping[str, Any], what: str) -> None:
    with pytest.raises(TableError, match=what) as raised:
        shape_of(columns)
    assert raised.value.table == "public.users"


def test_a_table_without_a_column_that_is_read_is_refused() -> None:
    keyless = replace(users(), key=())
    with pytest.raises(TableError, match="no column with values"):
        shape_of({"null": ["id", "email", "born", "note"]}, keyless)


OURS = Column("_etl_deleted_at", TEXT, attnum=9)


@pytest.mark.parametrize(
    ("columns", "schema", "said", "hint"),
    [
        ({}, users(OURS), "has a column _etl_deleted_at", "rename the column at the source, or write for this table"),
        ({"rename": {OURS.name: "gone"}}, users(OURS), "has a column _etl_deleted_at", "at the source, or write for"),
        ({"exclude": [OURS.name]}, users(OURS), "has a column _etl_deleted_at", "at the source, or write for"),
        ({"include": ["id"]}, users(replace(OURS, name="_ETL_Deleted_at")), "_ETL_Deleted_at", "at the source, or"),
        ({"rename": {"note": OURS.name}}, users(), "rename.note: column note .* would be called", "another name"),
        ({}, replace(users(), key=()), "has no key", "add a primary key, or write for this table: .* mirror"),
        (
            {},
            replace(users(), key=(), replica_identity=ReplicaIdentity.NOTHING),
            "has no key",
            "if it has one, ALTER TABLE public.users REPLICA IDENTITY DEFAULT, or write for this table",
        ),
    ],
)
def test_a_table_that_cannot_keep_its_deleted_rows_is_refused(
    columns: Mapping[str, Any], schema: TableSchema, said: str, hint: str
) -> None:
    settings = read_tables("tables", {"public.users": {"columns": columns}}) if columns else ()
    assert Shapes(settings).of(schema)
    with pytest.raises(TableError, match=said) as raised:
        Shapes(settings, None, WriteMode.SOFT_DELETE).of(schema)
    assert re.search(hint, raised.value.hint or "")


def test_a_row_that_is_whole_without_what_is_left_out_deletes_no_row_that_is_kept() -> None:
    """The row under the key that was left is one of the partial rows, and stays."""
    settings = read_tables("tables", {"public.users": {"columns": {"exclude": ["note"]}}})
    for mode, deleted in ((WriteMode.MIRROR, [{"id": 1}]), (WriteMode.SOFT_DELETE, [])):
        shape = Shapes(settings, None, mode).of(users())
        rows = arrow_schema(shape.read).remove(shape.read.column_names.index("note"))
        moved = _typed([{name: 2 if name == "id" else None for name in rows.names}], rows)
        partial = PartialRows(("note",), _typed([{"id": 1}], key_schema(shape.read)), moved)
        shaped = shape.changes(changes_of(shape.read, [], [], [], [partial]))
        assert [row["id"] for row in shaped.upserts.to_pylist()] == [2]
        assert shaped.deletes.to_pylist() == deleted


def test_names_may_be_swapped() -> None:
    shape = shape_of({"rename": {"email": "note", "note": "email"}})
    assert shape.load(b"1,a,,b\n").to_pylist() == [{"id": 1, "note": "a", "born": None, "email": "b"}]


# --- changes ----------------------------------------------------------------------------------------------------

TARGETS: Sequence[Mapping[str, Any]] = (
    {"hash": ["id"]},
    {"exclude": ["note"]},
    {"exclude": ["note", "email"], "rename": {"id": "key"}},
    {"null": ["note"], "hash": ["email"]},
    {"mask": ["note"], "truncate": {"email": 1}, "rename": {"note": "remark"}},
    {"hash": ["id", "note"], "rename": {"id": "key"}, "exclude": ["born"]},
    {"include": ["id", "born"]},
)


def changes_of(
    schema: TableSchema, inserts: Rows, upserts: Rows, deletes: Rows, partials: Sequence[PartialRows] = ()
) -> TableChanges:
    rows, keys = arrow_schema(schema), key_schema(schema)
    return TableChanges(schema, _typed(inserts, rows), _typed(upserts, rows), _typed(deletes, keys), tuple(partials))


Row = dict[str, Any]
Rows = Sequence[Row]


@settings(deadline=None, max_examples=200)
@given(st.data(), st.sampled_from(TARGETS))
def test_to_shape_changes_and_apply_them_is_to_apply_them_and_shape_the_rows(
    data: st.DataObject, columns: Mapping[str, Any]
) -> None:
    """Also where an update left TOASTed values unchanged, moved its row, or both."""
    shape = shape_of(columns)
    read = shape.read
    names = [name for name in read.column_names if name != "id"]
    is_text = {column.name: column.type == TEXT for column in read.columns}

    def some_id(number: int) -> Any:
        return str(number) if is_text["id"] else number

    def some_row(number: int) -> Row:
        row: Row = {"id": some_id(number), "born": data.draw(st.sampled_from([None, "2020-02-29"]))}
        if row["born"] is not None and not is_text["born"]:
            row["born"] = 18_321
        return row | {name: data.draw(st.sampled_from([None, "", "a", "ab"])) for name in ("email", "note")}

    ids = st.lists(st.integers(0, 9), unique=True, max_size=6)
    before = {number: some_row(number) for number in data.draw(ids)}
    free = [number for number in range(20) if number not in before]
    inserts, upserts, deletes, partials = [], [], [], []
    for number in list(before):
        what = data.draw(st.sampled_from(["keep", "upsert", "delete", "partial", "move"]))
        if what == "upsert":
            upserts.append(some_row(number))
        elif what == "delete":
            deletes.append({"id": some_id(number)})
        elif what in ("partial", "move"):
            new = some_row(free.pop() if what == "move" else number)
            unchanged = data.draw(st.sampled_from([("note",), ("email",), ("email", "note")]))
            known = [name for name in read.column_names if name not in unchanged]
            fields = pa.schema([arrow_schema(read).field(name) for name in known])
            partials.append(
                PartialRows(
                    unchanged,
                    _typed([{"id": some_id(number)}], key_schema(read)),
                    _typed([{name: new[name] for name in known}], fields),
                )
            )
    inserts = [some_row(free.pop()) for _ in range(data.draw(st.integers(0, 2)))]
    changes = replace(
        changes_of(read, [], [], []),
        inserts=_typed(inserts, arrow_schema(read)),
        upserts=_typed(upserts, arrow_schema(read)),
        deletes=_typed(deletes, key_schema(read)),
        partials=tuple(partials),
        truncate=data.draw(st.booleans()) and not partials,
    )
    stored = StoredTable(read, _typed(list(before.values()), arrow_schema(read)))
    assert names
    expected = shaped(shape, apply_changes(stored, changes).rows)
    found = apply_changes(StoredTable(shape.target, shaped(shape, stored.rows)), shape.changes(changes)).rows
    assert found.schema == arrow_schema(shape.target)
    assert sorted(map(repr, found.to_pylist())) == sorted(map(repr, expected.to_pylist()))


def shaped(shape: Shape, rows: pa.Table) -> pa.Table:
    asked = rows.select(shape.copied.column_names)
    return pa.Table.from_batches([shape.rows(batch) for batch in asked.to_batches()], arrow_schema(shape.target))


def _typed(rows: Rows, schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema)


def test_a_row_whose_unchanged_values_are_all_left_out_is_whole() -> None:
    shape = shape_of({"exclude": ["note"]})
    read = arrow_schema(shape.read)
    partial = PartialRows(
        ("note",),
        pa.table({"id": pa.array([1], pa.int64())}, key_schema(shape.read)),
        pa.table({"id": [7], "email": ["a"], "born": [None]}, pa.schema([read.field(at) for at in range(3)])),
    )
    found = shape.changes(changes_of(shape.read, [], [], [], [partial]))
    assert found.partials == ()
    assert found.upserts.to_pylist() == [{"id": 7, "email": "a", "born": None}]
    assert found.deletes.to_pylist() == [{"id": 1}]


def test_a_defect_stops_the_table_alone_and_quotes_no_row(caplog: pytest.LogCaptureFixture) -> None:
    shape = shape_of({"hash": ["email"]})
    broken = replace(changes_of(shape.read, [], [], []), upserts=pa.table({"id": [1], "email": ["hunter2"]}))
    with pytest.raises(TableError, match="internal error while shaping changes") as raised:
        shape.changes(broken)
    assert "hunter2" not in f"{raised.value}{raised.value.hint}{caplog.text}"
