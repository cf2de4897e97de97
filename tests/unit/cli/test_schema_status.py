"""What `etl status --schema` says."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from etl_core.cli.schema_status import versions_lines, versions_object
from etl_core.lsn import Lsn
from etl_core.schema.table import Column, TableSchema
from etl_core.state.store import SchemaVersion
from etl_core.testing.destination_tables import INT4, TEXT, orders

AT = datetime(2026, 11, 30, tzinfo=UTC)


def versions() -> list[SchemaVersion]:
    first = replace(orders(), columns=tuple(replace(c, attnum=at) for at, c in enumerate(orders().columns, 1)))
    identity, _, note, amount = first.columns
    changed: list[TableSchema] = [
        first,
        replace(first, columns=(identity, replace(note, name="remark"), amount, Column("extra", INT4, attnum=5))),
        replace(first, columns=(identity, replace(note, name="remark", nullable=False), amount)),
    ]
    changed.append(
        replace(changed[2], columns=(*changed[2].columns[:2], replace(changed[2].columns[2], nullable=False)))
    )
    assert note.type == TEXT
    return [SchemaVersion(at, Lsn(at * 256), schema, AT) for at, schema in enumerate(changed, 1)]


def test_the_versions_with_what_changed() -> None:
    found = versions()
    said = "\n".join(versions_lines(found[0].schema.name, found))
    for sentence in (
        "1        0/100  ",
        "copied",
        "column status (text) was dropped",
        "column note (text) was renamed to remark (text)",
        "column extra (int4) was added",
        "column extra (int4) was dropped",
        "nullability, a comment or the replica identity changed",
        "amount  int4  NOT NULL",
        "id      int8  key, NOT NULL",
    ):
        assert sentence in said, said
    assert said.count("2        0/200") == 1


def test_as_json() -> None:
    found = versions_object(versions()[0].schema.name, versions())
    second = found["versions"][1]  # type: ignore[index]
    assert second["lsn"] == "0/200"
    assert len(second["changes"]) == 3
    assert [column["name"] for column in second["columns"]] == ["id", "remark", "amount", "extra"]


def test_a_table_that_was_never_copied() -> None:
    [line] = versions_lines(orders().name, [])
    assert "has not been copied yet" in line
    assert versions_object(orders().name, [])["versions"] == []
