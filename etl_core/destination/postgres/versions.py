"""How PostgreSQL spells the views of a table's versions.

No window function of PostgreSQL 18 passes over values that are not known, so the bookkeeping has an aggregate that
does: `_etl.last_known(value, is_known)`. It costs the same for every row of a key, and keeps any type as it is. A view
runs it for whoever reads the view: functions may be executed by all, and a view needs no right on their schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import LiteralString

from psycopg import sql

from etl_core.destination.sql.dialect import NAMESPACE, Dialect, Query, VersionsDialect
from etl_core.schema.table import Column

_LAST_KNOWN = sql.Identifier(NAMESPACE, "last_known")
# Where it is there it stays: views use it.
FUNCTIONS: tuple[LiteralString, ...] = (
    """
    DO $do$ BEGIN
        IF pg_catalog.to_regprocedure('_etl.last_known(anyelement, boolean)') IS NULL THEN
            CREATE OR REPLACE FUNCTION {namespace}.later(anyelement, anyelement, boolean) RETURNS anyelement
                LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
                AS 'BEGIN RETURN CASE WHEN $3 THEN $2 ELSE $1 END; END';
            CREATE AGGREGATE {namespace}.last_known(anyelement, boolean) (
                SFUNC = {namespace}.later, STYPE = anyelement, PARALLEL = SAFE);
        END IF;
    END $do$
    """,
)
LOGS: LiteralString = """
    CREATE TABLE IF NOT EXISTS {logs} (
        pipeline text NOT NULL, table_id bigint NOT NULL, since numeric(20), namespace text, name text, views text,
        PRIMARY KEY (pipeline, table_id))
"""


class PostgresVersions(VersionsDialect):
    """See VersionsDialect."""

    def position(self, lsn: Query, seq: Query) -> Query:
        return sql.SQL("CAST({} AS numeric) * 4294967296 + {}").format(lsn, seq)

    def lists(self, names: Query, name: str) -> Query:
        return sql.SQL("coalesce({} = ANY ({}), FALSE)").format(sql.Literal(name), names)

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
        known = sql.SQL("{} OR {}").format(is_sent, is_moved)
        return sql.SQL(
            "CAST({last}(CASE WHEN {sent} THEN {value} END, {known}) OVER ({by_key}) AS {kind}) AS {name},"
            " {last}(CASE WHEN NOT ({sent}) THEN {place} END, {known}) OVER ({by_key}) AS {moved}"
        ).format(
            last=_LAST_KNOWN,
            sent=is_sent,
            value=value,
            by_key=by_key,
            known=known,
            kind=kind,
            place=place,
            name=sql.Identifier(name),
            moved=sql.Identifier(_moved(number)),
        )

    def value(self, alias: str, name: str, number: int) -> Query:  # noqa: ARG002
        return sql.Identifier(alias, name)

    def moved(self, alias: str, name: str, number: int) -> Query:  # noqa: ARG002
        return sql.Identifier(alias, _moved(number))

    def next_known(self, value: Query, is_known: Query, partition: Query, order: Query) -> Query:
        # From the end on: an aggregate whose frame loses its first rows would begin anew in each.
        return sql.SQL("{}({}, {}) OVER (PARTITION BY {} ORDER BY {} DESC ROWS UNBOUNDED PRECEDING)").format(
            _LAST_KNOWN, value, is_known, partition, order
        )

    def same(self, dialect: Dialect, left: Query, right: Query, column: Column) -> Query:  # noqa: ARG002
        return sql.SQL("CAST({} AS text) IS NOT DISTINCT FROM CAST({} AS text)").format(left, right)

    def renamed(self, names: Query, now: Mapping[str, str | None]) -> Query:
        gone = [sql.Literal(name) for name, new in now.items() if new is None]
        cases = [
            sql.SQL("WHEN {} THEN {}").format(sql.Literal(name), sql.Literal(new))
            for name, new in now.items()
            if new is not None
        ]
        called = sql.SQL("CASE x {} ELSE x END").format(sql.SQL(" ").join(cases)) if cases else sql.SQL("x")
        stays = sql.SQL("x NOT IN ({})").format(sql.SQL(", ").join(gone)) if gone else sql.SQL("TRUE")
        return sql.SQL("(SELECT array_agg({} ORDER BY n) FROM unnest({}) WITH ORDINALITY AS u (x, n) WHERE {})").format(
            called, names, stays
        )


def _moved(number: int) -> str:
    return f"_etl_moved_{number}"
