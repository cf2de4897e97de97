"""Which columns of a table a Relation message means: what the WAL says and what the catalog says, put together.

A Relation message has names and types as of the WAL, and no attribute numbers. The catalog has numbers, as of now,
which may be ahead, and always is within a transaction: a column may have been renamed, retyped or dropped since. Names
prove nothing then. But a table's columns are sent in the order of their numbers, and a number is never given twice. So
all ways are looked at in which the message's columns can be some of those that the table may have had; if there is
exactly one, it is known which columns are meant, whatever they are called.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from etl_core.protocol.messages import RelationColumn
from etl_core.schema.pg_types import builtin
from etl_core.schema.table import Column, PgType, TableSchema, TypeKind

_SAME_BYTES: tuple[frozenset[int], ...] = (
    frozenset({25, 1042, 1043, 142, 194}),  # text, bpchar, varchar, xml, pg_node_tree
    frozenset(
        {23, 26, 24, 2202, 2203, 2204, 2205, 2206, 3734, 3769, 4089, 4096, 4191}
    ),  # int4, oid and regclass's like
    frozenset({1560, 1562}),  # bit, varbit
    frozenset({650, 869}),  # cidr, inet
    frozenset({1114, 1184}),  # timestamp and timestamptz, if the session's time zone is UTC
)
"""Built-in types between which PostgreSQL alters a column without writing a row anew."""
_VECTORS = frozenset({22, 30})
"""int2vector and oidvector, which are arrays too."""
_FIRST_OWN_OID = 16_384


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a table beside the message.

    `base` is the table at some moment before the message: as the message before described it, or as the destination has
    it; None if it is not replicated. `catalog` is the table as of now, with unpublished columns, None if it is gone;
    `dropped` are the numbers of the columns it had once. `last_attnum` is the highest number that had been given at a
    moment before the message, None if columns of lower numbers than that may have been sent that are not in `base`;
    `unaltered` are the numbers of the columns that nobody has altered since. `has_files` says that no row was written
    anew since, which all but a few changes of a type do.
    """

    base: TableSchema | None
    catalog: TableSchema | None
    dropped: Collection[int] = ()
    last_attnum: int | None = None
    unaltered: Collection[int] = ()
    has_files: bool = False


@dataclass(frozen=True, slots=True)
class Identified:
    """The columns of a message, in its order. If it `is_proven`, no others can be meant; their numbers are 0 if not."""

    columns: tuple[Column, ...]
    is_proven: bool


def as_known(described: Sequence[RelationColumn], known: Known) -> Identified | None:
    """The columns of a message that says what `base` and the catalog do; None if there is more to it.

    Nearly every message is of this kind, and needs nothing of `Known` but these two.
    """
    if known.base is None or len(described) != len(known.base.columns):
        return None
    # Of a table that is gone nobody can tell more, and nothing will come of it.
    today = known.base if known.catalog is None else known.catalog
    by_name = {column.name: column for column in today.columns}
    found = []
    for message, base in zip(described, known.base.columns, strict=True):
        column = by_name.get(message.name)
        if column is None or not column.attnum or (column.name, column.attnum) != (base.name, base.attnum):
            return None
        if not message.type_oid == column.type.oid == base.type.oid:
            return None
        found.append(replace(column, type_modifier=message.type_modifier, fill_known=True))
    return Identified(tuple(found), is_proven=True)


def identify(described: Sequence[RelationColumn], known: Known) -> Identified:
    """The columns by the only way in which they can be those of the table, if there is only one."""
    numbers = None if known.base is None else _only_way(described, known)
    if numbers is None:
        return Identified(tuple(_by_name(column, known) for column in described), is_proven=False)
    return numbered(described, numbers, known)


def numbered(described: Sequence[RelationColumn], numbers: Sequence[int], known: Known) -> Identified:
    """The columns of which somebody has told the numbers."""
    columns = (_column(column, attnum, known) for column, attnum in zip(described, numbers, strict=True))
    return Identified(tuple(columns), is_proven=True)


