"""A model of a destination: tables in a dict, changes applied by the letter of `TableChanges`, and strictly.

Where a real destination would silently repair a wrong change (overwrite on insert, skip a missing row), this one
raises AssertionError, so that a test of the decoder sees it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from etl_core.batch import PartialRows, TableChanges
from etl_core.identifiers import TableId
from etl_core.schema.table import TableSchema
from etl_core.values.arrow import arrow_schema, key_schema

Key = tuple[Any, ...]
Row = dict[str, Any]


@dataclass(slots=True)
class ModelTable:
    """Rows by key; a table without a key has them in `unkeyed`, in the order they came."""

    schema: TableSchema
    rows: dict[Key, Row] = field(default_factory=dict)
    unkeyed: list[Row] = field(default_factory=list)


class DestinationModel:
    """Tables by id, as `TableChanges` left them."""

    def __init__(self) -> None:
        self.tables: dict[TableId, ModelTable] = {}

    def load(self, schema: TableSchema, rows: Iterable[Row]) -> None:
        """Replaces a table, as an initial copy does."""
        table = self.tables[schema.table_id] = ModelTable(schema)
        _insert(table, rows)

    def content(self, table_id: TableId) -> list[Row]:
        """The table's rows, in any order."""
        table = self.tables[table_id]
        return table.unkeyed + list(table.rows.values())

    def apply(self, changes: TableChanges) -> None:
        """The five steps, after checking what the contract says about the changes themselves."""
        check_changes(changes)
        table = self.tables[changes.schema.table_id]
        _bring_to(table, changes.schema)
        if changes.truncate:
            table.rows.clear()
            table.unkeyed.clear()
        completed = [_complete(table, partial) for partial in changes.partials]
        gone = [changes.deletes, changes.upserts]
        for partial in changes.partials:
            gone += [partial.origin_keys, partial.rows]
        for part in gone:
            for key in keys(changes.schema, part):
                table.rows.pop(key, None)
        for row in () if changes.removals is None else changes.removals.to_pylist():
            assert row in table.unkeyed, "a row to remove is not there"
            table.unkeyed.remove(row)
        for rows in (changes.inserts.to_pylist(), changes.upserts.to_pylist(), *completed):
            _insert(table, rows)


def check_changes(changes: TableChanges) -> None:
    """Asserts that the changes have the shape `TableChanges` promises."""
    schema = changes.schema
    assert changes.inserts.schema == arrow_schema(schema)
    assert changes.upserts.schema == arrow_schema(schema)
    assert changes.deletes.schema == key_schema(schema)
    final = keys(schema, changes.inserts) + keys(schema, changes.upserts)
    for partial in changes.partials:
        assert partial.unchanged, "a partial row lacks nothing"
        assert not set(partial.unchanged) & set(schema.key), "a key is unknown"
        assert partial.rows.schema == pa.schema(
            [column for column in arrow_schema(schema) if column.name not in partial.unchanged]
        )
        assert partial.origin_keys.schema == key_schema(schema)
        assert partial.origin_keys.num_rows == partial.rows.num_rows > 0
        final += keys(schema, partial.rows)
    if schema.key:
        assert len(set(final)) == len(final), "a key has two final rows"
    else:
        assert not changes.upserts.num_rows
        assert not changes.deletes.num_rows
        assert not changes.partials
    parts = [changes.inserts, changes.upserts, changes.deletes, *(partial.rows for partial in changes.partials)]
    if changes.removals is not None:
        assert schema.is_multiset
        assert changes.removals.schema == arrow_schema(schema)
        assert changes.removals.num_rows
        parts.append(changes.removals)
    for part in parts:
        part.validate(full=True)


def keys(schema: TableSchema, rows: pa.Table) -> list[Key]:
    """The key of every row; none for a table without a key."""
    if not schema.key:
        return []
    return list(zip(*(rows.column(name).to_pylist() for name in schema.key), strict=True))


def _bring_to(table: ModelTable, schema: TableSchema) -> None:
    for row in (*table.rows.values(), *table.unkeyed):
        values: Mapping[str, Any] = dict(row)
        row.clear()
        row.update({name: values.get(name) for name in schema.column_names})
    table.schema = schema


def _complete(table: ModelTable, partial: PartialRows) -> list[Row]:
    completed = []
    for origin, row in zip(keys(table.schema, partial.origin_keys), partial.rows.to_pylist(), strict=True):
        assert origin in table.rows, "the origin of a partial row is missing"
        completed.append({**row, **{name: table.rows[origin][name] for name in partial.unchanged}})
    return completed


def _insert(table: ModelTable, rows: Iterable[Row]) -> None:
    for row in rows:
        if not table.schema.key:
            table.unkeyed.append(row)
            continue
        key = tuple(row[name] for name in table.schema.key)
        assert key not in table.rows, "an inserted row's key exists"
        table.rows[key] = row
