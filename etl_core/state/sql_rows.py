"""The rows of one pipeline in the tables of the SQL store: transactions, and what every query of them has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import ColumnElement, Connection, Engine, Row, TableClause

from etl_core.identifiers import TableId
from etl_core.state.sql_engine import begin_read, begin_write
from etl_core.state.sql_errors import translated
from etl_core.state.sql_tables import build_tables

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class PipelineRows:
    """On an engine of `sql_engine`. `place` names the database in messages, without a secret."""

    def __init__(self, engine: Engine, place: str, pipeline: str) -> None:
        self._engine = engine
        self._place = place
        self._pipeline = pipeline
        self._sql = build_tables(engine.dialect.name)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._pipeline} at {self._place}>"

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        """A transaction for one SELECT."""
        with translated(self._place), self._engine.begin() as connection:
            begin_read(connection)
            yield connection

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        """A transaction that is alone in its pipeline; any error leaves nothing of it behind."""
        with translated(self._place), self._engine.begin() as connection:
            begin_write(connection, self._pipeline)
            yield connection

    def _mine(self, table: TableClause, table_id: TableId | None = None) -> tuple[ColumnElement[bool], ...]:
        """Conditions for this pipeline's rows in `table`, or for those of one table."""
        mine = table.c.pipeline == self._pipeline
        return (mine,) if table_id is None else (mine, table.c.table_id == table_id)

    def _select(self, table: TableClause, table_id: TableId | None = None) -> sa.Select[Any]:
        return sa.select(table).where(*self._mine(table, table_id))

    def _rows(self, table: TableClause) -> Sequence[Row[Any]]:
        with self._read() as connection:
            return connection.execute(self._select(table)).all()

    def _row(self, table: TableClause, table_id: TableId | None = None) -> Row[Any] | None:
        with self._read() as connection:
            return connection.execute(self._select(table, table_id)).one_or_none()

    def _put(self, connection: Connection, table: TableClause, values: dict[str, Any]) -> None:
        """Writes the pipeline's only row in `table`."""
        connection.execute(sa.delete(table).where(*self._mine(table)))
        connection.execute(sa.insert(table).values(pipeline=self._pipeline, **values))

    def _delete(self, *tables: TableClause) -> None:
        """Deletes the pipeline's rows in all of these, or in none."""
        with self._write() as connection:
            for table in tables:
                connection.execute(sa.delete(table).where(*self._mine(table)))


def values_of(record: DataclassInstance) -> dict[str, Any]:
    """The fields by name, as they are: `asdict` would copy them deeply."""
    return {field.name: getattr(record, field.name) for field in fields(record)}


def fields_of(row: Row[Any]) -> dict[str, Any]:
    """A row by column name, without the pipeline."""
    return {name: value for name, value in row._mapping.items() if name != "pipeline"}
