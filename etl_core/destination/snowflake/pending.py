"""What transactions have decided about tables and views as a whole: written down in them, done once they are committed.

Each step may be done again until it is noted as done, and is: by whoever begins next, if a process ends in between.

**A view never shows a table by the query for another one.** One that is there is replaced twice: before the table
replaces the other it shows that where it was made, afterwards under its name. Of two queries that differ in the key, or
in the copy that they begin at, the old one would tell other versions of the new table.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from psycopg import sql
from snowflake.connector.errors import Error, ProgrammingError

from etl_core.destination.snowflake.connection import Link
from etl_core.destination.snowflake.failures import ABSENT
from etl_core.destination.sql import statements
from etl_core.destination.sql.dialect import NAMESPACE, Query
from etl_core.identifiers import TableName
from etl_core.schema.change_log import views_of

_log = logging.getLogger(__name__)

_PENDING, _VIEWS = sql.Identifier(NAMESPACE, "pending"), sql.Identifier(NAMESPACE, "pending_views")
_LOGS = sql.Identifier(NAMESPACE, "logs")
SUPPORT = (
    sql.SQL(
        "CREATE TABLE IF NOT EXISTS {} (pipeline VARCHAR NOT NULL, namespace VARCHAR NOT NULL, name VARCHAR NOT NULL,"
        " made VARCHAR)"
    ).format(_PENDING),
    sql.SQL(
        "CREATE TABLE IF NOT EXISTS {} (pipeline VARCHAR NOT NULL, number NUMBER(10,0) NOT NULL,"
        " namespace VARCHAR NOT NULL, name VARCHAR NOT NULL, meanwhile VARCHAR, definition VARCHAR)"
    ).format(_VIEWS),
)
"""The statements that create what is here if it is missing."""


class Shown(sql.Identifier):
    """A relation within the query of a view."""


def note_tables(link: Link, pipeline: str, steps: Iterable[tuple[TableName, str | None]]) -> None:
    """Has tables of `_etl` replace those of these names, which are dropped where it is None."""
    insert = sql.SQL("INSERT INTO {} (pipeline, namespace, name, made) VALUES (?, ?, ?, ?)").format(_PENDING)
    for name, made in steps:
        link.run(insert, (pipeline, name.namespace, name.name, made))


def note_views(
    link: Link, pipeline: str, views: Mapping[TableName, Query | None], places: Mapping[TableName, str]
) -> None:
    """Has views be made, in this order, and dropped where it is None. `places` are the tables of `_etl` by name."""
    insert = sql.SQL(
        "INSERT INTO {} (pipeline, number, namespace, name, meanwhile, definition) VALUES (?, ?, ?, ?, ?, ?)"
    ).format(_VIEWS)
    for number, (name, query) in enumerate(views.items()):
        queries = (None, None) if query is None else (_where_made(query, places).as_string(None), query.as_string(None))
        link.run(insert, (pipeline, number, name.namespace, name.name, *queries))


def _where_made(query: Query, places: Mapping[TableName, str]) -> Query:
    """The query of a view, of tables where they were made."""
    if isinstance(query, sql.Composed):
        return sql.Composed([_where_made(part, places) for part in query])
    made = [place for name, place in places.items() if query == Shown(name.namespace, name.name)]
    return sql.Identifier(NAMESPACE, made[0]) if made else query


def is_pending(link: Link, pipeline: str) -> bool:
    """Whether something is to be done."""
    query = sql.SQL("SELECT 1 FROM {} WHERE pipeline = ? UNION ALL SELECT 1 FROM {} WHERE pipeline = ?")
    try:
        return bool(link.run(query.format(_PENDING, _VIEWS), (pipeline, pipeline)).fetchall())
    except Error as error:
        if error.errno not in ABSENT:
            raise
        return bool(_tables(link, pipeline))  # a version before views has created it, or none has


def finish(link: Link, pipeline: str) -> None:
    """Does it. In this writer's turn: a batch that came between a CLONE and its end would be replaced by that."""
    for number, view, meanwhile, definition in _views(link, pipeline):
        if definition is None:
            link.define(_drop(view))
            _view_is_done(link, pipeline, number)
        elif meanwhile != definition:
            link.define(statements.create_schema(sql.Identifier(view.namespace)))
            _show(link, view, meanwhile, keeps_if_absent=True)
    tables = _tables(link, pipeline)
    for name, made in tables:
        _put(link, name, made)
    for number, view, _, definition in _views(link, pipeline):  # another process may have done them meanwhile
        if not _show(link, view, definition):
            _make_again(link, pipeline, view)
        _view_is_done(link, pipeline, number)
    for name, made in tables:
        if made is not None:
            link.define(sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(NAMESPACE, made)))
        done = sql.SQL("DELETE FROM {} WHERE pipeline = ? AND namespace = ? AND name = ? AND made {}")
        which = sql.SQL("IS NULL") if made is None else sql.SQL("= ?")
        values = (pipeline, name.namespace, name.name, made)
        link.define(done.format(_PENDING, which), values[: 3 if made is None else 4])


