# mypy: ignore-errors
# ruff: noqa: S608 names come parsed from the tests' own SQL
"""Runs `local-bigquery` with faults of it mended. A script of its own: the emulator's Python has nothing of ours.

Its MERGE begins a transaction to find out whether one is open. DuckDB 1.5 takes the refusal for an error of the open
transaction, which is lost by it, so that no script with a MERGE in a transaction could end well.

Its statements are small: threads of DuckDB for them cost more than they save, a third of its CPU time.

It keeps tables in DuckLake, whose catalog of its own is asked and written several times for each statement: half of the
emulator's CPU time, and rows that an open transaction has written share their `rowid`, by which a MERGE tells rows
apart. In DuckDB's memory both are gone with nothing else that a test could see.

It asks DuckDB's catalog functions what columns and tables there are, and they describe all that DuckDB has for each
answer: two milliseconds, where a look at the one table takes a fifth. DuckDB looks for pandas, which is not installed
here, at each parameter of a statement: half the time of such a question, unless Python knows that there is none.

The rows of a write stream were validated as those of a request over HTTP, by a model of pydantic for each: a third of
the time of a stream's commit, and nothing is wrong with what a message of their schema held.
"""

import contextlib
import functools
import logging
import sys
from types import SimpleNamespace

import duckdb
from local_bigquery.catalog import tabledata
from local_bigquery.cli import main
from local_bigquery.engine import database
from local_bigquery.grpc import write
from local_bigquery.jobs import merge, query
from sqlglot import exp

_connect = database._connect.__wrapped__
_open: set[int] = set()
"""The cursors, by id, in whose scripts a transaction is open."""

_fetch = database.fetch
_list_objects = database.objects
_run_merge = merge.run
_run_query = query.execute
_run_statement = query._run
_run_script = query._execute


class _Cursor:
    """A cursor in an open transaction, which refuses BEGIN by itself."""

    def __init__(self, cursor):
        self._cursor = cursor

    def __getattr__(self, name):
        return getattr(self._cursor, name)

    def execute(self, sql, *arguments):
        if sql == "BEGIN":
            raise duckdb.TransactionException("a transaction is open")
        return self._cursor.execute(sql, *arguments)


def _merge(cursor, tree, context):
    return _run_merge(_Cursor(cursor) if id(cursor) in _open else cursor, tree, context)


def _statement(cursor, tree, *arguments):
    done = _run_statement(cursor, tree, *arguments)
    if isinstance(tree, exp.Transaction):
        _open.add(id(cursor))
    elif isinstance(tree, exp.Commit | exp.Rollback):
        _open.discard(id(cursor))
    return done


def _script(cursor, *arguments):
    try:
        return _run_script(cursor, *arguments)
    finally:
        _open.discard(id(cursor))


def _attach(connection, project_id):
    connection.execute(f"ATTACH IF NOT EXISTS ':memory:' AS {database.quote(project_id)}")
    database._attached.add(project_id)


def _objects(project_id, dataset_id, table_id=None):
    if table_id is not None:
        table = database.quote(project_id, dataset_id, table_id)
        with contextlib.suppress(duckdb.CatalogException):  # a view, or nothing
            database.fetch("SELECT 1 FROM pragma_storage_info($1) LIMIT 0", [table])
            return database.fetch(f"SELECT $1, 'TABLE', count(*) FROM {table}", [table_id])
    return _list_objects(project_id, dataset_id, table_id)


def _fetch_cheaply(sql, parameters=None):
    if "FROM duckdb_columns() WHERE database_name = ?" in sql:
        table = database.quote(*parameters[:3])
        which = '"notnull"' if "NOT is_nullable" in sql else "name = $2"
        try:
            return _fetch(f"SELECT name FROM pragma_table_info($1) WHERE {which}", [table, *parameters[3:]])
        except duckdb.CatalogException:
            return []
    return _fetch(sql, parameters)


class _NewCursor:
    """A cursor that has made no temporary table yet, which is all that a statement without a session is asked first."""

    def __init__(self, cursor):
        self._cursor = cursor

    def __getattr__(self, name):
        return getattr(self._cursor, name)

    def sql(self, sql, **options):
        if sql == "SELECT table_name FROM duckdb_tables() WHERE temporary":
            sql = "SELECT '' WHERE false"
        return self._cursor.sql(sql, **options)


def _query(cursor, *arguments, session=None, **options):
    return _run_query(cursor if session else _NewCursor(cursor), *arguments, session=session, **options)


def _insert(stream, rows):
    def row(values):
        return SimpleNamespace(insertId=None, json_=SimpleNamespace(model_dump=lambda: values))

    body = SimpleNamespace(templateSuffix=None, ignoreUnknownValues=None, skipInvalidRows=None)
    body.rows = [row(values) for values in rows]
    errors = tabledata.insert_all(*stream.table, body).get("insertErrors", [])
    return [error for error in errors if any(each["reason"] != "stopped" for each in error["errors"])]


def _attach(connection, project_id):
    connection.execute(f"ATTACH IF NOT EXISTS ':memory:' AS {database.quote(project_id)}")
    database._attached.add(project_id)


@functools.cache
def _connect_with_one_thread():
    connection = _connect()
    connection.execute("SET threads = 1")
    return connection


sys.modules["pandas"] = None
logging.disable(logging.INFO)  # a line for each request, which nobody reads
database._attach = _attach
database._connect = _connect_with_one_thread
database.fetch = _fetch_cheaply
database.objects = _objects
write._insert = _insert
merge.run = _merge
query.execute = _query
query._run = _statement
query._execute = _script

if __name__ == "__main__":
    sys.exit(main())
