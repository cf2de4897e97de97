"""Table states in the SQL store: moved one by one or many in a transaction, each only from what its caller read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence, Set
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, Row

from etl_core.errors import ClaimLost, StateConflict
from etl_core.identifiers import TableId, TableName
from etl_core.state.fingerprint_json import remembered_to_json
from etl_core.state.schema_json import schema_from_json, schema_to_json
from etl_core.state.sql_rows import PipelineRows, fields_of, values_of
from etl_core.state.store import FinishedCopy, Move, TableStatus, TableUpdate, Transition
from etl_core.state.table_state import TableState, check_transition

HISTORY_KEPT = 200
"""Transitions per table."""


class TransitionRows(PipelineRows):
    """The tables `tables` and `history`. `now` gives aware times."""

    def __init__(self, engine: Engine, place: str, pipeline: str, now: Callable[[], datetime]) -> None:
        super().__init__(engine, place, pipeline)
        self._now = now

    def transition(
        self, current: TableStatus, to: TableState, update: TableUpdate | None = None, *, claim: str | None = None
    ) -> TableStatus:
        with self._write() as connection:
            if claim is not None:
                self._check_claim(connection, claim)
            [moved] = self._move_all(connection, [(current, to, update or TableUpdate())])
        if isinstance(moved, StateConflict):
            raise moved
        return moved

    def transition_all(self, moves: Sequence[Move]) -> list[TableStatus | StateConflict]:
        with self._write() as connection:
            return self._move_all(connection, moves)

    def finish_copies(self, copies: Sequence[FinishedCopy]) -> list[TableStatus | StateConflict]:
        sql, table_ids = self._sql, [copy.schema.table_id for copy in copies]
        texts = [schema_to_json(copy.schema) for copy in copies]  # outside of the transaction, which others wait for
        with self._write() as connection:
            newest = self._newest_schemas(connection, table_ids)
            mine = {"pipeline": self._pipeline}
            versions, shapes, fingerprints = [], [], []
            for copy, text in zip(copies, texts, strict=True):
                version, stored = newest.get(copy.schema.table_id, (0, None))
                row = {**mine, "table_id": copy.schema.table_id}
                if stored is None or schema_to_json(schema_from_json(stored)) != text:
                    added = {"lsn": copy.remembered.lsn, "schema_json": text, "saved_at": self._now()}
                    versions.append({**row, "version": version + 1, **added})
                shapes.append({**row, "shape_json": copy.shape})
                what = {"lsn": copy.remembered.lsn, "fingerprint_json": remembered_to_json(copy.remembered)}
                fingerprints.append({**row, **what, "has_gap": copy.remembered.has_gap})
            for table, rows in ((sql.shapes, shapes), (sql.fingerprints, fingerprints)):
                connection.execute(sa.delete(table).where(*self._mine(table), table.c.table_id.in_(table_ids)))
                connection.execute(sa.insert(table), rows)
            if versions:
                connection.execute(sa.insert(sql.schemas), versions)
            return self._move_all(connection, [copy.move for copy in copies])

    def _newest_schemas(
        self, connection: Connection, table_ids: Sequence[TableId] | None = None
    ) -> dict[TableId, tuple[int, str]]:
        """Version and JSON of the newest schema of each table, or of these."""
        schemas = self._sql.schemas
        later = schemas.alias()
        is_newest = ~sa.exists().where(
            later.c.pipeline == schemas.c.pipeline,
            later.c.table_id == schemas.c.table_id,
            later.c.version > schemas.c.version,
        )
        wanted = () if table_ids is None else (schemas.c.table_id.in_(table_ids),)
        found = connection.execute(sa.select(schemas).where(*self._mine(schemas), *wanted, is_newest))
        return {TableId(row.table_id): (row.version, row.schema_json) for row in found}

    def _move_all(self, connection: Connection, moves: Sequence[Move]) -> list[TableStatus | StateConflict]:
        """Those that are as they were read; for another the error, and nothing of it is changed."""
        tables, now = self._sql.tables, self._now()
        answers: list[TableStatus | StateConflict] = []
        moved: list[tuple[TableStatus, TableState | None]] = []
        for current, to, update in moves:
            check_transition(current.state, to)
            status = current.moved(to, update, now)
            changed = connection.execute(
                sa.update(tables)
                .where(*self._mine(tables, current.table_id), tables.c.version == current.version)
                .values(self._table_row(status))
            )
            if changed.rowcount == 1:
                answers.append(status)
                moved.append((status, current.state))
            else:
                answers.append(
                    StateConflict(
                        f"table {current.name} is no longer in the state {current.state.name} that was read",
                        hint="another process moved or removed it: read the table again",
                    )
                )
        self._append_history(connection, moved)
        return answers

    def _check_claim(self, connection: Connection, claim: str) -> None:
        progress = self._sql.progress
        if connection.scalar(sa.select(progress.c.claim).where(*self._mine(progress))) != claim:
            raise ClaimLost(f"another process has claimed the stream of pipeline {self._pipeline}")

    def history(self, table_id: TableId, limit: int = 50) -> Sequence[Transition]:
        history = self._sql.history
        statement = self._select(history, table_id).order_by(history.c.version.desc()).limit(limit)
        with self._read() as connection:
            rows = connection.execute(statement).all()
        return [Transition(table_id, row.from_state, row.to_state, row.at, row.error) for row in rows]

    def tables_once_in(self, states: Collection[TableState]) -> Set[TableId]:
        history = self._sql.history
        found = sa.select(history.c.table_id).distinct()
        with self._read() as connection:
            rows = connection.execute(found.where(*self._mine(history), history.c.to_state.in_(states))).all()
        return {row.table_id for row in rows}

    def _append_history(self, connection: Connection, moved: Sequence[tuple[TableStatus, TableState | None]]) -> None:
        if not moved:
            return
        history = self._sql.history
        connection.execute(
            sa.insert(history),
            [
                {
                    "pipeline": self._pipeline,
                    "table_id": status.table_id,
                    "version": status.version,
                    "from_state": from_state,
                    "to_state": status.state,
                    "at": status.updated_at,
                    "error": status.error,
                }
                for status, from_state in moved
            ],
        )
        mine = (*self._mine(history), history.c.table_id == sa.bindparam("of_table"))
        kept = sa.select(history.c.version).where(*mine).order_by(history.c.version.desc()).limit(1)
        oldest_kept = kept.offset(HISTORY_KEPT - 1).scalar_subquery()
        connection.execute(
            sa.delete(history).where(*mine, history.c.version < oldest_kept),
            [{"of_table": status.table_id} for status, _ in moved],
        )

    def _table_row(self, status: TableStatus) -> dict[str, Any]:
        values = {**values_of(status), "namespace": status.name.namespace, "name": status.name.name}
        return {"pipeline": self._pipeline, **values}


def table_status(row: Row[Any]) -> TableStatus:
    values = fields_of(row)
    name = TableName(values.pop("namespace"), values.pop("name"))
    return TableStatus(name=name, **values)