def _put(link: Link, name: TableName, made: str | None) -> None:
    """Has the table replaced, or dropped."""
    if made is None:
        link.define(sql.SQL("DROP TABLE IF EXISTS {}").format(_identifier(name)))
        return
    link.define(statements.create_schema(sql.Identifier(name.namespace)))
    clone = sql.SQL("CREATE OR REPLACE TABLE {} CLONE {} COPY GRANTS")
    try:
        link.define(clone.format(_identifier(name), sql.Identifier(NAMESPACE, made)))
    except Error as error:
        if error.errno not in ABSENT:
            raise
        # It was dropped once it had been cloned, by another process: rows may have come since.


def _show(link: Link, view: TableName, query: str | None, *, keeps_if_absent: bool = False) -> bool:
    """Has a view show the query. Returns False, and has it dropped, if Snowflake refuses that.

    `keeps_if_absent`: unless its table is gone, as another process has done all of it meanwhile.
    """
    create = sql.SQL("CREATE OR REPLACE VIEW {} COPY GRANTS AS {}")
    try:
        link.define(create.format(_identifier(view), _word(query or "")))
    except ProgrammingError as error:
        if keeps_if_absent and error.errno in ABSENT:
            return True
        _log.warning(
            "view %s is missing in Snowflake, which refused to make it (error %s); it is tried again with the next"
            " changes of its table",
            view,
            error.errno,
        )
        with suppress(ProgrammingError):  # it is not there, or is a table
            link.define(_drop(view))
        return False
    return True


def _make_again(link: Link, pipeline: str, view: TableName) -> None:
    """Has the next changes of a log make its views."""
    query = sql.SQL(
        "UPDATE {} SET views = NULL WHERE pipeline = ? AND namespace = ? AND ? IN (name || ?, name || ?)"
    ).format(_LOGS)
    suffixes = [shown.name for shown in views_of(TableName("", ""))]
    link.define(query, (pipeline, view.namespace, view.name, *suffixes))


def _tables(link: Link, pipeline: str) -> list[tuple[TableName, str | None]]:
    rows = _rows(link, sql.SQL("SELECT namespace, name, made FROM {} WHERE pipeline = ?").format(_PENDING), pipeline)
    return [(TableName(namespace, name), made) for namespace, name, made in rows]


def _views(link: Link, pipeline: str) -> list[tuple[int, TableName, str | None, str | None]]:
    """Number, name, the query for the time before its table is in place, and the one for after: None of one to drop."""
    query = sql.SQL("SELECT number, namespace, name, meanwhile, definition FROM {} WHERE pipeline = ? ORDER BY number")
    rows = _rows(link, query.format(_VIEWS), pipeline)
    return [(int(number), TableName(namespace, name), *queries) for number, namespace, name, *queries in rows]


def _rows(link: Link, query: Query, pipeline: str) -> list[tuple[Any, ...]]:
    try:
        return [tuple(row) for row in link.run(query, (pipeline,)).fetchall()]
    except Error as error:
        if error.errno in ABSENT:
            return []  # before it was created
        raise


def _view_is_done(link: Link, pipeline: str, number: int) -> None:
    link.define(sql.SQL("DELETE FROM {} WHERE pipeline = ? AND number = ?").format(_VIEWS), (pipeline, number))


def _drop(view: TableName) -> Query:
    return sql.SQL("DROP VIEW IF EXISTS {}").format(_identifier(view))


def _identifier(name: TableName) -> Query:
    return sql.Identifier(name.namespace, name.name)


def _word(query: str) -> Query:
    return sql.SQL(query)  # a query that was composed, and written down
