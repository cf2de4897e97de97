"""The queries of the views beside a log whose table has a history: every version of each row, and the rows of now.

A version begins with the insert, update or copy of its row, and ends with what comes next to its key: an update, a
delete, an update that moves it to another key, a TRUNCATE, a copy without it. The order is that of the log, within a
transaction too. A copied row that is what the version before it was continues that one: the same to `Dialect.same`
and, where that is not enough, to `Dialect.told_apart` (`VersionsDialect.same`).

A value that an update left unchanged is carried from the last row of its key that has it. Where the row was moved to
that key without it, it is carried from the key before, and so on: such values have the position of that move beside
them (`moved`), and a recursion over these moves alone finds what they brought.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from psycopg import sql

from etl_core.destination.sql import statements
from etl_core.destination.sql.dialect import Dialect, Query, VersionsDialect
from etl_core.lsn import Lsn
from etl_core.schema.change_log import (
    LSN,
    PREFIX,
    SEQ,
    UNCHANGED,
    VALID_FROM,
    VALID_TO,
    old_name,
    row_columns,
    told_by,
)
from etl_core.schema.table import Column, TableSchema

_LOG = """WITH RECURSIVE "_etl_log" AS {inlined}(
    SELECT {columns}, {olds}, "_etl_op", "_etl_lsn", "_etl_seq", "_etl_committed_at", "_etl_unchanged",
        {position} AS "_etl_place"
    FROM {log} AS "_etl_t" WHERE "_etl_lsn" >= {since}
)"""
_RESETS = """
"_etl_resets" AS (
    SELECT "_etl_place", coalesce(lead("_etl_place") OVER (ORDER BY "_etl_place"), {end}) AS "_etl_until",
        lead("_etl_place") OVER (ORDER BY "_etl_place") AS "_etl_next",
        lead("_etl_committed_at") OVER (ORDER BY "_etl_place") AS "_etl_next_at"
    FROM (
        SELECT "_etl_place", min("_etl_committed_at") AS "_etl_committed_at" FROM "_etl_log"
        WHERE "_etl_op" IN ('copy', 'truncate') GROUP BY "_etl_place"
    ) AS "_etl_t"
)"""
"""From where to where versions of rows may be valid, if nothing ends them before; those of copied rows may go on.

