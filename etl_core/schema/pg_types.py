"""PostgreSQL's built-in types: the literal table of their OIDs, and how a type is written for people.

OIDs below 10,000 are fixed for ever (src/include/catalog/pg_type.dat); all others are read from the catalog.
"""

from __future__ import annotations

from collections.abc import Iterator

from etl_core.schema.table import Column, PgType, TypeKind

BOOL = 16
BYTEA = 17
CHAR = 18
NAME = 19
INT8 = 20
INT2 = 21
INT2VECTOR = 22
INT4 = 23
REGPROC = 24
TEXT = 25
OID = 26
TID = 27
XID = 28
CID = 29
OIDVECTOR = 30
JSON = 114
XML = 142
PG_NODE_TREE = 194
POINT = 600
LSEG = 601
PATH = 602
BOX = 603
POLYGON = 604
LINE = 628
CIDR = 650
FLOAT4 = 700
FLOAT8 = 701
CIRCLE = 718
MACADDR8 = 774
MONEY = 790
MACADDR = 829
INET = 869
ACLITEM = 1033
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
REFCURSOR = 1790
REGPROCEDURE = 2202
REGOPER = 2203
REGOPERATOR = 2204
REGCLASS = 2205
REGTYPE = 2206
UUID = 2950
TXID_SNAPSHOT = 2970
CSTRING = 2275
ANYARRAY = 2277
PG_LSN = 3220
PG_NDISTINCT = 3361
PG_DEPENDENCIES = 3402
TSVECTOR = 3614
TSQUERY = 3615
GTSVECTOR = 3642
REGCONFIG = 3734
REGDICTIONARY = 3769
JSONB = 3802
JSONPATH = 4072
REGNAMESPACE = 4089
REGROLE = 4096
REGCOLLATION = 4191
PG_BRIN_BLOOM_SUMMARY = 4600
PG_BRIN_MINMAX_MULTI_SUMMARY = 4601
PG_MCV_LIST = 5017
PG_SNAPSHOT = 5038
XID8 = 5069

WKB_TYPES = ("geometry", "geography", "raster")
"""PostGIS's types whose text is bytes in hexadecimal: EWKB, or a raster's own."""

# (oid, typname, typarray or 0, typtype), in the order of pg_type.dat's OIDs.
_TYPES: tuple[tuple[int, str, int, TypeKind], ...] = (
    (BOOL, "bool", 1000, TypeKind.BASE),
    (BYTEA, "bytea", 1001, TypeKind.BASE),
    (CHAR, "char", 1002, TypeKind.BASE),
    (NAME, "name", 1003, TypeKind.BASE),
    (INT8, "int8", 1016, TypeKind.BASE),
    (INT2, "int2", 1005, TypeKind.BASE),
    (INT2VECTOR, "int2vector", 1006, TypeKind.BASE),
    (INT4, "int4", 1007, TypeKind.BASE),
    (REGPROC, "regproc", 1008, TypeKind.BASE),
    (TEXT, "text", 1009, TypeKind.BASE),
    (OID, "oid", 1028, TypeKind.BASE),
    (TID, "tid", 1010, TypeKind.BASE),
    (XID, "xid", 1011, TypeKind.BASE),
    (CID, "cid", 1012, TypeKind.BASE),
    (OIDVECTOR, "oidvector", 1013, TypeKind.BASE),
    (JSON, "json", 199, TypeKind.BASE),
    (XML, "xml", 143, TypeKind.BASE),
    (PG_NODE_TREE, "pg_node_tree", 0, TypeKind.BASE),
    (POINT, "point", 1017, TypeKind.BASE),
    (LSEG, "lseg", 1018, TypeKind.BASE),
    (PATH, "path", 1019, TypeKind.BASE),
    (BOX, "box", 1020, TypeKind.BASE),
    (POLYGON, "polygon", 1027, TypeKind.BASE),
    (LINE, "line", 629, TypeKind.BASE),
    (CIDR, "cidr", 651, TypeKind.BASE),
    (FLOAT4, "float4", 1021, TypeKind.BASE),
    (FLOAT8, "float8", 1022, TypeKind.BASE),
    (CIRCLE, "circle", 719, TypeKind.BASE),
    (MACADDR8, "macaddr8", 775, TypeKind.BASE),
    (MONEY, "money", 791, TypeKind.BASE),
    (MACADDR, "macaddr", 1040, TypeKind.BASE),
    (INET, "inet", 1041, TypeKind.BASE),
    (ACLITEM, "aclitem", 1034, TypeKind.BASE),
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
    (REFCURSOR, "refcursor", 2201, TypeKind.BASE),
    (REGPROCEDURE, "regprocedure", 2207, TypeKind.BASE),
    (REGOPER, "regoper", 2208, TypeKind.BASE),
    (REGOPERATOR, "regoperator", 2209, TypeKind.BASE),
    (REGCLASS, "regclass", 2210, TypeKind.BASE),
    (REGTYPE, "regtype", 2211, TypeKind.BASE),
    (UUID, "uuid", 2951, TypeKind.BASE),
    (TXID_SNAPSHOT, "txid_snapshot", 2949, TypeKind.BASE),
    (CSTRING, "cstring", 1263, TypeKind.PSEUDO),
    (ANYARRAY, "anyarray", 0, TypeKind.PSEUDO),
    (PG_LSN, "pg_lsn", 3221, TypeKind.BASE),
    (PG_NDISTINCT, "pg_ndistinct", 0, TypeKind.BASE),
    (PG_DEPENDENCIES, "pg_dependencies", 0, TypeKind.BASE),
    (TSVECTOR, "tsvector", 3643, TypeKind.BASE),
    (TSQUERY, "tsquery", 3645, TypeKind.BASE),
    (GTSVECTOR, "gtsvector", 3644, TypeKind.BASE),
    (REGCONFIG, "regconfig", 3735, TypeKind.BASE),
    (REGDICTIONARY, "regdictionary", 3770, TypeKind.BASE),
    (JSONB, "jsonb", 3807, TypeKind.BASE),
    (3904, "int4range", 3905, TypeKind.RANGE),
    (3906, "numrange", 3907, TypeKind.RANGE),
    (3908, "tsrange", 3909, TypeKind.RANGE),
    (3910, "tstzrange", 3911, TypeKind.RANGE),
    (3912, "daterange", 3913, TypeKind.RANGE),
    (3926, "int8range", 3927, TypeKind.RANGE),
    (JSONPATH, "jsonpath", 4073, TypeKind.BASE),
    (REGNAMESPACE, "regnamespace", 4090, TypeKind.BASE),
    (REGROLE, "regrole", 4097, TypeKind.BASE),
    (REGCOLLATION, "regcollation", 4192, TypeKind.BASE),
    (4451, "int4multirange", 6150, TypeKind.MULTIRANGE),
    (4532, "nummultirange", 6151, TypeKind.MULTIRANGE),
    (4533, "tsmultirange", 6152, TypeKind.MULTIRANGE),
    (4534, "tstzmultirange", 6153, TypeKind.MULTIRANGE),
    (4535, "datemultirange", 6155, TypeKind.MULTIRANGE),
    (4536, "int8multirange", 6157, TypeKind.MULTIRANGE),
    (PG_BRIN_BLOOM_SUMMARY, "pg_brin_bloom_summary", 0, TypeKind.BASE),
    (PG_BRIN_MINMAX_MULTI_SUMMARY, "pg_brin_minmax_multi_summary", 0, TypeKind.BASE),
    (PG_MCV_LIST, "pg_mcv_list", 0, TypeKind.BASE),
    (PG_SNAPSHOT, "pg_snapshot", 5039, TypeKind.BASE),
    (XID8, "xid8", 271, TypeKind.BASE),
)


