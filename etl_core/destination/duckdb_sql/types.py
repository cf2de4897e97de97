"""How a PostgreSQL column is stored in DuckDB, and how its Arrow values get in and out unchanged.

The DuckDB type follows from the Arrow type, but for text: uuid is UUID, json and jsonb are JSON, bit(n) is BIT and
timetz TIME WITH TIME ZONE; a numeric that is text stays VARCHAR, as does an enum, unless the settings say otherwise,
and every text in a STRUCT. So
do bit varying and bit without a length: DuckDB's BIT cannot be empty. JSON is handed over under Arrow's extension name,
so that DuckDB stores the text as it is: its cast from VARCHAR parses every value and refuses some that PostgreSQL
accepts (a lone surrogate). DuckDB before 2.0 holds a timetz with an offset of seconds but no minutes, and prints it
with minutes.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa

from etl_core.destination.sql.type_change import TypeChange
from etl_core.schema.pg_types import is_enum, under_domains
from etl_core.schema.table import Column, PgType, TypeKind
from etl_core.values.arrow import arrow_field, arrow_type
from etl_core.values.registry import family_of
from etl_core.values.text import fixed_width

# In DuckDB's own spelling, which DESCRIBE answers with.
_TYPES: dict[pa.DataType, str] = {
    pa.bool_(): "BOOLEAN",
    pa.int16(): "SMALLINT",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.uint64(): "UBIGINT",
    pa.float32(): "FLOAT",
    pa.float64(): "DOUBLE",
    pa.string(): "VARCHAR",
    pa.binary(): "BLOB",
    pa.date32(): "DATE",
    pa.time64("us"): "TIME",
    pa.timestamp("us"): "TIMESTAMP",
    pa.timestamp("us", tz="UTC"): "TIMESTAMP WITH TIME ZONE",
    pa.month_day_nano_interval(): "INTERVAL",
}
_OF_FAMILIES = {"uuid": "UUID", "json": "JSON", "bit": "BIT", "timetz": "TIME WITH TIME ZONE"}
"""Where the family says more than the Arrow type, which is text."""
_CAST = frozenset(_OF_FAMILIES.values()) - {"JSON"}

_DECIMAL = re.compile(r"DECIMAL\((\d+),(\d+)\)")
_ENUM = "ENUM("
_LABEL = re.compile(r"'((?:[^']|'')*)'")
_OPAQUE = ("BLOB", "STRUCT", "MAP")

_JSON_FIELD: dict[bytes | str, bytes | str] = {"ARROW:extension:name": "arrow.json", "ARROW:extension:metadata": ""}


def duckdb_type(column: Column) -> str:
    """The DuckDB type of a column, as DESCRIBE spells it."""
    return _duckdb_type(arrow_type(column), column.type, column.type_modifier)


def _duckdb_type(arrow: pa.DataType, pg_type: PgType, type_modifier: int) -> str:
    base, type_modifier = under_domains(pg_type, type_modifier)
    if isinstance(arrow, pa.ListType) and base.kind is TypeKind.ARRAY and base.element is not None:
        return _duckdb_type(arrow.value_type, base.element, type_modifier) + "[]"
    if is_enum(base):
        return f"ENUM({', '.join(map(_literal, base.labels))})"
    family = family_of(base).name
    if family == "bit" and type_modifier < 1:
        return of_arrow(arrow)  # of any length, none too
    return _OF_FAMILIES.get(family) or of_arrow(arrow)


def of_arrow(arrow: pa.DataType) -> str:
    if isinstance(arrow, pa.Decimal128Type):
        return f"DECIMAL({arrow.precision},{arrow.scale})"
    if isinstance(arrow, pa.ListType):
        return of_arrow(arrow.value_type) + "[]"
    if isinstance(arrow, pa.FixedSizeListType):
        return f"{of_arrow(arrow.value_type)}[{arrow.list_size}]"
    if isinstance(arrow, pa.MapType):
        return f"MAP({of_arrow(arrow.key_type)}, {of_arrow(arrow.item_type)})"
    if isinstance(arrow, pa.StructType):
        return f"STRUCT({', '.join(f'{quoted(field.name)} {of_arrow(field.type)}' for field in arrow)})"
    return _TYPES[arrow]


def quoted(name: str) -> str:
    doubled = name.replace('"', '""')
    return f'"{doubled}"'


def _literal(label: str) -> str:
    doubled = label.replace("'", "''")
    return f"'{doubled}'"


def is_stored_as(wanted: str, described: str) -> bool:
    """Whether DESCRIBE says that a column has its type. It quotes the fields of a STRUCT only where it must."""
    return described == wanted or (
        not wanted.startswith(_ENUM) and described.replace('"', "") == wanted.replace('"', "")
    )


def type_change(described: str, wanted: str) -> TypeChange:
    """See Dialect. `described` is what DESCRIBE says of the column."""
    if is_stored_as(wanted, described):
        return TypeChange.NONE
    before, after = _DECIMAL.fullmatch(described), _DECIMAL.fullmatch(wanted)
    if before and after and before[2] == after[2] and int(before[1]) <= int(after[1]):
        return TypeChange.GROWS
    if _is_wider_enum(described, wanted):
        return TypeChange.GROWS
    is_opaque = any(kind.endswith("]") or kind.startswith(_OPAQUE) for kind in (described, wanted))
    return TypeChange.OTHER if is_opaque else TypeChange.COMPARABLE


def is_cast(stored: str) -> bool:
    """Whether the column's Arrow values, which are text, are cast to what is stored."""
    element = _element(stored)
    return element in _CAST or element.startswith(_ENUM)