`lead` has one argument: DuckDB 1.5 cannot read a view of DuckDB 2.0 in which it has three.
"""
_EVENTS = """
"_etl_events" AS {inlined}(
    SELECT {columns}, "_etl_op", "_etl_lsn", "_etl_seq", "_etl_committed_at", "_etl_unchanged", "_etl_place",
        "_etl_op" <> 'delete' AS "_etl_lives", {old} IS NOT NULL AS "_etl_moved", FALSE AS "_etl_brings"
    FROM "_etl_log" WHERE "_etl_op" <> 'truncate'
    UNION ALL
    SELECT {left}, 'delete', "_etl_lsn", "_etl_seq", "_etl_committed_at", NULL, "_etl_place",
        FALSE, FALSE, "_etl_unchanged" IS NOT NULL
    FROM "_etl_log" WHERE {old} IS NOT NULL
)"""
"""What came to each key. An update that moves a row comes to two: its key of before, where it ends, comes first."""
_BROUGHT = """
"_etl_moves" AS {once}(
    SELECT "_etl_m".*, {origin} AS "_etl_origin" FROM (
        SELECT {carried}, "_etl_place", "_etl_brings" FROM "_etl_events" AS "_etl_m"
        WHERE EXISTS (SELECT 1 FROM "_etl_log" AS "_etl_b" WHERE {was_key} AND "_etl_b"."_etl_unchanged" IS NOT NULL)
    ) AS "_etl_m" WHERE "_etl_brings"
), "_etl_brought" AS (
    SELECT {known}, "_etl_place" FROM "_etl_moves" AS "_etl_m" WHERE "_etl_origin" IS NULL
    UNION ALL
    SELECT {found}, "_etl_m"."_etl_place"
    FROM "_etl_moves" AS "_etl_m" JOIN "_etl_brought" AS "_etl_b" ON "_etl_b"."_etl_place" = "_etl_m"."_etl_origin"
)"""
"""The values that rows had when they were moved to another key, by where that was."""
_CARRIED = """
"_etl_carried" AS {inlined}(
    SELECT {carried}, {next}, "_etl_lsn", "_etl_seq", "_etl_committed_at", "_etl_place", "_etl_lives",
        lead("_etl_op") OVER ({by_key}) AS "_etl_next_op",
        lead("_etl_place") OVER ({by_key}) AS "_etl_next", lead("_etl_committed_at") OVER ({by_key}) AS "_etl_next_at"
    FROM "_etl_events" AS "_etl_m"
)"""
_ROWS = """
"_etl_rows" AS {inlined}(
    SELECT {found}, {next}, "_etl_m"."_etl_lsn", "_etl_m"."_etl_seq", "_etl_m"."_etl_committed_at",
        "_etl_m"."_etl_place",
        "_etl_m"."_etl_next_op" = 'copy' AND "_etl_m"."_etl_next" = "_etl_r"."_etl_next" AS "_etl_is_copied",
        CASE WHEN "_etl_r"."_etl_next" IS NULL OR "_etl_m"."_etl_next" <= "_etl_r"."_etl_next"
            THEN "_etl_m"."_etl_next_at" ELSE "_etl_r"."_etl_next_at" END AS "_etl_ends_at"
    FROM "_etl_carried" AS "_etl_m" {brought}
    LEFT JOIN "_etl_resets" AS "_etl_r"
        ON "_etl_m"."_etl_place" >= "_etl_r"."_etl_place" AND "_etl_m"."_etl_place" < "_etl_r"."_etl_until"
    WHERE "_etl_m"."_etl_lives"
)"""
"""Each row, whether it is in the copy that comes next, if that is what comes next, and when it ends."""
_JOIN_BROUGHT = 'LEFT JOIN "_etl_brought" AS "_etl_b" ON "_etl_b"."_etl_place" = {origin}'
_VERSIONS = """
SELECT {columns}, "_etl_committed_at" AS {valid_from}, "_etl_end" AS {valid_to}, "_etl_lsn", "_etl_seq" FROM (
    SELECT *, {end} AS "_etl_end",
        lag("_etl_goes_on") OVER (PARTITION BY {keys} ORDER BY "_etl_place") AS "_etl_went_on" FROM (
        SELECT *, coalesce("_etl_is_copied", FALSE) AND {same} AS "_etl_goes_on" FROM "_etl_rows"
    ) AS "_etl_t"
) AS "_etl_t" WHERE NOT coalesce("_etl_went_on", FALSE)"""
"""A version that goes on through copies ends with the last of them that is the same."""


_MOVES = "_etl_m"
"""What rows with carried values are called in a query."""


def versions(dialect: Dialect, spelled: VersionsDialect, log: Query, schema: TableSchema, since: Lsn) -> Query:
    """Every version: the source's columns, VALID_FROM, VALID_TO, and the `_etl_lsn` and `_etl_seq` it begins at.

    `since` is the position of the copy from which on the order and the key of the log are known.
    """
    every = row_columns(schema)
    keys = [column for column in every if column.name in told_by(schema)]
    values = [column for column in every if column not in keys]
    names = _names(keys)
    nexts = [sql.Identifier(f"_etl_next_{number}") for number in range(len(values))]
    numbers = {column.name: number for number, column in enumerate(values)}
    moved = [spelled.moved(_MOVES, c.name, numbers[c.name]) for c in values]
    origin = sql.SQL("coalesce({})").format(_list(moved)) if len(moved) > 1 else _list(moved)
    by_key = sql.SQL('PARTITION BY {} ORDER BY "_etl_place", "_etl_lives"').format(names)
    carried = _list(_carried(dialect, spelled, c, numbers[c.name], by_key) if c in values else _of(c) for c in every)
    found = [_as(_found(spelled, c, numbers[c.name]) if c in values else _of(c), c) for c in every]
    queries = [
        sql.SQL(_LOG).format(
            inlined=spelled.inlined,
            columns=_names(every),
            olds=_list(sql.Identifier(old_name(c.name)) for c in keys),
            position=spelled.position(sql.Identifier(LSN.name), sql.Identifier(SEQ.name)),
            log=log,
            since=sql.Literal(int(since)),
        ),
        sql.SQL(_RESETS).format(end=spelled.position(sql.Literal((1 << 63) - 1), sql.Literal(0))),
        sql.SQL(_EVENTS).format(
            inlined=spelled.inlined,
            columns=_names(every),
            old=sql.Identifier(old_name(keys[0].name)),
            left=_list(_as(sql.Identifier(old_name(c.name)) if c in keys else _null(dialect, c), c) for c in every),
        ),
    ]
    if values:
        queries.append(
            sql.SQL(_BROUGHT).format(
                once=spelled.once,
                origin=origin,
                carried=carried,
                was_key=_all([dialect.same(sql.Identifier("_etl_b", old_name(c.name)), _of(c), c) for c in keys]),
                known=_list(_as(spelled.value(_MOVES, c.name, numbers[c.name]), c) for c in values),
                found=_list(_as(_found(spelled, c, numbers[c.name]), c) for c in values),
            )
        )
    nothing = [sql.SQL('NULL AS "_etl_nothing"')]
    queries += [
        sql.SQL(_CARRIED).format(
            inlined=spelled.inlined,
            carried=carried,
            next=_list(
                [
                    sql.SQL("lead({}) OVER ({}) AS {}").format(_of(c), by_key, name)
                    for c, name in zip(values, nexts, strict=True)
                ]
                or nothing
            ),
            by_key=by_key,
        ),
        sql.SQL(_ROWS).format(
            inlined=spelled.inlined,
            found=_list(found),
            next=_list(nexts or nothing),
            brought=sql.SQL(_JOIN_BROUGHT).format(origin=origin) if values else sql.SQL(""),
        ),
    ]
    ends_at, is_last, place = (sql.SQL(text) for text in ('"_etl_ends_at"', 'NOT "_etl_goes_on"', '"_etl_place"'))
    end = spelled.next_known(ends_at, is_last, names, place)
    return sql.SQL(", ").join(queries) + sql.SQL(_VERSIONS).format(
        columns=_names(every),
        valid_from=sql.Identifier(VALID_FROM.name),
        valid_to=sql.Identifier(VALID_TO.name),
        end=end,
        same=_all([spelled.same(dialect, sql.Identifier(c.name), n, c) for c, n in zip(values, nexts, strict=True)]),
        keys=names,
    )


def current(view: Query, schema: TableSchema) -> Query:
    """The rows of now, of the view of all versions: the source's columns."""
    return sql.SQL("SELECT {} FROM {} WHERE {} IS NULL").format(
        _names(row_columns(schema)), view, sql.Identifier(VALID_TO.name)
    )


