# mypy: ignore-errors
# ruff: noqa: S608 names come parsed from the tests' own SQL
"""Runs `local-bigquery` with faults of it mended. A script of its own: the emulator's Python has nothing of ours.

Its MERGE begins a transaction to find out whether one is open. DuckDB 1.5 takes the refusal for an error of the open
transaction, which is lost by it, so that no script with a MERGE in a transaction could end well.

It tells rows apart by DuckLake's `rowid`, which is not unique among rows that the open transaction has written: a
second MERGE into one table failed. In a transaction a MERGE runs on a copy of the table, whose rows then replace the
table's.

Its statements are small: threads of DuckDB for them cost more than they save, a third of its CPU time.

It asks DuckDB's catalog functions what tables, columns and datasets there are, and they look at all of DuckLake for
each answer: DuckLake's own tables give it in a quarter of the time. DuckDB looks for pandas, which is not installed
here, at each parameter of a statement: half the time of such a question, unless Python knows that there is none.

The rows of a write stream were validated as those of a request over HTTP, by a model of pydantic for each: a third of
the time of a stream's commit, and nothing is wrong with what a message of their schema held.
"""

import functools
import sys
from types import SimpleNamespace

import duckdb
import sqlglot
from local_bigquery.catalog import datasets, tabledata
from local_bigquery.cli import main
from local_bigquery.engine import database
from local_bigquery.grpc import write
from local_bigquery.jobs import merge, query
from local_bigquery.sql.dialect import BigQueryDialect
from local_bigquery.sql.translate import translate
from sqlglot import exp

_COPY = "__merge_target"
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
    if id(cursor) not in _open:
        return _run_merge(cursor, tree, context)

    def execute(sql):
        cursor.execute(*translate(sqlglot.parse_one(sql, dialect=BigQueryDialect), context))

    target = merge._unaliased(tree.this)
    execute(f"CREATE OR REPLACE TEMP TABLE {_COPY} AS SELECT * FROM {target}")
    on_copy = tree.copy()
    on_copy.set("this", exp.alias_(exp.to_table(_COPY), tree.this.alias_or_name, table=True))
    merged = _run_merge(_Cursor(cursor), on_copy, context)
    execute(f"DELETE FROM {target} WHERE TRUE")
    execute(f"INSERT INTO {target} SELECT * FROM {_COPY}")
    cursor.execute(f"DROP TABLE temp.{_COPY}")
    return merged


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


_SCHEMA = "JOIN {lake}.ducklake_schema s USING (schema_id) WHERE s.end_snapshot IS NULL AND schema_name = $1"
_OBJECTS = f"""
    SELECT table_name, 'TABLE', coalesce(record_count, 0)
    FROM {{lake}}.ducklake_table t LEFT JOIN {{lake}}.ducklake_table_stats USING (table_id) {_SCHEMA}
    AND t.end_snapshot IS NULL AND table_name = coalesce($2, table_name)
    UNION ALL SELECT view_name, 'VIEW', 0 FROM {{lake}}.ducklake_view t {_SCHEMA}
    AND t.end_snapshot IS NULL AND view_name = coalesce($2, view_name) ORDER BY 1
"""
_COLUMNS = f"""
    SELECT column_name FROM {{lake}}.ducklake_column c JOIN {{lake}}.ducklake_table t USING (table_id) {_SCHEMA}
    AND t.end_snapshot IS NULL AND table_name = $2 AND c.end_snapshot IS NULL AND parent_column IS NULL
"""
_DATASET = "SELECT 1 FROM {lake}.ducklake_schema WHERE end_snapshot IS NULL AND schema_name = $1"


def _of_lake(query, project_id, parameters):
    lake = database.quote(f"__ducklake_metadata_{project_id}")
    return _fetch(query.format(lake=lake), parameters)


def _objects(project_id, dataset_id, table_id=None):
    if project_id in database._attached:
        return _of_lake(_OBJECTS, project_id, [dataset_id, table_id])
    return _list_objects(project_id, dataset_id, table_id)


def _dataset_exists(project_id, dataset_id):
    return project_id in database._attached and bool(_of_lake(_DATASET, project_id, [dataset_id]))


def _fetch_cheaply(sql, parameters=None):
    if "FROM duckdb_columns() WHERE database_name = ?" in sql and parameters[0] in database._attached:
        which = "NOT nulls_allowed" if "NOT is_nullable" in sql else "column_name = $3"
        return _of_lake(f"{_COLUMNS} AND {which}", parameters[0], parameters[1:])
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


@functools.cache
def _connect_with_one_thread():
    connection = _connect()
    connection.execute("SET threads = 1")
    return connection


sys.modules["pandas"] = None
database._connect = _connect_with_one_thread
database.fetch = _fetch_cheaply
database.objects = _objects
datasets.exists = _dataset_exists
write._insert = _insert
merge.run = _merge
query.execute = _query
query._run = _statement
query._execute = _script

if __name__ == "__main__":
    sys.exit(main())
