# mypy: ignore-errors
"""Runs `local-bigquery` with a fault of it mended. A script of its own: the emulator's Python has nothing of ours.

Its MERGE begins a transaction to find out whether one is open. DuckDB 1.5 takes the refusal for an error of the open
transaction, which is lost by it, so that no script with a MERGE in a transaction could end well.
"""

import sys

import duckdb
from local_bigquery.cli import main
from local_bigquery.jobs import merge, query
from sqlglot import exp

_open: set[int] = set()
"""The cursors, by id, in whose scripts a transaction is open."""

_run_merge = merge.run
_run_statement = query._run


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


def _merge(cursor, *arguments):
    return _run_merge(_Cursor(cursor) if id(cursor) in _open else cursor, *arguments)


def _statement(cursor, tree, *arguments):
    done = _run_statement(cursor, tree, *arguments)
    if isinstance(tree, exp.Transaction):
        _open.add(id(cursor))
    elif isinstance(tree, exp.Commit | exp.Rollback):
        _open.discard(id(cursor))
    return done


merge.run = _merge
query._run = _statement

if __name__ == "__main__":
    sys.exit(main())
