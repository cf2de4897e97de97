"""Which types that a table's columns have are not in the destination's database, and what is stored instead."""

from __future__ import annotations

from collections.abc import Sequence

from etl_core.destination.doctor import MissingType
from etl_core.destination.postgres.types import TypeNames, is_missing, type_name
from etl_core.schema.pg_types import parts_of
from etl_core.schema.table import PgType, TableSchema, TypeKind


def missing_types(schemas: Sequence[TableSchema], known: TypeNames) -> list[MissingType]:
    """Each after those that it is made of. A multirange comes with its range."""
    columns: dict[int, list[str]] = {}
    found: dict[int, tuple[PgType, str]] = {}
    for schema in schemas:
        for column in schema.columns:
            missing = [part for part in parts_of(column.type) if is_missing(part, known)]
            names = {part.oid for part in missing}
            for part in missing:
                if part.kind is TypeKind.MULTIRANGE and part.element is not None and part.element.oid in names:
                    continue
                found.setdefault(part.oid, (part, type_name(column, known)))
                columns.setdefault(part.oid, []).append(f"{schema.name}.{column.name}")
    return [
        MissingType(part, stored, tuple(columns[oid]), part.namespace in known.get(part.name, {}))
        for oid, (part, stored) in found.items()
    ]
