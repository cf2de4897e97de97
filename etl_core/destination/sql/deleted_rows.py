"""The statements of tables that keep their deleted rows, and of logs: marking, counting, keeping rows beside a copy."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import LiteralString

import pyarrow as pa
from psycopg import sql

from etl_core.batch import TableChanges
from etl_core.destination.protocol import KeptRows, LoggedCopy
from etl_core.destination.sql import statements
from etl_core.destination.sql.additions import StoredColumn
from etl_core.destination.sql.dialect import Dialect, Query
from etl_core.destination.sql.session import Session
from etl_core.destination.sql.stored_tables import StoredTable
from etl_core.destination.sql.type_change import TypeChange
from etl_core.destination.sql.versions import rename_unchanged
from etl_core.errors import TableError
from etl_core.lsn import Lsn
from etl_core.schema.alterations import origins
from etl_core.schema.change_log import LSN, SEQ, told_by
from etl_core.schema.deleted_rows import DELETED_AT, keeps_deleted
from etl_core.schema.table import Column, TableSchema
from etl_core.values.arrow import arrow_schema

_DELETED_AT = sql.Identifier(DELETED_AT.name)
_WAS_DELETED = sql.Identifier("etl$was_deleted")


def mark_deleted(dialect: Dialect, table: Query, moment: datetime) -> Query:
    """Marks the rows that live."""
    query = sql.SQL("UPDATE {} SET {} = {} WHERE {} IS NULL")
    return query.format(table, _DELETED_AT, dialect.moment(moment, DELETED_AT), _DELETED_AT)


def marks_only(changes: TableChanges) -> bool:
    """Whether all the partial rows are rows of their own key in which nothing changed but DELETED_AT.

    And no rows are deleted, which comes after the partial rows have read theirs, and would remove what is marked.
    """
    schema, partials = changes.schema, changes.partials
    if not keeps_deleted(schema) or len(partials) != 1 or changes.deletes.num_rows:
        return False
    only, others = partials[0], len(schema.columns) - len(schema.key) - 1
    names = only.origin_keys.column_names
    return len(only.unchanged) == others and bool(only.rows.select(names).equals(only.origin_keys))


def mark_keys(dialect: Dialect, table: Query, key: Sequence[Column]) -> Query:
    """Marks the rows whose keys are in the Arrow rows, as these say, which costs less than to write them again."""
    same = [dialect.same(sql.Identifier("t", c.name), sql.Identifier("k", c.name), c) for c in key]
    return sql.SQL('UPDATE {} AS "t" SET {} = "k".{} FROM (SELECT {} FROM {} AS "p") AS "k" WHERE {}').format(
        table,
        _DELETED_AT,
        _DELETED_AT,
        statements.converted(dialect, [*key, DELETED_AT]),
        dialect.rows,
        sql.SQL(" AND ").join(same),
    )


def count_living(table: Query) -> Query:
    return sql.SQL("SELECT count(*) FROM {} WHERE {} IS NULL").format(table, _DELETED_AT)


class RowsToKeep:
    """Those of the table that a copy replaces, put aside before it is replaced."""

    def __init__(
        self,
        dialect: Dialect,
        session: Session,
        before: StoredTable,
        schema: TableSchema,
        kept: KeptRows | LoggedCopy,
        added: Sequence[StoredColumn],
        copied: Callable[[pa.Schema], Iterator[pa.RecordBatch]],
        watermark: Lsn,
    ) -> None:
        """`copied` reads the copied rows; `added` are a person's columns of the table.

        See KeepingCopy, or, of a log whose rows all stay, AppendingCopy.
        """
        self._session = session
        self._aside = dialect.temporary("etl$deleted")
        self._names = [*schema.column_names, *(column.name for column in added)]
        old = session.identifier(before.name.namespace, before.name.name)
        present = {column.name: column.type for column in session.columns(before.name)}
        origin = origins({name: attnum for name, attnum in before.attnums.items() if name in present}, schema.columns)
        carried = {name: there for name, there in origin.items() if name not in kept.changed}
        self.has_keys = _are_kept(dialect, schema, carried, present, told_by(schema))
        lost = _lost(dialect, schema, carried, present)
        if isinstance(kept, LoggedCopy):
            values = _list(", ", [*_carried(dialect, schema, carried, present, added), *_flags(lost)])
            session.put_aside(self._aside, _before_copy(old, values, watermark, is_streamed=before.lsn is not None))
            self._check_kept(schema, lost)
            now = {there: name for name, there in origin.items()}
            rename = rename_unchanged(dialect, self._aside, {**dict.fromkeys(before.attnums), **now})
            if rename is not None:
                session.execute(rename)
            return
        rows = _carried_rows(dialect, old, schema, carried, present, kept.deleted_at, added, lost)
        keys = [schema.column(name) for name in schema.key]
        only = (batch.select([column.name for column in keys]) for batch in copied(arrow_schema(schema)))
        handed_over = (dialect.arrow_batch(batch, keys, schema.name) for batch in only)
        query = _without(dialect, rows, [*self._names, *map(_flag, lost)], keys)
        session.put_aside(
            self._aside, query, pa.RecordBatchReader.from_batches(dialect.arrow_schema(keys), handed_over)
        )
        self._check_kept(schema, lost)

    def _check_kept(self, schema: TableSchema, lost: Mapping[str, Query]) -> None:
        """Raises TableError if numbers that stay would be lost: the person has not asked for these digits."""
        for name in lost:
            query = sql.SQL("SELECT count(*) FROM {} WHERE {}").format(self._aside, sql.Identifier(_flag(name)))
            rows = self._session.fetch(query)[0][0]
            if rows:
                raise TableError(
                    f"column {name} of table {schema.name}: {rows} of the rows that the destination keeps have numbers"
                    " of more digits than its new type has, which the rows of now need: the table is not copied",
                    table=str(schema.name),
                    hint=f"set types.numeric: varchar for column {name}, which loses nothing",
                )

    def insert_into(self, table: Query) -> None:
        self._session.execute(statements.insert_all(table, self._names, self._aside))
        self._session.drop_temporary(self._aside)


def _carried_rows(
    dialect: Dialect,
    old: Query,
    schema: TableSchema,
    carried: Mapping[str, str],
    present: Mapping[str, str],
    moment: datetime,
    added: Sequence[StoredColumn],
    lost: Mapping[str, Query],
) -> Query:
    """The rows of `old` in the columns of `schema`, the deleted ones and those that are so as of `moment`.

    A last column, `_WAS_DELETED`, tells them apart; before it are flags of what is `lost`.
    """
    chosen = [*_carried(dialect, schema, carried, present, added, moment), *_flags(lost)]
    was = carried.get(DELETED_AT.name)
    is_deleted = sql.SQL("FALSE") if was is None else sql.SQL("{} IS NOT NULL").format(sql.Identifier("t", was))
    chosen.append(sql.SQL("{} AS {}").format(is_deleted, _WAS_DELETED))
    return sql.SQL('SELECT {} FROM {} AS "t"').format(_list(", ", chosen), old)


def _before_copy(log: Query, values: Query, watermark: Lsn, *, is_streamed: bool) -> Query:
    """The rows of a log from before the copy with that watermark: see AppendingCopy."""
    lsn, seq = sql.Identifier(LSN.name), sql.Identifier(SEQ.name)
    condition = sql.SQL('"t".{lsn} < {w}' if is_streamed else 'NOT ("t".{lsn} = {w} AND "t".{seq} = 0)')
    return sql.SQL('SELECT {} FROM {} AS "t" WHERE {}').format(
        values, log, condition.format(lsn=lsn, seq=seq, w=sql.Literal(int(watermark)))
    )


def _carried(
    dialect: Dialect,
    schema: TableSchema,
    carried: Mapping[str, str],
    present: Mapping[str, str],
    added: Sequence[StoredColumn],
    moment: datetime | None = None,
) -> list[Query]:
    """The values that rows of the old table, t, have in the columns of `schema`, and those `added`.

    `moment` is in place of NULL in DELETED_AT.
    """
    chosen: list[Query] = []
    for column in schema.columns:
        there = carried.get(column.name)
        value = None if there is None else dialect.carried(sql.Identifier("t", there), present[there], column)
        if value is None:
            value = sql.SQL("CAST(NULL AS {})").format(statements.type_name(dialect, column))
        if moment is not None and column.attnum == DELETED_AT.attnum:
            value = sql.SQL("coalesce({}, {})").format(value, dialect.moment(moment, DELETED_AT))
        chosen.append(sql.SQL("{} AS {}").format(value, sql.Identifier(column.name)))
    return [*chosen, *(sql.Identifier("t", column.name) for column in added)]


def _lost(
    dialect: Dialect, schema: TableSchema, carried: Mapping[str, str], present: Mapping[str, str]
) -> dict[str, Query]:
    """By column whose digits a copy decided: whether a row of the old table, t, has a value that is not carried."""
    conditions: dict[str, Query] = {}
    for column in schema.columns:
        there = carried.get(column.name)
        if column.fraction_digits is None or there is None:
            continue
        held = sql.Identifier("t", there)
        value = dialect.carried(held, present[there], column)
        is_not = sql.SQL("TRUE") if value is None else sql.SQL("{} IS NULL").format(value)
        conditions[column.name] = sql.SQL("{} IS NOT NULL AND {}").format(held, is_not)
    return conditions


def _flag(name: str) -> str:
    return f"etl$lost${name}"


def _flags(lost: Mapping[str, Query]) -> list[Query]:
    return [sql.SQL("{} AS {}").format(condition, sql.Identifier(_flag(name))) for name, condition in lost.items()]


def _are_kept(
    dialect: Dialect,
    schema: TableSchema,
    carried: Mapping[str, str],
    present: Mapping[str, str],
    names: Collection[str],
) -> bool:
    """Whether the old table's rows have what they had in these columns."""
    return all(
        name in carried
        and dialect.type_change(present[carried[name]], schema.column(name)) in (TypeChange.NONE, TypeChange.GROWS)
        for name in names
    )


