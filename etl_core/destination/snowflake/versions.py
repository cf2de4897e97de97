"""How Snowflake spells the views of a table's versions.

Its window functions pass over NULL, and a value that is carried may be NULL. So the place of what is known is carried
beside the value: where both are of one row, that is the value. Lists of names are PostgreSQL's text of an array, each
name in quotes.
"""

from __future__ import annotations

from collections.abc import Mapping

from psycopg import sql

from etl_core.destination.sql.dialect import Dialect, Query, VersionsDialect
from etl_core.schema.table import Column

_UP_TO = sql.SQL("ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW")
_FROM = sql.SQL("ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING")
"""Always said: what Snowflake takes without it differs from function to function."""


class SnowflakeVersions(VersionsDialect):
    """See VersionsDialect."""

    inlined = once = sql.SQL("")

    def position(self, lsn: Query, seq: Query) -> Query:
        return sql.SQL("CAST({} AS NUMBER(38,0)) * 4294967296 + {}").format(lsn, seq)

    def lists(self, names: Query, name: str) -> Query:
        return sql.SQL("COALESCE(POSITION({}, {}) > 0, FALSE)").format(_quoted(_element(name)), _elements(names))

    def carried(
        self,
        value: Query,
        name: str,
        number: int,
        kind: Query,
        is_sent: Query,
        is_moved: Query,
        place: Query,
        by_key: Query,
    ) -> Query:
        return sql.SQL(
            "CAST(CASE WHEN MAX(CASE WHEN {sent} OR {moved} THEN {place} END) OVER ({rows})"
            " = MAX(CASE WHEN {sent} AND {value} IS NOT NULL THEN {place} END) OVER ({rows})"
            " THEN LAST_VALUE(CASE WHEN {sent} THEN {value} END) IGNORE NULLS OVER ({rows}) END AS {kind}) AS {name},"
            " CASE WHEN MAX(CASE WHEN {sent} OR {moved} THEN {place} END) OVER ({rows})"
            " = MAX(CASE WHEN {moved} AND NOT ({sent}) THEN {place} END) OVER ({rows})"
            " THEN MAX(CASE WHEN {moved} AND NOT ({sent}) THEN {place} END) OVER ({rows}) END AS {name_of_move}"
        ).format(
            sent=is_sent,
            moved=is_moved,
            place=place,
            value=value,
            kind=kind,
            rows=sql.SQL("{} {}").format(by_key, _UP_TO),
            name=sql.Identifier(name),
            name_of_move=sql.Identifier(_moved(number)),
        )

    def value(self, alias: str, name: str, number: int) -> Query:  # noqa: ARG002
        return sql.Identifier(alias, name)

    def moved(self, alias: str, name: str, number: int) -> Query:  # noqa: ARG002
        return sql.Identifier(alias, _moved(number))

    def next_known(self, value: Query, is_known: Query, partition: Query, order: Query) -> Query:
        return sql.SQL(
            "CASE WHEN MIN(CASE WHEN {known} THEN {order} END) OVER ({rows})"
            " = MIN(CASE WHEN {known} AND {value} IS NOT NULL THEN {order} END) OVER ({rows})"
            " THEN FIRST_VALUE(CASE WHEN {known} THEN {value} END) IGNORE NULLS OVER ({rows}) END"
        ).format(
            known=is_known,
            order=order,
            value=value,
            rows=sql.SQL("PARTITION BY {} ORDER BY {} {}").format(partition, order, _FROM),
        )

    def same(self, dialect: Dialect, left: Query, right: Query, column: Column) -> Query:
        told = dialect.told_apart(left, column), dialect.told_apart(right, column)
        same = sql.SQL("{} IS NOT DISTINCT FROM {}")
        if told[0] is None or told[1] is None:
            return same.format(left, right)
        return sql.SQL("{} AND {}").format(same.format(left, right), same.format(*told))

    def renamed(self, names: Query, now: Mapping[str, str | None]) -> Query:
        """See VersionsDialect. By way of what is no element, as names may be swapped."""
        elements = _elements(names)
        for number, (name, new) in enumerate(now.items()):
            between = "," if new is None else _passing(number)
            elements = _replaced(elements, _element(name), between)
        for number, new in enumerate(now.values()):
            if new is not None:
                elements = _replaced(elements, _passing(number), _element(new))
        return sql.SQL("CASE WHEN LENGTH({e}) > 1 THEN '{{' || SUBSTR({e}, 2, LENGTH({e}) - 2) || '}}' END").format(
            e=elements
        )


def _moved(number: int) -> str:
    return f"_etl_moved_{number}"


def _elements(names: Query) -> Query:
    """The elements of a list, with a comma before each and behind the last."""
    return sql.SQL("',' || SUBSTR({n}, 2, LENGTH({n}) - 2) || ','").format(n=names)


def _element(name: str) -> str:
    """An element as it is among `_elements`: within the quotes a quote has a backslash before it."""
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f',"{escaped}",'


def _passing(number: int) -> str:
    """What no list has: a name has no quote without a backslash."""
    return f',""{number}"",'


def _replaced(text: Query, before: str, after: str) -> Query:
    return sql.SQL("REPLACE({}, {}, {})").format(text, _quoted(before), _quoted(after))


def _quoted(text: str) -> Query:
    """A string constant: in those of Snowflake a backslash escapes what comes next."""
    escaped = text.replace("\\", "\\\\").replace("'", "''")
    return sql.SQL(f"'{escaped}'")
