"""PostgreSQL's built-in types: the literal table of their OIDs, and how a type is written for people.

OIDs below 10,000 are fixed for ever (src/include/catalog/pg_type.dat); all others are read from the catalog.
"""

from __future__ import annotations

from etl_core.schema.table import Column, PgType, TypeKind

BOOL = 16
BYTEA = 17
CHAR = 18
NAME = 19
INT8 = 20
INT2 = 21
INT4 = 23
TEXT = 25
OID = 26
XID = 28
JSON = 114
XML = 142
CIDR = 650
FLOAT4 = 700
FLOAT8 = 701
MACADDR8 = 774
MACADDR = 829
INET = 869
BPCHAR = 1042
VARCHAR = 1043
DATE = 1082
TIME = 1083
TIMESTAMP = 1114
TIMESTAMPTZ = 1184
INTERVAL = 1186
TIMETZ = 1266
BIT = 1560
VARBIT = 1562
NUMERIC = 1700
UUID = 2950
PG_LSN = 3220
TSVECTOR = 3614
TSQUERY = 3615
JSONB = 3802
JSONPATH = 4072
XID8 = 5069

# (oid, typname, typarray, typtype), in the order of pg_type.dat's OIDs.
_TYPES: tuple[tuple[int, str, int, TypeKind], ...] = (
    (BOOL, "bool", 1000, TypeKind.BASE),
    (BYTEA, "bytea", 1001, TypeKind.BASE),
    (CHAR, "char", 1002, TypeKind.BASE),
    (NAME, "name", 1003, TypeKind.BASE),
    (INT8, "int8", 1016, TypeKind.BASE),
    (INT2, "int2", 1005, TypeKind.BASE),
    (22, "int2vector", 1006, TypeKind.BASE),
    (INT4, "int4", 1007, TypeKind.BASE),
    (24, "regproc", 1008, TypeKind.BASE),
    (TEXT, "text", 1009, TypeKind.BASE),
    (OID, "oid", 1028, TypeKind.BASE),
    (27, "tid", 1010, TypeKind.BASE),
    (XID, "xid", 1011, TypeKind.BASE),
    (29, "cid", 1012, TypeKind.BASE),
    (30, "oidvector", 1013, TypeKind.BASE),
    (JSON, "json", 199, TypeKind.BASE),
    (XML, "xml", 143, TypeKind.BASE),
    (600, "point", 1017, TypeKind.BASE),
    (601, "lseg", 1018, TypeKind.BASE),
    (602, "path", 1019, TypeKind.BASE),
    (603, "box", 1020, TypeKind.BASE),
    (604, "polygon", 1027, TypeKind.BASE),
    (628, "line", 629, TypeKind.BASE),
    (CIDR, "cidr", 651, TypeKind.BASE),
    (FLOAT4, "float4", 1021, TypeKind.BASE),
    (FLOAT8, "float8", 1022, TypeKind.BASE),
    (718, "circle", 719, TypeKind.BASE),
    (MACADDR8, "macaddr8", 775, TypeKind.BASE),
    (790, "money", 791, TypeKind.BASE),
    (MACADDR, "macaddr", 1040, TypeKind.BASE),
    (INET, "inet", 1041, TypeKind.BASE),
    (1033, "aclitem", 1034, TypeKind.BASE),
    (BPCHAR, "bpchar", 1014, TypeKind.BASE),
    (VARCHAR, "varchar", 1015, TypeKind.BASE),
    (DATE, "date", 1182, TypeKind.BASE),
    (TIME, "time", 1183, TypeKind.BASE),
    (TIMESTAMP, "timestamp", 1115, TypeKind.BASE),
    (TIMESTAMPTZ, "timestamptz", 1185, TypeKind.BASE),
    (INTERVAL, "interval", 1187, TypeKind.BASE),
    (TIMETZ, "timetz", 1270, TypeKind.BASE),
    (BIT, "bit", 1561, TypeKind.BASE),
    (VARBIT, "varbit", 1563, TypeKind.BASE),
    (NUMERIC, "numeric", 1231, TypeKind.BASE),
    (UUID, "uuid", 2951, TypeKind.BASE),
    (PG_LSN, "pg_lsn", 3221, TypeKind.BASE),
    (TSVECTOR, "tsvector", 3643, TypeKind.BASE),
    (TSQUERY, "tsquery", 3645, TypeKind.BASE),
    (JSONB, "jsonb", 3807, TypeKind.BASE),
    (3904, "int4range", 3905, TypeKind.RANGE),
    (3906, "numrange", 3907, TypeKind.RANGE),
    (3908, "tsrange", 3909, TypeKind.RANGE),
    (3910, "tstzrange", 3911, TypeKind.RANGE),
    (3912, "daterange", 3913, TypeKind.RANGE),
    (3926, "int8range", 3927, TypeKind.RANGE),
    (JSONPATH, "jsonpath", 4073, TypeKind.BASE),
    (4451, "int4multirange", 6150, TypeKind.MULTIRANGE),
    (4532, "nummultirange", 6151, TypeKind.MULTIRANGE),
    (4533, "tsmultirange", 6152, TypeKind.MULTIRANGE),
    (4534, "tstzmultirange", 6153, TypeKind.MULTIRANGE),
    (4535, "datemultirange", 6155, TypeKind.MULTIRANGE),
    (4536, "int8multirange", 6157, TypeKind.MULTIRANGE),
    (XID8, "xid8", 271, TypeKind.BASE),
)


