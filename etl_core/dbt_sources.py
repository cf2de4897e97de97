"""Replicated tables as dbt sources: the text of a `sources.yml`.

dbt: https://docs.getdbt.com/reference/source-properties. `config.meta.dagster.asset_key` is what dagster-dbt takes for
the key of a source's asset; without it the key would be the source's name and the table's.

The order is that of names and columns and nothing depends on the time, so that a difference between two such files is
one between the tables.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

import yaml

from etl_core.destination.reader_names import ReaderNames
from etl_core.errors import PermanentError
from etl_core.identifiers import TableName
from etl_core.schema.table import TableSchema
from etl_core.state.store import StateStore

_Properties: TypeAlias = dict[str, object]

_NOT_IN_NAMES = re.compile("[^A-Za-z0-9_]")
_JINJA = re.compile(r"\{(?=[{%#])")

# Quoted, a name is right whatever it is (a reserved word, capitals, a space), and a plain one stays the same.
_QUOTING = {"database": True, "schema": True, "identifier": True, "column": True}


def dbt_sources(
    store: StateStore,
    pipeline: str,
    readers: ReaderNames,
    target: Callable[[TableSchema], TableSchema],
    asset_key: Callable[[TableName], Sequence[str]],
    header: str,
) -> str:
    """One dbt source for each schema of the destination, called `<pipeline>_<schema>`, with all tables of the pipeline.

    Columns are those of the last copy or schema change; a table that was never copied has none yet. `target` gives
    what a table is at the destination, `asset_key` the key of a table's asset, `header` the lines of the comment at the
    top. Raises PermanentError if the pipeline has no tables.
    """
    tables: dict[str, list[_Properties]] = {}
    for name, schema in _tables(store, pipeline, target):
        dataset, relation = readers.path(name)
        tables.setdefault(dataset, []).append(_table(relation, readers, schema, asset_key(name)))
    sources = [_source(pipeline, readers.database, dataset, tables[dataset]) for dataset in sorted(tables)]
    text = yaml.safe_dump(
        _unrendered({"version": 2, "sources": sources}),
        sort_keys=False,
        allow_unicode=True,
        width=10_000,  # a changed word of a comment is one changed line
    )
    return "".join(f"# {line}\n" for line in header.splitlines()) + text


def _tables(
    store: StateStore, pipeline: str, target: Callable[[TableSchema], TableSchema]
) -> list[tuple[TableName, TableSchema | None]]:
    found = []
    for status in sorted(store.tables(), key=lambda status: status.name):
        stored = store.schema(status.table_id)
        found.append((status.name, None if stored is None else target(stored[1])))
    if not found:
        raise PermanentError(
            f"pipeline {pipeline} has no tables yet, so there are no sources for dbt",
            hint="they are known from its first start on: etl run",
        )
    return found


def _source(pipeline: str, database: str, dataset: str, tables: Sequence[_Properties]) -> _Properties:
    return {
        "name": _dbt_name(f"{pipeline}_{dataset}"),
        "description": f"Tables that pipeline {pipeline} replicates from PostgreSQL.",
        "database": database,
        "schema": dataset,
        "quoting": dict(_QUOTING),
        "tables": tables,
    }


def _table(relation: str, readers: ReaderNames, schema: TableSchema | None, key: Sequence[str]) -> _Properties:
    name = _dbt_name(relation)
    table: _Properties = {"name": name}
    if name != relation:
        table["identifier"] = relation
    if schema is not None and schema.comment:
        table["description"] = schema.comment
    table["config"] = {"meta": {"dagster": {"asset_key": [*key]}}}
    if schema is not None:
        comments = {column.name: column.comment for column in schema.columns}
        table["columns"] = [
            _column(column.name, column.type, comments[column.source]) for column in readers.columns(schema)
        ]
    return table


def _column(name: str, type_: str, comment: str | None) -> _Properties:
    column: _Properties = {"name": name, "data_type": type_}
    return {**column, "description": comment} if comment else column


def _dbt_name(name: str) -> str:
    """What models write in `source('…', '…')`. A digest of the name follows if not all of it could be in it."""
    plain = _NOT_IN_NAMES.sub("_", name)
    return name if plain == name else f"{plain}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _unrendered(value: object) -> object:
    """`value` so that dbt's Jinja renders all its texts to what they were: names and comments may have braces."""
    match value:
        case str():
            return _JINJA.sub("{{ '{' }}", value)
        case dict():
            return {name: _unrendered(inner) for name, inner in value.items()}
        case list():
            return [_unrendered(inner) for inner in value]
    return value
