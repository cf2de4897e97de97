# mypy: ignore-errors
# ruff: noqa: S608 names come parsed from the tests' own SQL
"""Runs `local-bigquery` with faults of it mended. A script of its own: the emulator's Python has nothing of ours.

Its MERGE begins a transaction to find out whether one is open. DuckDB 1.5 takes the refusal for an error of the open
transaction, which is lost by it, so that no script with a MERGE in a transaction could end well.

It tells rows apart by DuckLake's `rowid`, which is not unique among rows that the open transaction has written: a
second MERGE into one table failed. In a transaction a MERGE runs on a copy of the table, whose rows then replace the
table's.

Its statements are small: threads of DuckDB for them cost more than they save, a third of its CPU time.
"""

import functools
import sys

import duckdb
import sqlglot
from local_bigquery.cli import main
from local_bigquery.engine import database
from local_bigquery.jobs import merge, query
from local_bigquery.sql.dialect import BigQueryDialect
from local_bigquery.sql.translate import translate
from sqlglot import exp

_COPY = "__merge_target"
_connect = database._connect.__wrapped__
_open: set[int] = set()
"""The cursors, by id, in whose scripts a transaction is open."""

_run_merge = merge.run
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


@functools.cache
def _connect_with_one_thread():
    connection = _connect()
    connection.execute("SET threads = 1")
    return connection


database._connect = _connect_with_one_thread
merge.run = _merge
query._run = _statement
query._execute = _script

if __name__ == "__main__":
    sys.exit(main())