def _without(dialect: Dialect, rows: Query, names: Sequence[str], keys: Sequence[Column]) -> Query:
    """Of `rows` those whose key is not among the Arrow rows, of each key the one deleted last.

    With NULL in the key all that were deleted before, and no others: which of these live cannot be told. `names` are
    the columns of `rows` to keep.
    """
    key = [sql.Identifier("o", column.name) for column in keys]
    is_among = statements.is_among(dialect, "o", keys)
    if dialect.finds_keys_by_in:  # of which NULL is no answer
        is_among = sql.SQL("coalesce({}, FALSE)").format(is_among)
    is_known = [sql.SQL("{} IS NOT NULL").format(name) for name in key]
    number = sql.Identifier("etl$number")
    return sql.SQL(
        'SELECT {} FROM (SELECT "o".*, row_number() OVER (PARTITION BY {} ORDER BY "o".{} DESC) AS {} FROM ({}) AS "o"'
        ' WHERE ("o".{} OR ({})) AND NOT {}) AS "o"'
        " WHERE {} = 1 OR {}"
    ).format(
        _list(", ", [sql.Identifier(name) for name in names]),
        _list(", ", key),
        _DELETED_AT,
        number,
        rows,
        _WAS_DELETED,
        _list(" AND ", is_known),
        is_among,
        number,
        _list(" OR ", [sql.SQL("{} IS NULL").format(name) for name in key]),
    )


def _list(separator: LiteralString, parts: Sequence[Query]) -> Query:
    return sql.SQL(separator).join(parts)
