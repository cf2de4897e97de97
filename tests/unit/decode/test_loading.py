"""Columns of one type are loaded together, those of all tables: the same values as alone, and the same errors."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl_core.batch import TableChanges
from etl_core.decode import decoder
from etl_core.decode.decoder import decode_frames
from etl_core.decode.loading import load_cells
from etl_core.errors import TableError
from etl_core.identifiers import TableId
from etl_core.lsn import ZERO
from etl_core.replication.assembler import Assembler
from etl_core.schema.table import TableSchema
from etl_core.testing.feeding import feed
from etl_core.testing.source_model import SourceModel
from etl_core.values import load

TEXTS: dict[str, list[str | None]] = {
    "int4": ["7", "-2147483648", None],
    "text": ["", "ä", "some text", None],
    "bool": ["t", "f", None],
    "numeric": ["1.50", "-0.01", None],
    "timestamptz": ["2024-02-29 12:00:00.5+00", "infinity", None],
    "bytea": ["\\x", "\\x00ff", None],
    "interval": ["PT1S", "P1Y2M", None],
    "_int4": ["{}", "{1,NULL}", "{3,4,5}", None],
}


def decode(source: SourceModel, failed: dict[TableId, TableError] | None = None) -> dict[TableId, TableChanges]:
    schemas = {table.table_id: table.schema for table in source.tables}
    assembler = Assembler(lambda relation, _: schemas[relation.table_id], memory_limit=1 << 30, start_lsn=ZERO)
    feed(assembler, source.stream())
    (piece,) = assembler.take().pieces
    on_table_error = None if failed is None else failed.__setitem__
    found = decode_frames(piece.load(), piece.schemas, dict.fromkeys(schemas, ZERO), on_table_error)
    return {changes.schema.table_id: changes for changes in found}


def check_loaded(schema: TableSchema, found: pa.Table, rows: list[list[str | None]]) -> None:
    found.validate(full=True)
    for number, column in enumerate(schema.columns):
        texts = pa.array([row[number] for row in rows], pa.string())
        assert found.column(number).combine_chunks().equals(load(texts, column, schema.name))


@st.composite
def tables(draw: st.DrawFn) -> list[tuple[list[str], list[list[str | None]]]]:
    """The types of each table's columns, and its rows."""
    drawn = []
    for _ in range(draw(st.integers(1, 4))):
        types = draw(st.lists(st.sampled_from(sorted(TEXTS)), max_size=6))
        row = st.tuples(*(st.sampled_from(TEXTS[name]) for name in types)).map(list)
        drawn.append((types, draw(st.lists(row, min_size=1, max_size=4))))
    return drawn


@given(tables())
@settings(max_examples=200)
def test_together_and_alone_are_the_same(drawn: list[tuple[list[str], list[list[str | None]]]]) -> None:
    source = SourceModel()
    sent: dict[TableId, list[list[str | None]]] = {}
    for number, (types, rows) in enumerate(drawn):
        columns = {"id": "int8"} | {f"c{at}": name for at, name in enumerate(types)}
        table = source.create(f"t{number}", columns, key=("id",))
        for key, row in enumerate(rows):
            source.insert(table, id=key, **{f"c{at}": text for at, text in enumerate(row)})
            sent.setdefault(table.table_id, []).append([str(key), *row])
    source.commit()
    found = decode(source)
    assert found.keys() == sent.keys()
    for table_id, changes in found.items():
        check_loaded(changes.schema, changes.inserts, sent[table_id])
        assert changes.upserts.num_rows == changes.deletes.num_rows == 0
        assert changes.upserts.schema == changes.inserts.schema


def two_tables(bad: dict[str, str]) -> tuple[SourceModel, TableId, TableId]:
    source = SourceModel()
    columns = {"id": "int8", "a": "int4", "b": "int4", "note": "text"}
    first = source.create("first", columns, key=("id",))
    second = source.create("second", columns, key=("id",))
    source.insert(first, id=1, a="1", b="2", note="good")
    source.insert(second, **({"id": "2", "a": "3", "b": "4", "note": "good"} | bad))
    source.commit()
    return source, first.table_id, second.table_id


def test_an_error_names_the_column_and_table_at_fault_and_the_others_go_on() -> None:
    source, first, second = two_tables({"b": "hunter2"})
    failed: dict[TableId, TableError] = {}
    found = decode(source, failed)
    assert found.keys() == {first}
    check_loaded(found[first].schema, found[first].inserts, [["1", "1", "2", "good"]])
    assert failed.keys() == {second}
    assert str(failed[second]).startswith("column b of table public.second holds text that is not a value of type")
    assert "hunter2" not in str(failed[second])
    with pytest.raises(TableError, match=r"column b of table public\.second"):
        decode(source)


def test_an_internal_error_while_values_are_loaded_stops_its_table_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    source, first, second = two_tables({})
    whole = load_cells

    def fail(data: object, wanted: object) -> object:
        if any(one.table.name == "second" for one in wanted):  # type: ignore[attr-defined]
            raise KeyError("hunter2")
        return whole(data, wanted)  # type: ignore[arg-type]

    monkeypatch.setattr(decoder, "load_cells", fail)
    failed: dict[TableId, TableError] = {}
    assert decode(source, failed).keys() == {first}
    assert str(failed[second]) == "internal error while decoding changes of public.second: KeyError"


def test_decoding_does_not_import_pandas() -> None:
    # 1.4 s of CPU and 56 MB in the middle of a batch: pyarrow does so for many a conversion.
    program = f"""
import sys
sys.path[:] = {sys.path!r}
from etl_core.testing.source_model import SourceModel
from tests.unit.decode.test_loading import TEXTS, decode
source = SourceModel()
types = {{"id": "int8"}} | {{name: name for name in TEXTS}}
keyed, log = source.create("keyed", types, key=("id",), toasted=("text",)), source.create("log", types)
for table in (keyed, log):
    for number in range(3):
        source.insert(table, id=number, **{{name: texts[number % len(texts)] for name, texts in TEXTS.items()}})
source.update(keyed, (1,), bool="t")
source.update(keyed, (1,), id=7)
source.delete(keyed, (2,))
source.commit()
assert len(decode(source)) == 2
sys.exit("pandas" in sys.modules)
"""
    assert importlib.util.find_spec("pandas"), "or the test says nothing"
    subprocess.run([sys.executable, "-c", program], check=True)
