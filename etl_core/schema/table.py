"""What a table is: its columns, types, key and identity, as one immutable value that is versioned."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.type_options import Held, OutOfRange


class ReplicaIdentity(StrEnum):
    """`pg_class.relreplident`: what the WAL holds of a row's old values."""

    DEFAULT = "d"
    NOTHING = "n"
    FULL = "f"
    INDEX = "i"


class TypeKind(StrEnum):
    """`pg_type.typtype`, and ARRAY for what `typcategory` calls one."""

    BASE = "b"
    COMPOSITE = "c"
    DOMAIN = "d"
    ENUM = "e"
    PSEUDO = "p"
    RANGE = "r"
    MULTIRANGE = "m"
    ARRAY = "a"


@dataclass(frozen=True, slots=True)
class PgType:
    """A row of `pg_type`. `element` is an array's element type, a domain's base type, a range's subtype or a
    multirange's range, else None; a json that has one is an array at the source (`pg_types.is_array_json`).

    `attributes` are a composite's, as columns; none if they are not known. A range has some where it is a struct at the
    destination (`etl_core.shape.retyping`). `delimiter` is what stands between elements
    of an array, be it this type or one of this type (`typdelim`).

    `type_modifier` is what a domain says of its base type (`typtypmod`): -1 for none, and for every other type.
    `labels` are an enum's, in its order; none if they are not known. `form` is what the catalog adds for the types of
    `pg_types.has_form`: the decimals of money, which its database's locale says, and 0 for PostGIS's types; and 0 for
    an enum that is one at the destination, too. -1 for every other type; and for one of these, if nobody asked the
    catalog or an older version did: its values are stored as bytes of text then.
    """

    oid: int
    name: str
    namespace: str = "pg_catalog"
    kind: TypeKind = TypeKind.BASE
    element: PgType | None = None
    type_modifier: int = -1
    attributes: tuple[Column, ...] = ()
    delimiter: str = ","
    form: int = -1
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Column:
    """A published column.

    `type_modifier` is `atttypmod` (-1: none). `attnum` tells a column that was dropped and added again
    under the same name from one that stayed; 0 if unknown. `missing_value` is the text representation of
    `attmissingval`: what rows older than the column hold (`ADD COLUMN … DEFAULT`), None for NULL. `fill_known` is
    False when they hold what nobody recorded (a volatile default): only a new copy of the table has it. `comment` is
    what COMMENT ON said when the catalog was last asked; two columns that differ by it alone are equal.
    """

    name: str
    type: PgType
    type_modifier: int = -1
    nullable: bool = True
    attnum: int = 0
    missing_value: str | None = None
    fill_known: bool = True
    comment: str | None = field(default=None, compare=False)
    out_of_range: OutOfRange = OutOfRange.REFUSE
    """What becomes of values that the type's Arrow type cannot hold. The source's own columns refuse them."""
    value_range: Held = None
    """The destination's, where `out_of_range` is about values beyond that too.

    EVERY_VALUE where the values are carried as the text that PostgreSQL prints, whatever their type.
    """
    fraction_digits: int | None = field(default=None, compare=False)
    """By `types.numeric: auto`, how many digits after the point its numerics have at the destination: a DECIMAL(38,s).

    None where they have what they declare, or are text. The source knows nothing of it: it is decided when the table is
    copied, and stored with the table's schema.
    """


@dataclass(frozen=True, slots=True)
class TableSchema:
    """One version of a published table.

    `columns` are in the order pgoutput sends them. `key` names the columns that identify a row for
    update and delete (the primary key, or the REPLICA IDENTITY index), in column order; empty if there is none: then
    the table is a multiset, or can only be appended to. `kept` are the columns as the destination keeps them where
    changes of them are ignored (`schema/ignored.py`), None where it has `columns`. `comment` is as a column's.
    `replica_identity` FULL of a partitioned table counts as NOTHING unless all its partitions have it: then old rows
    need not be whole.
    """

    table_id: TableId
    name: TableName
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    replica_identity: ReplicaIdentity = ReplicaIdentity.DEFAULT
    kept: tuple[Column, ...] | None = None
    comment: str | None = field(default=None, compare=False)
    described_at: Lsn | None = field(default=None, compare=False)
    """Where the commit record lies of the transaction whose Relation message said so; None if the catalog did."""
    history: bool = False
    """Of a log of changes at a destination: readers see the versions of its rows beside it."""

    def column(self, name: str) -> Column:
        """The column called `name`; KeyError if there is none."""
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(name)

    @property
    def column_names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @property
    def is_multiset(self) -> bool:
        """Whether a row is known by all its values, equal rows counted: without a key, and old rows sent whole."""
        return not self.key and self.replica_identity is ReplicaIdentity.FULL
