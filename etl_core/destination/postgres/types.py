"""As which type a column of the source is stored: the same one, if the destination's database has it.

Built-in types are there always. An enum, a domain, a composite, a range and a type of an extension are looked for by
name, and compared with the source's; until the same is there, a domain is the type under it and any other is text,
which loses nothing. So are types whose values name objects of their own database (regclass, aclitem). money is numeric,
and what is made of it text: what its digits mean is said by the locale of the database that holds it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pyarrow as pa
from psycopg import sql

from etl_core.destination.sql.type_change import TypeChange
from etl_core.schema import pg_types
from etl_core.schema.pg_types import (
    builtin,
    is_array_json,
    numeric_modifier,
    numeric_precision,
    parts_of,
    under_domains,
)
from etl_core.schema.table import Column, PgType, TypeKind
from etl_core.values.money import money_type
from etl_core.values.registry import family_of


@dataclass(frozen=True, slots=True)
class FoundType:
    """A type of the destination's database. Others are spelled as format_type does, but without quotes.

    `kind` is `typtype`. `labels` are an enum's, `attributes` a composite's with their types. `under` is the type that a
    domain is made of, with its modifier, or a range or multirange. `is_not_null` says that a domain refuses NULL.
    """

    kind: str
    labels: frozenset[str]
    attributes: tuple[tuple[str, str], ...]
    under: str | None
    is_not_null: bool


TypeNames = Mapping[str, Mapping[str, FoundType | None]]
"""The types of the database that are not built in, by name and namespace; None is taken for the source's."""

_FIRST_USER_OID = 16_384
# As format_type spells them where it is not the name.
_SPELLED = {
    pg_types.BOOL: "boolean",
    pg_types.CHAR: '"char"',
    pg_types.INT2: "smallint",
    pg_types.INT4: "integer",
    pg_types.INT8: "bigint",
    pg_types.FLOAT4: "real",
    pg_types.FLOAT8: "double precision",
    pg_types.VARCHAR: "character varying",
    pg_types.VARBIT: "bit varying",
}
_CLOCKS = {
    pg_types.TIME: ("time", "without time zone"),
    pg_types.TIMETZ: ("time", "with time zone"),
    pg_types.TIMESTAMP: ("timestamp", "without time zone"),
    pg_types.TIMESTAMPTZ: ("timestamp", "with time zone"),
}
_INTERVAL_FIELDS = {"year": 2, "month": 1, "day": 3, "hour": 10, "minute": 11, "second": 12}
"""The bits of a modifier (src/include/utils/datetime.h), from the largest field to the smallest."""
_FULL_PRECISION = 0xFFFF
_NAME_OBJECTS = frozenset(
    {
        pg_types.ACLITEM,
        pg_types.REGCLASS,
        pg_types.REGCOLLATION,
        pg_types.REGCONFIG,
        pg_types.REGDICTIONARY,
        pg_types.REGNAMESPACE,
        pg_types.REGOPER,
        pg_types.REGOPERATOR,
        pg_types.REGPROC,
        pg_types.REGPROCEDURE,
        pg_types.REGROLE,
        pg_types.REGTYPE,
    }
)
_PRINTED_ALONE = frozenset(
    {
        pg_types.PG_NODE_TREE,
        pg_types.GTSVECTOR,
        pg_types.PG_NDISTINCT,
        pg_types.PG_DEPENDENCIES,
        pg_types.PG_MCV_LIST,
        pg_types.PG_BRIN_BLOOM_SUMMARY,
        pg_types.PG_BRIN_MINMAX_MULTI_SUMMARY,
    }
)
"""Types whose text PostgreSQL does not read."""
_TEXT = "text"