def text_form(stored: str) -> str | None:
    """The type to cast to so that a stored column comes out as its Arrow text, None for one that needs no cast."""
    element = _element(stored)
    is_text = element in _OF_FAMILIES.values() or element.startswith(_ENUM)
    return "VARCHAR" + stored[len(element) :] if is_text else None


def _element(stored: str) -> str:
    """The type in a list, in lists of lists too: of arrays of a domain over an array."""
    while stored.endswith("[]"):
        stored = stored.removesuffix("[]")
    return stored


def _is_wider_enum(before: str, after: str) -> bool:
    """Of two types, whether both are enums, or lists of them, and the second has all labels of the first."""
    enums = _element(before), _element(after)
    if before[len(enums[0]) :] != after[len(enums[1]) :] or not all(enum.startswith(_ENUM) for enum in enums):
        return False
    old, new = (set(_LABEL.findall(enum)) for enum in enums)
    return old <= new


def without_offsets(rows: pa.Table) -> pa.Table:
    """`rows` with a copy of each column that has structs, which begins where its memory does.

    DuckDB 2.0 refuses a slice of such an array, as its conversion would read the values of other rows.
    """
    for at, column in enumerate(rows.columns):
        if _has_struct(column.type):
            every = [fixed_width(pa.int64(), np.arange(len(chunk)), None) for chunk in column.chunks]
            copies = [chunk.take(places) for chunk, places in zip(column.chunks, every, strict=True)]
            rows = rows.set_column(at, rows.schema.field(at), pa.chunked_array(copies, column.type))
    return rows


def _has_struct(arrow: pa.DataType) -> bool:
    if pa.types.is_struct(arrow):
        return True
    return pa.types.is_nested(arrow) and any(_has_struct(arrow.field(at).type) for at in range(arrow.num_fields))


def tagged_field(column: Column, stored: str) -> pa.Field[Any]:
    """The Arrow field of `column`, under Arrow's name for JSON if it is stored as that."""
    field = arrow_field(column)
    return _tagged(field) if _element(stored) == "JSON" else field


def _tagged(field: pa.Field[Any]) -> pa.Field[Any]:
    if isinstance(field.type, pa.ListType):
        return pa.field(field.name, pa.list_(_tagged(field.type.value_field)))
    return field.with_metadata(_JSON_FIELD)
