"""How a PostgreSQL column is stored in an Iceberg table, by the types that DuckDB writes there.

Iceberg has no smallint, no unsigned number, no interval, no JSON, no enum and no list of a fixed length: smallint is
int, an unsigned 64-bit number decimal(20,0), a list of a fixed length a list, and the others are text. uuid is uuid.
"""

from __future__ import annotations

import re

import pyarrow as pa

from etl_core.destination.duckdb_sql.types import of_arrow, quoted, type_change
from etl_core.destination.sql.type_change import TypeChange
from etl_core.schema.pg_types import under_domains
from etl_core.schema.table import Column, PgType, TypeKind
from etl_core.values.arrow import arrow_type
from etl_core.values.registry import family_of

_OTHERWISE = {"SMALLINT": "INTEGER", "UBIGINT": "DECIMAL(20,0)", "INTERVAL": "VARCHAR"}
"""DuckDB's types that Iceberg does not have, and what holds each of their values."""
_WIDER = {("INTEGER", "BIGINT"), ("FLOAT", "DOUBLE")}
"""(before, after): what an Iceberg table can be altered to without writing its files anew."""
_NESTED = re.compile(r"\]|^(STRUCT|MAP)\(")


def iceberg_type(column: Column) -> str:
    """The type of a column, as DuckDB spells it."""
    return _stored(arrow_type(column), column.type, column.type_modifier)


def handed_over(column: Column) -> str:
    """What DuckDB takes the column's Arrow values for."""
    return of_arrow(arrow_type(column))


def iceberg_type_change(described: str, wanted: str) -> TypeChange:
    """See Dialect."""
    if (described, wanted) in _WIDER:
        return TypeChange.GROWS
    found = type_change(described, wanted)
    if found is TypeChange.GROWS and _NESTED.search(wanted):
        return TypeChange.OTHER  # what is within a list or a struct cannot be altered
    return found


def _stored(arrow: pa.DataType, pg_type: PgType, type_modifier: int) -> str:
    base, type_modifier = under_domains(pg_type, type_modifier)
    if isinstance(arrow, pa.ListType) and base.kind is TypeKind.ARRAY and base.element is not None:
        return _stored(arrow.value_type, base.element, type_modifier) + "[]"
    if pa.types.is_string(arrow) and family_of(base).name == "uuid":
        return "UUID"
    return _of_arrow(arrow)


def _of_arrow(arrow: pa.DataType) -> str:
    if isinstance(arrow, pa.ListType | pa.FixedSizeListType):
        return _of_arrow(arrow.value_type) + "[]"
    if isinstance(arrow, pa.MapType):
        return f"MAP({_of_arrow(arrow.key_type)}, {_of_arrow(arrow.item_type)})"
    if isinstance(arrow, pa.StructType):
        return f"STRUCT({', '.join(f'{quoted(field.name)} {_of_arrow(field.type)}' for field in arrow)})"
    plain = of_arrow(arrow)
    return _OTHERWISE.get(plain, plain)