# Types with an order, so that a btree index and `=` serve them; `=` of other types may mean less (box: of its area).
_ORDERED = frozenset(
    (
        *("bool", "int2", "int4", "int8", "uint4", "uint8", "float4", "float8", "numeric", "money", "bytea"),
        *("date", "time", "timestamp", "timestamptz", "interval", "timetz", "uuid", "string", "bit"),
    )
)
_ORDERED_OIDS = frozenset({pg_types.INET, pg_types.MACADDR, pg_types.MACADDR8, pg_types.VARBIT, pg_types.PG_LSN})
_NOT_ORDERED = frozenset({pg_types.XID, pg_types.CID})

_NUMBER = re.compile(r"smallint|integer|bigint|numeric(\((?P<precision>\d+),(?P<scale>\d+)\))?")
_TEXTS = re.compile(r"text|character varying(\((?P<length>\d+)\))?")
_INTEGERS = {"smallint": 2**15, "integer": 2**31, "bigint": 2**63}


def read_column(column: Column) -> Column:
    """The column by whose type its text is read back.

    Text is what the source's own type prints, but for money, and for arrays that are JSON.
    """
    pg_type, modifier = _read(column.type, column.type_modifier)
    return replace(column, type=pg_type, type_modifier=modifier)


def _read(pg_type: PgType, modifier: int) -> tuple[PgType, int]:
    if pg_type.oid == pg_types.MONEY:
        return _stored(pg_type, modifier, {})
    if is_array_json(pg_type):
        return replace(pg_type, element=None), modifier
    if not any(part.oid == pg_types.MONEY or is_array_json(part) for part in parts_of(pg_type)):
        return pg_type, modifier
    if pg_type.kind is TypeKind.DOMAIN:
        return _read(*under_domains(pg_type, modifier))
    element = pg_type.element
    if element is not None:
        element, modifier = _read(element, modifier)
    return replace(pg_type, element=element, attributes=tuple(map(read_column, pg_type.attributes))), modifier


def _has_money(pg_type: PgType) -> bool:
    return any(part.oid == pg_types.MONEY for part in parts_of(pg_type))


def type_name(column: Column, known: TypeNames) -> str:
    """The stored type as format_type spells it, which DDL reads too."""
    return _spell(*_stored(column.type, column.type_modifier, known), known)


def is_ordered(column: Column, known: TypeNames) -> bool:
    """Whether the stored type has an order: `=` says that two values are the same, and an index finds them."""
    base, _ = under_domains(*_stored(column.type, column.type_modifier, known))
    while base.kind is TypeKind.ARRAY and base.element is not None:
        base, _ = under_domains(base.element, -1)
    return base.oid in _ORDERED_OIDS or (family_of(base).name in _ORDERED and base.oid not in _NOT_ORDERED)


def is_enum(column: Column, known: TypeNames) -> bool:
    """Whether the column is to be stored as an enum."""
    return _stored(column.type, column.type_modifier, known)[0].kind is TypeKind.ENUM


def _stored(pg_type: PgType, modifier: int, known: TypeNames) -> tuple[PgType, int]:
    if pg_type.kind is TypeKind.ARRAY and pg_type.element is not None:
        element, modifier = _stored(pg_type.element, modifier, known)
        if element.kind is TypeKind.ARRAY and pg_type.element.kind is TypeKind.DOMAIN:  # which is not there
            return _text(), -1
        return replace(pg_type, element=element), modifier
    if pg_type.oid == pg_types.MONEY:
        digits = money_type(max(pg_type.form, 0))
        numeric = builtin(pg_types.NUMERIC)
        if numeric is None or pg_type.form < 0 or not isinstance(digits, pa.Decimal128Type):
            return _text(), -1
        return numeric, numeric_modifier(digits.precision, digits.scale)
    if is_builtin(pg_type):
        is_kept = pg_type.kind is not TypeKind.PSEUDO and pg_type.oid not in _NAME_OBJECTS | _PRINTED_ALONE
        return (pg_type, modifier) if is_kept else (_text(), -1)
    if _namespace(pg_type, known) is not None and not _has_money(pg_type):
        return pg_type, modifier
    if pg_type.kind is TypeKind.DOMAIN and pg_type.element is not None:
        return _stored(*under_domains(pg_type, modifier), known)
    return _text(), -1


