"""The columns of ours that a table has which is a log: a row for every change, none of them ever changed.

As that of `deleted_rows` they are told from the source's by attribute numbers that no column of PostgreSQL has. They
come behind the source's: first the old key's, then the literal ones below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from etl_core.identifiers import TableName
from etl_core.schema import pg_types
from etl_core.schema.pg_types import builtin
from etl_core.schema.table import Column, PgType, ReplicaIdentity, TableSchema

INSERT, UPDATE, DELETE, TRUNCATE, COPY = "insert", "update", "delete", "truncate", "copy"
PREFIX = "_etl_"
"""Of the names of our columns."""
_OLD = "_etl_old_"
_OLD_NUMBER = -2000
"""The old value of column n has the number -2000 - n. PostgreSQL's columns have the numbers -6 to -1 and 1 to 1600."""
_UNCHANGED = -105
_TEXT_ARRAY = 1009


def _type(oid: int) -> PgType:
    found = builtin(oid)
    assert found is not None  # noqa: S101 - it is in the table
    return found


OP = Column(
    "_etl_op",
    _type(pg_types.TEXT),
    attnum=-101,
    comment="What the source did: insert, update, delete or truncate; copy for the rows of a copy.",
)
LSN = Column(
    "_etl_lsn",
    _type(pg_types.INT8),
    attnum=-102,
    comment="Where the commit record of the change's transaction is in the WAL; of a copy's rows, the snapshot.",
)
SEQ = Column(
    "_etl_seq",
    _type(pg_types.INT8),
    attnum=-103,
    comment="Place of the change within its transaction, from 1 on; 0 for the rows of a copy.",
)
COMMITTED_AT = Column(
    "_etl_committed_at",
    _type(pg_types.TIMESTAMPTZ),
    attnum=-104,
    comment="When the transaction was committed at the source; of a copy's rows, when its snapshot was taken.",
)
UNCHANGED = Column(
    "_etl_unchanged",
    _type(_TEXT_ARRAY),
    attnum=_UNCHANGED,
    comment="Columns that the update left unchanged and the source did not send (TOAST); NULL in this row.",
)
EACH_ROW = (OP, LSN, SEQ, COMMITTED_AT, UNCHANGED)
VALID_FROM = Column(
    "_etl_valid_from",
    _type(pg_types.TIMESTAMPTZ),
    attnum=-106,
    comment="When the version began: the time of a commit, or of a copy's snapshot.",
)
VALID_TO = Column(
    "_etl_valid_to",
    _type(pg_types.TIMESTAMPTZ),
    attnum=-107,
    comment="When it ended; NULL while it is valid.",
)
"""Of a version, in the view of all of them, as LSN and SEQ are: where it began."""


def history_view(table: TableName) -> TableName:
    """What the view is called that has every version of each row of the table."""
    return TableName(table.namespace, f"{table.name}_history")


def current_view(table: TableName) -> TableName:
    """What the view is called that has the rows of now."""
    return TableName(table.namespace, f"{table.name}_current")


def views_of(table: TableName) -> tuple[TableName, TableName]:
    """The views beside a log whose schema has `history`."""
    return history_view(table), current_view(table)


def keeps_log(schema: TableSchema) -> bool:
    """Whether the table is a log of changes; its last column is UNCHANGED then."""
    return bool(schema.columns) and schema.columns[-1].attnum == _UNCHANGED


def has_log(attnums: Mapping[str, int]) -> bool:
    """The same of a table as a destination keeps it: attribute numbers by column."""
    return attnums.get(UNCHANGED.name) == _UNCHANGED


def sent_columns(schema: TableSchema) -> tuple[Column, ...]:
    """The columns that the source sends, of those by which its rows are decoded: ours come behind them."""
    if not schema.columns or not is_ours(schema.columns[-1]):
        return schema.columns
    is_log = keeps_log(schema)
    return tuple(column for column in schema.columns if not (is_ours(column) or (is_log and is_old(column))))


def row_columns(log: TableSchema) -> tuple[Column, ...]:
    """The columns of a log that are the source's."""
    return tuple(column for column in log.columns if not (is_ours(column) or is_old(column)))


def rows_of(log: TableSchema) -> TableSchema:
    """What the view of the rows of now has."""
    return replace(log, columns=row_columns(log))


def versions_of(log: TableSchema) -> TableSchema:
    """What the view of all versions has."""
    return replace(log, columns=(*row_columns(log), VALID_FROM, VALID_TO, LSN, SEQ))


def told_by(log: TableSchema) -> frozenset[str]:
    """The columns of a log that tell the source's rows apart: those that have an old value."""
    names = set(log.column_names)
    return frozenset(column.name for column in row_columns(log) if old_name(column.name) in names)


def told_by_numbers(attnums: Mapping[str, int]) -> frozenset[int]:
    """The same of a log as a destination keeps it, by attribute numbers."""
    return frozenset(attnum for attnum in attnums.values() if attnum < _OLD_NUMBER)


def is_ours(column: Column) -> bool:
    """Whether a column is none of the source's; also that of `deleted_rows` is ours."""
    return column.attnum <= -100


def is_old(column: Column) -> bool:
    """Whether a column of a log is the old value of another one. The source has none in a log that is called so."""
    return column.name.startswith(_OLD)


def old_name(name: str) -> str:
    """What the column is called that has the old value of column `name`."""
    return _OLD + name


def old_value(column: Column) -> Column:
    """The column that has the value of `column` before an update."""
    return replace(
        column,
        name=old_name(column.name),
        attnum=_OLD_NUMBER - column.attnum if column.attnum else 0,
        nullable=True,
        missing_value=None,
        fill_known=True,
        comment=f"The value of {column.name} before an update that moved the row to another key.",
    )


def number_at_source(column: Column) -> int | None:
    """The attribute number of the source's column that the values are of; None where they are ours."""
    if column.attnum <= _OLD_NUMBER:
        return _OLD_NUMBER - column.attnum
    return None if is_ours(column) else column.attnum


def identity_of(source: TableSchema) -> tuple[str, ...]:
    """By which columns the source tells the row that an update or a delete is about.

    Without a key that is the whole row, with REPLICA IDENTITY FULL; else there are no such changes.
    """
    if not source.key and source.replica_identity is ReplicaIdentity.FULL:
        return source.column_names
    return source.key