# The subtype of each range, the range of each multirange (pg_range.dat).
_PARTS = {
    3904: INT4,
    3906: NUMERIC,
    3908: TIMESTAMP,
    3910: TIMESTAMPTZ,
    3912: DATE,
    3926: INT8,
    4451: 3904,
    4532: 3906,
    4533: 3908,
    4534: 3910,
    4535: 3912,
    4536: 3926,
}


def _index() -> dict[int, PgType]:
    index: dict[int, PgType] = {}
    for oid, name, array_oid, kind in _TYPES:
        delimiter = ";" if oid == BOX else ","
        part = index[_PARTS[oid]] if oid in _PARTS else None
        index[oid] = PgType(oid, name, kind=kind, element=part, delimiter=delimiter)
        if array_oid:
            array = PgType(array_oid, f"_{name}", kind=TypeKind.ARRAY, element=index[oid], delimiter=delimiter)
            index[array_oid] = array
    return index


_BUILTIN = _index()


def builtin(oid: int) -> PgType | None:
    """The built-in type with this OID; None if only the catalog knows it."""
    return _BUILTIN.get(oid)


def has_form(pg_type: PgType) -> bool:
    """Whether the catalog must say how its values are stored, see `PgType.form`."""
    return pg_type.oid == MONEY or (pg_type.kind is TypeKind.BASE and pg_type.name in WKB_TYPES)


def forms(pg_type: PgType) -> tuple[int, ...]:
    """The forms of the types that a type is made of, in order."""
    found = [pg_type.form] if has_form(pg_type) else []
    for part in ([pg_type.element] if pg_type.element is not None else []) + [one.type for one in pg_type.attributes]:
        found += forms(part)
    return tuple(found)


def is_array_json(pg_type: PgType) -> bool:
    """Whether it is an array that is JSON at the destination: json with the array's element."""
    return pg_type.oid == JSON and pg_type.element is not None


def is_enum(pg_type: PgType) -> bool:
    """Whether it is an enum at the destination too, not its labels as text."""
    return pg_type.kind is TypeKind.ENUM and pg_type.form >= 0


def dimensions(array: PgType) -> int:
    """How many dimensions its values have at the destination: arrays of PostgreSQL have no arrays as elements."""
    found, element = 1, array.element
    while element is not None and element.kind is TypeKind.ARRAY:
        found, element = found + 1, element.element
    return found


def base_type(pg_type: PgType) -> PgType:
    """The type under a domain (of a domain …), or the type itself."""
    return under_domains(pg_type, -1)[0]


def parts_of(pg_type: PgType) -> Iterator[PgType]:
    """The type and all that it is made of, each after what it is made of itself."""
    for attribute in pg_type.attributes:
        yield from parts_of(attribute.type)
    if pg_type.element is not None:
        yield from parts_of(pg_type.element)
    yield pg_type


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


def numeric_modifier(precision: int, scale: int) -> int:
    """The modifier of `numeric(precision,scale)`."""
    return (precision << 16 | (scale & 0x7FF)) + 4


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