def is_missing(pg_type: PgType, known: TypeNames) -> bool:
    """Whether the type would be kept if the database had it."""
    if pg_type.kind in (TypeKind.ARRAY, TypeKind.PSEUDO) or is_builtin(pg_type) or _has_money(pg_type):
        return False
    return _namespace(pg_type, known) is None


def is_builtin(pg_type: PgType) -> bool:
    return pg_type.oid < _FIRST_USER_OID and pg_type.namespace == "pg_catalog"


def _namespace(pg_type: PgType, known: TypeNames) -> str | None:
    """Where a type is in the destination: in its own namespace, or, of an extension, wherever that is installed."""
    found = known.get(pg_type.name, {})
    same = [namespace for namespace, one in found.items() if one is None or _is_same(pg_type, one, known)]
    if pg_type.namespace in same:
        return pg_type.namespace
    return min(same, default=None) if pg_type.kind is TypeKind.BASE else None


def _is_same(pg_type: PgType, found: FoundType, known: TypeNames) -> bool:
    """Whether the values of a source's type are the same in one of that name."""
    if found.kind != pg_type.kind:
        return False
    if pg_type.kind is TypeKind.BASE:
        return True
    if pg_type.kind is TypeKind.ENUM:  # labels that are not known are met, or refused, one by one
        return found.labels.issuperset(pg_type.labels)
    if pg_type.kind is TypeKind.COMPOSITE:
        return found.attributes == tuple((one.name, unquoted(type_name(one, known))) for one in pg_type.attributes)
    if pg_type.element is None or found.is_not_null:  # NULL: a log has the keys alone of rows that were deleted
        return False
    under = _stored(pg_type.element, pg_type.type_modifier, known)
    return found.under == unquoted(_spell(*under, known))


def unquoted(name: str) -> str:
    """A type's name as its two spellings are compared."""
    return name.replace('"', "")


def _text() -> PgType:
    found = builtin(pg_types.TEXT)
    assert found is not None  # noqa: S101 - it is in the table
    return found


def _spell(pg_type: PgType, modifier: int, known: TypeNames) -> str:
    if pg_type.kind is TypeKind.ARRAY and pg_type.element is not None:
        element = _spell(pg_type.element, modifier, known)
        return element if pg_type.element.kind is TypeKind.ARRAY else f"{element}[]"  # of two dimensions
    if not is_builtin(pg_type):
        namespace = _namespace(pg_type, known) or pg_type.namespace
        return sql.Identifier(namespace, pg_type.name).as_string(None)
    if pg_type.oid in _CLOCKS:
        name, zone = _CLOCKS[pg_type.oid]
        return f"{name}{f'({modifier})' if modifier >= 0 else ''} {zone}"
    if pg_type.oid in (pg_types.BPCHAR, pg_types.BIT):
        name = {pg_types.BPCHAR: "character", pg_types.BIT: "bit"}[pg_type.oid]
        length = modifier - 4 if pg_type.oid == pg_types.BPCHAR else modifier
        return f"{name}({length})" if modifier >= 0 else {"character": "bpchar", "bit": '"bit"'}[name]
    if pg_type.oid == pg_types.INTERVAL:
        return _spell_interval(modifier)
    name = _SPELLED.get(pg_type.oid, pg_type.name)
    if pg_type.oid == pg_types.VARCHAR and modifier >= 0:
        return f"{name}({modifier - 4})"
    if pg_type.oid == pg_types.VARBIT and modifier >= 0:
        return f"{name}({modifier})"
    digits = numeric_precision(modifier) if pg_type.oid == pg_types.NUMERIC else None
    return name if digits is None else f"{name}({digits[0]},{digits[1]})"


def _spell_interval(modifier: int) -> str:
    """The fields and the precision that a modifier of `interval` says, as intervaltypmodout does."""
    fields = [field for field, bit in _INTERVAL_FIELDS.items() if modifier >> 16 & 1 << bit]
    if modifier < 0 or not fields:  # PostgreSQL makes none without fields
        return "interval"
    named = "" if len(fields) == len(_INTERVAL_FIELDS) else f" {fields[0]}{f' to {fields[-1]}' if fields[1:] else ''}"
    precision = modifier & 0xFFFF
    return f"interval{named}{'' if precision == _FULL_PRECISION else f'({precision})'}"