def rename_unchanged(dialect: Dialect, log: Query, now: Mapping[str, str | None]) -> Query | None:
    """Has UNCHANGED name columns of the source as they are called `now`, without those that are None: they are gone.

    None where nothing is to be done.
    """
    names = {name: new for name, new in now.items() if not name.startswith(PREFIX) and name != new}
    if dialect.versions is None or not names:
        return None
    unchanged = sql.Identifier(UNCHANGED.name)
    return sql.SQL("UPDATE {} SET {} = {} WHERE {} IS NOT NULL").format(
        log, unchanged, dialect.versions.renamed(unchanged, names), unchanged
    )


def _carried(dialect: Dialect, spelled: VersionsDialect, column: Column, number: int, by_key: Query) -> Query:
    """Of each row of `_etl_events` the last value of its key, or the move that brought it."""
    is_sent = sql.SQL('"_etl_lives" AND NOT {}').format(spelled.lists(sql.Identifier(UNCHANGED.name), column.name))
    kind, place, is_moved = statements.type_name(dialect, column), sql.SQL('"_etl_place"'), sql.SQL('"_etl_moved"')
    return spelled.carried(_of(column), column.name, number, kind, is_sent, is_moved, place, by_key)


def _found(spelled: VersionsDialect, column: Column, number: int) -> Query:
    value, moved = (take(_MOVES, column.name, number) for take in (spelled.value, spelled.moved))
    brought = sql.Identifier("_etl_b", column.name)
    return sql.SQL("CASE WHEN {} IS NULL THEN {} ELSE {} END").format(moved, value, brought)


def _null(dialect: Dialect, column: Column) -> Query:
    return sql.SQL("CAST(NULL AS {})").format(statements.type_name(dialect, column))


def _of(column: Column) -> Query:
    return sql.Identifier(_MOVES, column.name)


def _as(value: Query, column: Column) -> Query:
    return sql.SQL("{} AS {}").format(value, sql.Identifier(column.name))


def _names(columns: Iterable[Column]) -> Query:
    return _list(sql.Identifier(column.name) for column in columns)


def _list(parts: Iterable[Query]) -> Query:
    return sql.SQL(", ").join(parts)


def _all(conditions: list[Query]) -> Query:
    return sql.SQL(" AND ").join(conditions) if conditions else sql.SQL("TRUE")
