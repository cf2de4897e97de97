"""What each PostgreSQL type becomes in each destination: the reference page, made from the table of type families."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from etl_core.destination.declaration import DestinationType
from etl_core.destination.registry import FoundType
from etl_core.identifiers import TableId, TableName
from etl_core.schema import pg_types
from etl_core.schema.pg_types import builtin, numeric_modifier
from etl_core.schema.table import Column, PgType, TableSchema, TypeKind
from etl_core.type_options import DECIMAL_DIGITS, NUMERIC
from etl_core.values.digits import LEAST_FRACTION
from etl_core.values.families import FAMILIES, UNKNOWN
from etl_core.values.family import TypeFamily
from etl_core.values.numeric import is_declared

_OWN_OID = 70_000
"""Of a type that is not built in: any number from 16,384 on."""
_KINDS = {TypeKind.ENUM: "enums", TypeKind.RANGE: "ranges", TypeKind.MULTIRANGE: "multiranges"}

_COUNTED = numeric_modifier(DECIMAL_DIGITS, LEAST_FRACTION)
"""What a copy makes of numerics by `types.numeric: auto` where no value has more digits after the point."""

# Where a type's values are stored by what a column declares, or its database's locale: the columns to show.
_DECLARED: Mapping[str, tuple[tuple[str, int], ...]] = {
    "numeric": (
        ("numeric(10,2)", numeric_modifier(10, 2)),
        ("numeric(38,20)", numeric_modifier(38, 20)),
        ("numeric(50,2)", numeric_modifier(50, 2)),
        ("numeric", -1),
    ),
    "bit": (("bit(n)", 3),),
    "vector": (("vector(3)", 3), ("vector", -1)),
    "halfvec": (("halfvec(3)", 3), ("halfvec", -1)),
}
_MONEY = (("money of yen", 0), ("money of dollars", 2), ("money of dinars", 3))
_QUOTES = str.maketrans("", "", '`"')
"""Around names, where they need none."""
_TEXT, _INT4 = PgType(pg_types.TEXT, "text"), PgType(pg_types.INT4, "int4")
_PAIR = PgType(_OWN_OID, "pair", "public", TypeKind.COMPOSITE, attributes=(Column("a", _INT4), Column("b", _TEXT)))
_THING = PgType(_OWN_OID, "thing", "public")


def types_page(types: Mapping[str, DestinationType]) -> str:
    """The reference page, in Markdown. A destination that does not tell its types is left out."""
    told = {name: _Spelling(name, declared) for name, declared in types.items() if declared.reader_names is not None}
    rows: dict[tuple[str, ...], list[str]] = {}
    for family, label, column in _columns():
        stored = [spelling(column) for spelling in told.values()]
        rows.setdefault((family, *stored), []).append(label)
    lines = [
        "# What each PostgreSQL type becomes",
        "",
        "Written by `make docs` from `etl_core/values/families.py` and what the destinations say. Do not edit.",
        "",
        "A domain is stored as its base type is, an array as a list of what its elements are, in lists of lists and in",
        "composites too. `numeric` without a precision, or of more than 38 digits, is what `types.numeric: auto` makes",
        "of it where no value has more than 9 digits after the point. [Types](../types.md) tells what the values are.",
        "",
        f"| PostgreSQL | {' | '.join(told)} |",
        f"| --- |{' --- |' * len(told)}",
        *(f"| {', '.join(labels)} | {' | '.join(stored)} |" for (_, *stored), labels in rows.items()),
    ]
    return "\n".join(lines) + "\n"


def _columns() -> Iterator[tuple[str, str, Column]]:
    """For each type its family, what stands in the first column of the page, and a column of it."""
    for family in FAMILIES:
        for label, column in _of_family(family):
            yield family.name, label, column
    yield "array", "arrays: `text[]`", Column("c", PgType(_OWN_OID, "_text", kind=TypeKind.ARRAY, element=_TEXT))
    yield "composite", "composites and row types: `(a int4, b text)`", Column("c", _PAIR)
    yield UNKNOWN.name, "types that no family knows", Column("c", _THING)


def _of_family(family: TypeFamily) -> Iterator[tuple[str, Column]]:
    if family.oids == (pg_types.MONEY,):
        for label, decimals in _MONEY:
            yield label, Column("c", PgType(pg_types.MONEY, "money", form=decimals))
        return
    for pg_type in (*filter(None, map(builtin, family.oids)), *(_extension(name) for name in family.names)):
        for label, modifier in _DECLARED.get(pg_type.name, ((pg_type.name, -1),)):
            yield f"`{label}`", Column("c", pg_type, modifier)
    for kind in family.kinds:
        yield _KINDS[kind], Column("c", PgType(_OWN_OID, "mine", "public", kind))


def _extension(name: str) -> PgType:
    return PgType(_OWN_OID, name, "public", form=0)


class _Spelling:
    """How a destination spells the type of a column, with the options that it cannot do without."""

    def __init__(self, name: str, declared: DestinationType) -> None:
        found = FoundType(name, "the reference", declared)
        options = {option.name: option.example for option in declared.options or () if option.required}
        self._names = found.reader_names(found.read_options(options))
        self._counts = NUMERIC not in declared.types

    def __call__(self, column: Column) -> str:
        if column.type.oid == pg_types.NUMERIC and self._counts and not is_declared(column.type_modifier):
            column = replace(column, type_modifier=_COUNTED)
        schema = TableSchema(TableId(1), TableName("public", "t"), (column,), ())
        (told,) = [] if self._names is None else self._names.columns(schema)
        return f"`{told.type.translate(_QUOTES)}`"
