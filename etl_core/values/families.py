"""The type families that we bring: the one table of PostgreSQL types, their Arrow types and loaders.

- `numeric(p,s)` is decimal128(p, s) if 1 ≤ p ≤ 38 and 0 ≤ s ≤ p; any other numeric is text, which loses nothing.
- uuid is text of 36 characters: pa.uuid() loads faster into a UUID column, but Arrow can neither compare, sort nor
  group an extension type, and keys are compared.
- Infinity of date, timestamp and timestamptz is ± the largest integer of the Arrow type (see `values.datetimes`).
- A range is text: none of the warehouses' own types tells which bounds belong to it, or knows an empty one.
"""

from __future__ import annotations

import pyarrow as pa

from etl_core.schema import pg_types
from etl_core.schema.table import TypeKind
from etl_core.values.bytea import load_bytea
from etl_core.values.datetimes import load_datetime, load_time
from etl_core.values.family import TypeFamily
from etl_core.values.intervals import load_interval
from etl_core.values.scalars import load_bool, load_number, load_numeric, load_raw, load_string, numeric_type

UNKNOWN = TypeFamily("unknown", pa.binary(), load_raw)
"""The text of a type that no family knows, as bytes."""

FAMILIES: tuple[TypeFamily, ...] = (
    TypeFamily("bool", pa.bool_(), load_bool, oids=(pg_types.BOOL,)),
    TypeFamily("int2", pa.int16(), load_number, oids=(pg_types.INT2,)),
    TypeFamily("int4", pa.int32(), load_number, oids=(pg_types.INT4,)),
    TypeFamily("int8", pa.int64(), load_number, oids=(pg_types.INT8,)),
    TypeFamily("uint4", pa.int64(), load_number, oids=(pg_types.OID, pg_types.XID)),
    TypeFamily("float4", pa.float32(), load_number, oids=(pg_types.FLOAT4,)),
    TypeFamily("float8", pa.float64(), load_number, oids=(pg_types.FLOAT8,)),
    TypeFamily("numeric", numeric_type, load_numeric, oids=(pg_types.NUMERIC,)),
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
            pg_types.TIMETZ,
            pg_types.BIT,
            pg_types.VARBIT,
            pg_types.PG_LSN,
            pg_types.TSVECTOR,
            pg_types.TSQUERY,
            pg_types.JSONPATH,
            pg_types.XID8,
        ),
        kinds=(TypeKind.RANGE, TypeKind.MULTIRANGE),
    ),
)
