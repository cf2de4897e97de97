"""What is known of the values of some PostgreSQL types: which types, their Arrow type, and how their text is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import pyarrow as pa

from etl_core.identifiers import TableName
from etl_core.schema.table import Column, TypeKind
from etl_core.values.text import Array

CARRIED: tuple[pa.DataType, ...] = (
    pa.bool_(),
    pa.int16(),
    pa.int32(),
    pa.int64(),
    pa.uint64(),
    pa.float32(),
    pa.float64(),
    pa.string(),
    pa.binary(),
    pa.date32(),
    pa.time64("us"),
    pa.timestamp("us"),
    pa.timestamp("us", tz="UTC"),
    pa.month_day_nano_interval(),
)
"""The Arrow types that every destination stores, besides decimal128; and lists (of a fixed length too), structs and
maps of them. A family's type is one of these."""

Loader: TypeAlias = "Callable[[Array, pa.DataType, Column, TableName], Array]"
"""`load(text, arrow, column, table)`: a string or binary array, NULL for SQL NULL, → as many values of type `arrow`.

It works on whole columns and may share memory with `text`. `column` and `table` are for errors: it raises
ValueOutOfRange (see `refusal`) for a value that `arrow` cannot hold and for text that is no value of the type.
"""


@dataclass(frozen=True, slots=True)
class TypeFamily:
    """Types whose values are read alike. A type belongs to the first of: its OID's family, its name's, its kind's.

    `arrow` is the Arrow type, or gives it for a column's type modifier (-1: none), or for `PgType.form` if the type has
    one. `oids` are built-in types, which have the same OID everywhere. `names` are base types that an extension
    creates, in whatever schema. Arrays and domains belong to no family: what they are made of does.
    """

    name: str
    arrow: pa.DataType | Callable[[int], pa.DataType]
    load: Loader
    oids: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    kinds: tuple[TypeKind, ...] = ()

    def arrow_type(self, type_modifier: int) -> pa.DataType:
        """The Arrow type of values with this modifier, or of this form."""
        return self.arrow if isinstance(self.arrow, pa.DataType) else self.arrow(type_modifier)


def is_carried(arrow: pa.DataType) -> bool:
    """Whether every destination stores values of this Arrow type."""
    if pa.types.is_nested(arrow):
        return _is_nesting(arrow) and all(is_carried(arrow.field(at).type) for at in range(arrow.num_fields))
    return arrow in CARRIED or pa.types.is_decimal128(arrow)


def _is_nesting(arrow: pa.DataType) -> bool:
    kinds = (pa.types.is_list, pa.types.is_fixed_size_list, pa.types.is_struct, pa.types.is_map)
    return any(is_kind(arrow) for is_kind in kinds)
