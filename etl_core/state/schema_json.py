"""A table's schema as JSON and back: how the stores keep schema versions.

The JSON is ASCII text, so a NUL in a default value survives stores whose text or JSON types refuse one.
"""

from __future__ import annotations

import json
from typing import Any

from etl_core.errors import PermanentError
from etl_core.identifiers import TableId, TableName
from etl_core.schema.pg_types import builtin
from etl_core.schema.table import Column, PgType, ReplicaIdentity, TableSchema, TypeKind


def schema_to_json(schema: TableSchema) -> str:
    """The schema as one JSON object; `schema_from_json` gives an equal schema back."""
    return json.dumps(
        {
            "table_id": schema.table_id,
            "namespace": schema.name.namespace,
            "name": schema.name.name,
            "columns": [_column_to_object(column) for column in schema.columns],
            "key": schema.key,
            "replica_identity": schema.replica_identity,
            "comment": schema.comment,
            # Older versions do not know it, and have no table that needs it.
            **({} if schema.kept is None else {"kept": [_column_to_object(column) for column in schema.kept]}),
        },
        separators=(",", ":"),
    )


def schema_from_json(text: str) -> TableSchema:
    """Raises PermanentError if `text` is not what `schema_to_json` writes."""
    try:
        stored = json.loads(text)
        return TableSchema(
            table_id=TableId(stored["table_id"]),
            name=TableName(stored["namespace"], stored["name"]),
            columns=tuple(_column_from_object(column) for column in stored["columns"]),
            key=tuple(stored["key"]),
            replica_identity=ReplicaIdentity(stored["replica_identity"]),
            kept=tuple(_column_from_object(column) for column in stored["kept"]) if "kept" in stored else None,
            comment=stored.get("comment"),
        )
    except (KeyError, TypeError, ValueError):
        # A default value may stand in the text, so the parser's words are not passed on.
        raise PermanentError(
            "a schema in the state store cannot be read",
            hint="the store was written by another program or damaged: restore it from a backup, or re-sync the table",
        ) from None


def _column_to_object(column: Column) -> dict[str, Any]:
    # Left out where there is none: a schema without it is written as by the versions that did not know it.
    digits = {} if column.fraction_digits is None else {"fraction_digits": column.fraction_digits}
    return {
        "name": column.name,
        "type": _type_to_object(column.type),
        "type_modifier": column.type_modifier,
        "nullable": column.nullable,
        "attnum": column.attnum,
        "missing_value": column.missing_value,
        "comment": column.comment,
        **digits,
    }


def _column_from_object(stored: dict[str, Any]) -> Column:
    return Column(
        name=stored["name"],
        type=_type_from_object(stored["type"]),
        type_modifier=stored["type_modifier"],
        nullable=stored["nullable"],
        attnum=stored["attnum"],
        missing_value=stored["missing_value"],
        comment=stored.get("comment"),
        fraction_digits=stored.get("fraction_digits"),
    )


def _type_to_object(type_: PgType) -> dict[str, Any]:
    return {
        "oid": type_.oid,
        "name": type_.name,
        "namespace": type_.namespace,
        "kind": type_.kind,
        "element": None if type_.element is None else _type_to_object(type_.element),
        "type_modifier": type_.type_modifier,
        "attributes": [_column_to_object(attribute) for attribute in type_.attributes],
        "delimiter": type_.delimiter,
        "form": type_.form,
        "labels": type_.labels,
    }


def _type_from_object(stored: dict[str, Any]) -> PgType:
    element = stored["element"]
    part = builtin(stored["oid"]) if element is None else _type_from_object(element)
    return PgType(
        oid=stored["oid"],
        name=stored["name"],
        namespace=stored["namespace"],
        kind=TypeKind(stored["kind"]),
        element=None if element is None else part,
        type_modifier=stored.get("type_modifier", -1),
        attributes=tuple(_column_from_object(attribute) for attribute in stored.get("attributes", ())),
        delimiter=stored.get("delimiter", "," if part is None else part.delimiter),
        form=stored.get("form", -1),
        labels=tuple(stored.get("labels", ())),
    )