def type_change(stored: str, column: Column, known: TypeNames) -> TypeChange:
    """See Dialect. A column that was stored as text because its type was missing stays so until the next copy."""
    stored, wanted = unquoted(stored), unquoted(type_name(column, known))
    if stored in (wanted, unquoted(type_name(column, {}))):
        return TypeChange.NONE
    before, after = _TEXTS.fullmatch(stored), _TEXTS.fullmatch(wanted)
    if before and after:
        grows = after["length"] is None or (before["length"] and int(after["length"]) > int(before["length"]))
        return TypeChange.GROWS if grows else TypeChange.NONE  # what was longer stays
    before, after = _NUMBER.fullmatch(stored), _NUMBER.fullmatch(wanted)
    if before and after and before["precision"] and stored != wanted and wanted.startswith("numeric"):
        is_wider = after["precision"] is None or (
            after["scale"] == before["scale"] and int(after["precision"]) > int(before["precision"])
        )
        if is_wider:
            return TypeChange.GROWS
    if _without_limit(stored) == _without_limit(wanted) and under_domains(column.type, -1)[0].oid in _LIMITED:
        return TypeChange.GROWS
    is_scalar = [bool(_NUMBER.fullmatch(one) or _TEXTS.fullmatch(one) or one == "uuid") for one in (stored, wanted)]
    return TypeChange.COMPARABLE if all(is_scalar) else TypeChange.OTHER


_LIMITED = frozenset({*_CLOCKS, pg_types.INTERVAL, pg_types.VARBIT})
"""Types whose modifier is a limit alone."""


def _without_limit(name: str) -> str:
    return re.sub(r"\(\d+\)", "", name)


def carried(value: sql.Composable, stored: str, wanted: str) -> sql.Composable | None:
    """A value of one type in another, NULL where it is not the same there; None where that is not known."""
    if not (_is_exact(stored) and _is_exact(wanted)):
        return None
    number, limit = _NUMBER.fullmatch(wanted), _TEXTS.fullmatch(wanted)
    if limit:
        text = sql.SQL("CAST({} AS text)").format(value)
        if limit["length"] is None:
            return text
        query = sql.SQL("CASE WHEN length({}) <= {} THEN {} END")
        return query.format(text, sql.SQL(limit["length"]), text)
    exact = sql.SQL("CAST({} AS numeric)").format(value)
    if _TEXTS.fullmatch(stored):  # what is printed so again
        canonical = sql.SQL("CASE WHEN {v} ~ '^(0|-?[1-9][0-9]*)$' THEN CAST({v} AS numeric) END")
        if number and number["precision"]:
            canonical = sql.SQL("CASE WHEN {v} ~ '^-?(0|[1-9][0-9]*)(\\.[0-9]+)?$' THEN CAST({v} AS numeric) END")
        exact = canonical.format(v=value)
    if wanted in _INTEGERS:
        bound = sql.SQL(str(_INTEGERS[wanted]))
        fits = sql.SQL("{e} = trunc({e}) AND {e} >= -{b} AND {e} < {b}").format(e=exact, b=bound)
    elif number and number["precision"]:
        precision, scale = int(number["precision"]), int(number["scale"])
        fits = sql.SQL("{e} = round({e}, {s}) AND abs({e}) < 1e{d}").format(
            e=exact, s=sql.SQL(str(scale)), d=sql.SQL(str(precision - scale))
        )
    else:
        return exact
    return sql.SQL("CASE WHEN {} THEN CAST({} AS {}) END").format(fits, exact, sql.SQL(wanted))


def _is_exact(name: str) -> bool:
    return bool(_NUMBER.fullmatch(name) or _TEXTS.fullmatch(name))