def _index() -> dict[int, PgType]:
    index: dict[int, PgType] = {}
    for oid, name, array_oid, kind in _TYPES:
        index[oid] = PgType(oid, name, kind=kind)
        index[array_oid] = PgType(array_oid, f"_{name}", kind=TypeKind.ARRAY, element=index[oid])
    return index


_BUILTIN = _index()


def builtin(oid: int) -> PgType | None:
    """The built-in type with this OID; None if only the catalog knows it."""
    return _BUILTIN.get(oid)


def base_type(pg_type: PgType) -> PgType:
    """The type under a domain (of a domain …), or the type itself."""
    return under_domains(pg_type, -1)[0]


def under_domains(pg_type: PgType, type_modifier: int) -> tuple[PgType, int]:
    """The type under a domain (of a domain …) and the modifier it has there; `pg_type` and `type_modifier` if none.

    A column of a domain has no modifier of its own, and a domain over a domain does not change it.
    """
    while pg_type.kind is TypeKind.DOMAIN and pg_type.element is not None:
        if pg_type.type_modifier >= 0:
            type_modifier = pg_type.type_modifier
        pg_type = pg_type.element
    return pg_type, type_modifier


def numeric_precision(type_modifier: int) -> tuple[int, int] | None:
    """Precision and scale of a `numeric` modifier, None without one. Scale may be negative, or exceed precision.

    https://github.com/postgres/postgres/blob/REL_18_STABLE/src/backend/utils/adt/numeric.c (numeric_typmod_scale):
    the scale is a signed 11-bit number since PostgreSQL 15; 14 wrote 0–1000, which reads the same.
    """
    if type_modifier < 4:
        return None
    packed = type_modifier - 4
    return (packed >> 16) & 0xFFFF, ((packed & 0x7FF) ^ 0x400) - 0x400


def modifiers(column: Column) -> tuple[int, ...]:
    """A column's type modifier, then those of the domains that its type is made of."""
    found = [column.type_modifier]
    pg_type: PgType | None = column.type
    while pg_type is not None:
        if pg_type.kind is TypeKind.DOMAIN:
            found.append(pg_type.type_modifier)
        pg_type = pg_type.element
    return tuple(found)


def format_type(column: Column) -> str:
    """A column's type for messages: `numeric(12,2)`, `varchar(20)[]`, `sales.mood`."""
    return _format(column.type, column.type_modifier)


def _format(pg_type: PgType, type_modifier: int) -> str:
    if pg_type.kind is TypeKind.ARRAY and pg_type.element is not None:
        return f"{_format(pg_type.element, type_modifier)}[]"
    name = pg_type.name if pg_type.namespace == "pg_catalog" else f"{pg_type.namespace}.{pg_type.name}"
    if type_modifier < 0:
        return name
    if pg_type.oid == NUMERIC:
        precision = numeric_precision(type_modifier)
        return f"{name}({precision[0]},{precision[1]})" if precision else name
    if pg_type.oid in (BPCHAR, VARCHAR):
        return f"{name}({type_modifier - 4})"
    if pg_type.oid in (TIME, TIMESTAMP, TIMESTAMPTZ, TIMETZ):
        return f"{name}({type_modifier})"
    return f"{name} (modifier {type_modifier})"
