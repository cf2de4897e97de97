"""What rows older than a column hold in it: proven from the catalog, or unknown.

ADD COLUMN either leaves every row where it is (then they hold NULL, or the constant that `attmissingval` has) or writes
them anew without a word in the WAL. Which of the two it was shows in the file that holds the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import psycopg
from psycopg import sql

from etl_core.errors import SourceChanged
from etl_core.identifiers import TableId
from etl_core.schema.fingerprint import Fingerprint
from etl_core.source.connection import Connection
from etl_core.source.sqlstate import translate

# A partitioned table holds no rows; its partitions remember what theirs hold, under numbers of their own. The value is
# one element, whose text the array's text quotes; the join undoes the split of a box's commas.
_TREE = """
WITH RECURSIVE tree(oid) AS (
    SELECT {table_id}::oid
    UNION ALL
    SELECT i.inhrelid
    FROM tree
    JOIN pg_catalog.pg_class c ON c.oid = tree.oid AND c.relkind = 'p'
    JOIN pg_catalog.pg_inherits i ON i.inhparent = tree.oid AND NOT i.inhdetachpending
)
"""
_COLUMN = (
    _TREE
    + """
SELECT leaf.oid::bigint, leaf.relfilenode::bigint, a.attgenerated::text,
       CASE WHEN p.atthasmissing THEN pg_catalog.array_to_string(p.attmissingval::text::text[], ',') END
FROM pg_catalog.pg_attribute a
CROSS JOIN tree
JOIN pg_catalog.pg_class leaf ON leaf.oid = tree.oid
LEFT JOIN pg_catalog.pg_attribute p ON p.attrelid = leaf.oid AND p.attname = a.attname
WHERE a.attrelid = {table_id} AND a.attnum = {attnum} AND NOT a.attisdropped
"""
)

_FILES = (
    _TREE
    + """
SELECT leaf.oid::bigint, leaf.relfilenode::bigint
FROM tree
JOIN pg_catalog.pg_class leaf ON leaf.oid = tree.oid AND leaf.relkind = 'r'
"""
)

_ATTRIBUTES = """
SELECT attnum::int, CASE WHEN NOT attisdropped THEN xmin::text::bigint END
FROM pg_catalog.pg_attribute WHERE attrelid = {table_id} AND attnum > 0
"""


class FillKind(StrEnum):
    """What rows older than a column hold in it."""

    NULL = "null"
    CONSTANT = "constant"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Fill:
    """`text` is the constant's text representation, None for the other kinds.

    UNKNOWN: it may be a value computed for each row, or what a column held that was there all along; the table must be
    copied again.
    """

    kind: FillKind
    text: str | None = None


def added_column_fill(conn: Connection, table_id: TableId, attnum: int, since: Fingerprint | None) -> Fill:
    """What the rows that were there at the time of `since` hold in column `attnum`, which was added later.

    Every rewrite of a file forgets the missing value of its columns, so one that is there is what older rows hold. And
    rows whose file is the one of before hold NULL if there is none. Anything else is UNKNOWN, as is every column
    that `since` knows the number of. Raises SourceChanged if the column is gone.
    """
    rows = _rows(conn, sql.SQL(_COLUMN).format(table_id=sql.Literal(int(table_id)), attnum=sql.Literal(attnum)))
    if not rows:
        raise SourceChanged(
            f"column number {attnum} of the table with OID {table_id} no longer exists", hint="copy the table again"
        )
    if since is None or attnum <= since.last_attnum or rows[0][2] == "v":
        return Fill(FillKind.UNKNOWN)
    now = {oid: (filenode, missing) for oid, filenode, _, missing in rows}
    before = since.files
    if not before.keys() <= now.keys():
        return Fill(FillKind.UNKNOWN)
    held = {now[oid][1] for oid in before}
    if None not in held and len(held) == 1:
        return Fill(FillKind.CONSTANT, held.pop())
    if not held - {None} and all(now[oid][0] == filenode for oid, filenode in before.items()):
        return Fill(FillKind.NULL)
    return Fill(FillKind.UNKNOWN)


def has_files(conn: Connection, table_id: TableId, since: Fingerprint | None) -> bool:
    """Whether the table's rows are still in the files of `since`: none was computed anew, by no ALTER TABLE.

    The catalog changes a column's type without touching rows where their bytes stay what they were.
    """
    if since is None or not since.files:
        return False
    now = dict(_rows(conn, sql.SQL(_FILES).format(table_id=sql.Literal(int(table_id)))))
    return all(now.get(oid) == filenode for oid, filenode in since.files.items())


def attributes_now(conn: Connection, table_id: TableId) -> dict[int, int | None]:
    """By the number of each column that the table ever had, who wrote its catalog row last: None if it is dropped."""
    return dict(_rows(conn, sql.SQL(_ATTRIBUTES).format(table_id=sql.Literal(int(table_id)))))


def _rows(conn: Connection, statement: sql.Composed) -> list[tuple[Any, ...]]:
    try:
        return conn.execute(statement).fetchall()
    except psycopg.Error as error:
        raise translate(error) from None