def is_alike(one: Column, other: Column) -> bool:
    """Whether both have the same type and modifier."""
    return (one.type.oid, one.type_modifier) == (other.type.oid, other.type_modifier)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A column that the table may have had: `types` are those it had at known moments, `name` the one it always had."""

    attnum: int
    is_there: bool
    """Before the message and now, so that the message has it."""
    types: tuple[int, ...]
    name: str | None

    def may_be(self, column: RelationColumn, *, has_files: bool) -> bool:
        if self.name is not None:
            return (self.name, self.types[0]) == (column.name, column.type_oid)
        return not has_files or all(_same_bytes(kind, column.type_oid) for kind in self.types)


def _only_way(described: Sequence[RelationColumn], known: Known) -> list[int] | None:
    candidates = _candidates(described, known)
    if candidates is None or len(described) > len(candidates):
        return None
    spare = len(candidates) - len(described)
    # ways[at][skipped]: how the first `at` candidates can be the first `at - skipped` columns of the message.
    ways = [[1] + [0] * spare]
    for at, candidate in enumerate(candidates):
        row = []
        for skipped in range(spare + 1):
            column = at - skipped
            taken = (
                ways[at][skipped]
                if 0 <= column < len(described) and candidate.may_be(described[column], has_files=known.has_files)
                else 0
            )
            left_out = ways[at][skipped - 1] if skipped and not candidate.is_there else 0
            row.append(min(taken + left_out, 2))
        ways.append(row)
    if ways[-1][spare] != 1:
        return None
    numbers, skipped = [], spare
    for at in range(len(candidates) - 1, -1, -1):
        column, candidate = at - skipped, candidates[at]
        if (
            0 <= column < len(described)
            and ways[at][skipped]
            and candidate.may_be(described[column], has_files=known.has_files)
        ):
            numbers.append(candidate.attnum)
        else:
            skipped -= 1
    return numbers[::-1]


def _candidates(described: Sequence[RelationColumn], known: Known) -> list[_Candidate] | None:
    """By number; None where there is nothing to go by."""
    base, catalog = known.base, known.catalog
    if base is None or catalog is None or known.last_attnum is None:
        return None
    held = {column.attnum: column for column in base.columns}
    if 0 in held:
        return None
    today = {column.attnum: column for column in catalog.columns}
    came = {attnum for attnum in (*today, *known.dropped) if attnum > known.last_attnum}
    possible = sorted(held.keys() | came)
    # A column whose name leads to one that was not published says that the publication itself was altered.
    names = {column.name: column.attnum for column in catalog.columns}
    if any(names.get(column.name, possible[0]) not in possible for column in described):
        return None
    return [
        _Candidate(
            attnum,
            attnum in held and attnum in today,
            tuple(columns[attnum].type.oid for columns in (today, held) if attnum in columns),
            today[attnum].name if attnum in today and attnum in held and attnum in known.unaltered else None,
        )
        for attnum in possible
    ]


def _same_bytes(one: int, other: int) -> bool:
    """Whether a column may be altered from one type to the other and keep its rows' bytes; True if it is not known."""
    if one == other or max(one, other) >= _FIRST_OWN_OID or None in (builtin(one), builtin(other)):
        return True
    if _is_array(one) and _is_array(other):
        return True
    return any(one in group and other in group for group in _SAME_BYTES)


def _is_array(oid: int) -> bool:
    pg_type = builtin(oid)
    return oid in _VECTORS or (pg_type is not None and pg_type.kind is TypeKind.ARRAY)


def _column(described: RelationColumn, attnum: int, known: Known) -> Column:
    for schema in (known.catalog, known.base):
        for column in () if schema is None else schema.columns:
            if column.attnum == attnum and column.type.oid == described.type_oid:
                return replace(column, name=described.name, type_modifier=described.type_modifier, fill_known=True)
    return Column(described.name, _type(described.type_oid), described.type_modifier, attnum=attnum)


def _by_name(described: RelationColumn, known: Known) -> Column:
    """With the type that a column of that name has. The number is the catalog's where nothing depends on it."""
    for schema in (known.catalog, known.base):
        for column in () if schema is None else schema.columns:
            if column.name == described.name and column.type.oid == described.type_oid:
                attnum = column.attnum if known.base is None else 0
                return replace(column, type_modifier=described.type_modifier, attnum=attnum)
    return Column(described.name, _type(described.type_oid), described.type_modifier)


def _type(oid: int) -> PgType:
    return builtin(oid) or PgType(oid, str(oid), kind=TypeKind.PSEUDO)
