"""The type families that we bring: the one table of PostgreSQL types, their Arrow types and loaders.

- `numeric(p,s)` is the decimal128 that holds its digits, if 38 do; any other numeric is text, which loses nothing, or
  what the settings make of it (`etl_core.shape.retyping`).
- uuid is text of 36 characters: pa.uuid() loads faster into a UUID column, but Arrow can neither compare, sort nor
  group an extension type, and keys are compared.
- Infinity of date, timestamp and timestamptz is ± the largest integer of the Arrow type (see `values.datetimes`).
- money is the decimal128 that its 64 bits hold, with the decimals that its database's locale gives it.
- geometry and geography are the bytes of EWKB, with the SRID, which plain WKB has no place for.
- A range is text, or a struct where the settings say so (`etl_core.shape.retyping`): none of the warehouses' own types
  tells which bounds belong to it, or knows an empty one.
"""

from __future__ import annotations

import pyarrow as pa

from etl_core.schema import pg_types
from etl_core.schema.table import TypeKind
from etl_core.values.bytea import load_bytea
from etl_core.values.datetimes import load_datetime, load_time
from etl_core.values.family import TypeFamily
from etl_core.values.geometric import CIRCLE, LINE, PATH, POINT, POLYGON, TWO_POINTS, load_path, load_polygon, shaped
from etl_core.values.hstore import HSTORE, load_hstore
from etl_core.values.intervals import load_interval
from etl_core.values.money import load_money, money_type
from etl_core.values.numeric import load_float8, load_numeric, numeric_type
from etl_core.values.scalars import load_bool, load_number, load_raw, load_string
from etl_core.values.vectors import load_int_vector, load_vector, vector_type
from etl_core.values.wkb import load_wkb

UNKNOWN = TypeFamily("unknown", pa.binary(), load_raw)
"""The text of a type that no family knows, as bytes."""

FAMILIES: tuple[TypeFamily, ...] = (
    TypeFamily("bool", pa.bool_(), load_bool, oids=(pg_types.BOOL,)),
    TypeFamily("int2", pa.int16(), load_number, oids=(pg_types.INT2,)),
    TypeFamily("int4", pa.int32(), load_number, oids=(pg_types.INT4,)),
    TypeFamily("int8", pa.int64(), load_number, oids=(pg_types.INT8,)),
    TypeFamily("uint4", pa.int64(), load_number, oids=(pg_types.OID, pg_types.XID, pg_types.CID)),
    TypeFamily("uint8", pa.uint64(), load_number, oids=(pg_types.XID8,)),
    TypeFamily("float4", pa.float32(), load_number, oids=(pg_types.FLOAT4,)),
    TypeFamily("float8", pa.float64(), load_float8, oids=(pg_types.FLOAT8,)),
    TypeFamily("numeric", numeric_type, load_numeric, oids=(pg_types.NUMERIC,)),
    TypeFamily("money", money_type, load_money, oids=(pg_types.MONEY,)),
    TypeFamily("bytea", pa.binary(), load_bytea, oids=(pg_types.BYTEA,)),
    TypeFamily("date", pa.date32(), load_datetime, oids=(pg_types.DATE,)),
    TypeFamily("time", pa.time64("us"), load_time, oids=(pg_types.TIME,)),
    TypeFamily("timestamp", pa.timestamp("us"), load_datetime, oids=(pg_types.TIMESTAMP,)),
    TypeFamily("timestamptz", pa.timestamp("us", tz="UTC"), load_datetime, oids=(pg_types.TIMESTAMPTZ,)),
    TypeFamily("interval", pa.month_day_nano_interval(), load_interval, oids=(pg_types.INTERVAL,)),
    TypeFamily("uuid", pa.string(), load_string, oids=(pg_types.UUID,)),
    TypeFamily("json", pa.string(), load_string, oids=(pg_types.JSON, pg_types.JSONB)),
    TypeFamily(
        "string",
        pa.string(),
        load_string,
        oids=(pg_types.CHAR, pg_types.NAME, pg_types.TEXT, pg_types.BPCHAR, pg_types.VARCHAR),
        names=("citext",),
        kinds=(TypeKind.ENUM,),
    ),
    TypeFamily("bit", pa.string(), load_string, oids=(pg_types.BIT,)),
    TypeFamily("timetz", pa.string(), load_string, oids=(pg_types.TIMETZ,)),
    TypeFamily("int2vector", pa.list_(pa.int16()), load_int_vector, oids=(pg_types.INT2VECTOR,)),
    TypeFamily("oidvector", pa.list_(pa.int64()), load_int_vector, oids=(pg_types.OIDVECTOR,)),
    TypeFamily("point", POINT, shaped("(0,0)"), oids=(pg_types.POINT,)),
    TypeFamily("line", LINE, shaped("{0,0,0}"), oids=(pg_types.LINE,)),
    TypeFamily("lseg", TWO_POINTS, shaped("[(0,0),(0,0)]"), oids=(pg_types.LSEG,)),
    TypeFamily("box", TWO_POINTS, shaped("(0,0),(0,0)"), oids=(pg_types.BOX,)),
    TypeFamily("circle", CIRCLE, shaped("<(0,0),0>"), oids=(pg_types.CIRCLE,)),
    TypeFamily("path", PATH, load_path, oids=(pg_types.PATH,)),
    TypeFamily("polygon", POLYGON, load_polygon, oids=(pg_types.POLYGON,)),
    TypeFamily("wkb", pa.binary(), load_wkb, names=pg_types.WKB_TYPES),
    TypeFamily("hstore", HSTORE, load_hstore, names=("hstore",)),
    TypeFamily("vector", vector_type, load_vector, names=("vector", "halfvec")),
    # What people write and read of these types, and the same in every session with the settings that ours has.
    TypeFamily(
        "as_printed",
        pa.string(),
        load_string,
        oids=(
            pg_types.XML,
            pg_types.CIDR,
            pg_types.MACADDR8,
            pg_types.MACADDR,
            pg_types.INET,
            pg_types.VARBIT,
            pg_types.PG_LSN,
            pg_types.TSVECTOR,
            pg_types.TSQUERY,
            pg_types.JSONPATH,
            pg_types.ACLITEM,
            pg_types.PG_NODE_TREE,
            pg_types.PG_SNAPSHOT,
            pg_types.TXID_SNAPSHOT,
            pg_types.REFCURSOR,
            pg_types.TID,
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
            # Columns of the catalog have these, so its row types do, and what indexes and statistics keep.
            pg_types.ANYARRAY,
            pg_types.CSTRING,
            pg_types.GTSVECTOR,
            pg_types.PG_BRIN_BLOOM_SUMMARY,
            pg_types.PG_BRIN_MINMAX_MULTI_SUMMARY,
            pg_types.PG_DEPENDENCIES,
            pg_types.PG_MCV_LIST,
            pg_types.PG_NDISTINCT,
        ),
        names=(
            *("ltree", "lquery", "ltxtquery", "cube", "seg", "query_int"),
            *("ean13", "isbn", "isbn13", "ismn", "ismn13", "issn", "issn13", "upc"),
            *("sparsevec", "box2d", "box3d", "box2df", "gidx", "spheroid"),
            *("gbtreekey2", "gbtreekey4", "gbtreekey8", "gbtreekey16", "gbtreekey32", "gbtreekey_var"),
            *("ghstore", "gtrgm", "intbig_gkey", "ltree_gist"),
        ),
        kinds=(TypeKind.RANGE, TypeKind.MULTIRANGE),
    ),
)
