"""Statements in a lake, and the lake as the `Database` that they are run in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import duckdb

from etl_core.destination.duckdb_sql.session import EngineSession
from etl_core.destination.ducklake.connection import Lake
from etl_core.destination.ducklake.dialect import DIALECT
from etl_core.destination.ducklake.failures import explain_table
from etl_core.errors import EtlError
from etl_core.identifiers import TableName


class LakeSession(EngineSession):
    """See Session."""

    def __init__(self, lake: Lake, connection: duckdb.DuckDBPyConnection) -> None:
        super().__init__(connection, DIALECT)
        self._lake = lake

    def explain(self, error: duckdb.Error, name: TableName) -> EtlError:
        return explain_table(error, name, self._lake.catalog, self._lake.storage.path)


class LakeDatabase:
    """See Database."""

    def __init__(self, lake: Lake) -> None:
        self._lake = lake

    def exists(self) -> bool:
        return self._lake.exists()

    @contextmanager
    def reading(self, *, wait_seconds: float | None = None) -> Iterator[LakeSession]:
        with self._lake.open(wait_seconds=wait_seconds) as connection:
            connection.execute("BEGIN TRANSACTION")
            yield LakeSession(self._lake, connection)

    @contextmanager
    def transaction(self, *, tables: int = 1) -> Iterator[LakeSession]:  # noqa: ARG002
        with self._lake.transaction() as connection:
            yield LakeSession(self._lake, connection)
