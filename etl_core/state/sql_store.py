"""The state store in SQLite or PostgreSQL: one class over both, as `store.py` prescribes.

Every write is one short transaction that no other writer of the pipeline runs beside (see `sql_engine`); a table's
transitions are guarded by its version besides, because their callers decided on what they read earlier.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, Row

from etl_core.errors import StateConflict
from etl_core.identifiers import TableId, TableName, check_pipeline_name
from etl_core.lsn import Lsn
from etl_core.schema.table import TableSchema
from etl_core.state.fingerprint_json import remembered_from_json, remembered_to_json
from etl_core.state.schema_json import schema_from_json, schema_to_json
from etl_core.state.sql_engine import begin_migration, open_engine
from etl_core.state.sql_errors import translated
from etl_core.state.sql_migrations import apply_migrations
from etl_core.state.sql_rows import fields_of, values_of
from etl_core.state.sql_shared_copy import SqlSharedCopyStore
from etl_core.state.sql_transitions import TransitionRows, table_status
from etl_core.state.store import (
    Hold,
    OwnedSlot,
    Remembered,
    ReplicationProgress,
    SchemaVersion,
    SourceIdentity,
    StateStore,
    StreamError,
    TableStatus,
)
from etl_core.state.table_state import TableState

_ALL_TABLES = TableId(0)
"""No table has this OID: under it stands what was checked for all of them."""


def utc_now() -> datetime:
    return datetime.now(UTC)


def open_store(url: str, pipeline: str, *, now: Callable[[], datetime] | None = None) -> StateStore:
    """The store of `pipeline` at `url`: `sqlite:///path` or `postgresql://…` (also `postgresql+psycopg://…`).

    Does not connect; call `migrate` before anything else. `now` gives aware times; holds expire by it, but without it
    in PostgreSQL by the server's clock. Open a store in the process that uses it: connections do not survive a fork.
    Raises ConfigError.
    """
    check_pipeline_name(pipeline)
    engine, place = open_engine(url, pipeline)
    return SqlStateStore(engine, place, pipeline, now)


class SqlStateStore(TransitionRows):
    """A StateStore on an engine of `sql_engine`. `place` names the database in messages, without a secret."""

    def __init__(self, engine: Engine, place: str, pipeline: str, now: Callable[[], datetime] | None) -> None:
        super().__init__(engine, place, pipeline, now or utc_now)
        self._has_a_clock = engine.dialect.name == "postgresql" and now is None
        self.shared_copies = SqlSharedCopyStore(self._sql, pipeline, self._read, self._write)

    def migrate(self) -> None:
        with translated(self._place), self._engine.begin() as connection:
            begin_migration(connection)
            apply_migrations(connection, self._sql, self._now())

    def source_identity(self) -> SourceIdentity | None:
        row = self._row(self._sql.sources)
        return None if row is None else SourceIdentity(**fields_of(row))

    def save_source_identity(self, identity: SourceIdentity) -> None:
        with self._write() as connection:
            self._put(connection, self._sql.sources, values_of(identity))

    def tables(self) -> Sequence[TableStatus]:
        rows = self._rows(self._sql.tables)
        # Sorted here: databases differ in how they order names.
        return sorted(map(table_status, rows), key=lambda status: (status.name, status.table_id))

    def table(self, table_id: TableId) -> TableStatus | None:
        row = self._row(self._sql.tables, table_id)
        return None if row is None else table_status(row)

    def add_table(self, table_id: TableId, name: TableName, *, is_requested: bool = True) -> TableStatus:
        tables, now = self._sql.tables, self._now()
        with self._write() as connection:
            row = connection.execute(self._select(tables, table_id)).one_or_none()
            if row is None:
                # Not from 1: a status read before the table was removed must never match the table added again.
                version = secrets.randbelow(1 << 40)
                status = TableStatus(
                    table_id, name, TableState.INIT, version, updated_at=now, is_requested=is_requested
                )
                connection.execute(sa.insert(tables).values(self._table_row(status)))
                self._append_history(connection, [(status, None)])
                return status
            status = table_status(row)
            if status.name != name:
                status = replace(status, name=name, version=status.version + 1, updated_at=now)
                values = self._table_row(status)
                connection.execute(sa.update(tables).where(*self._mine(tables, table_id)).values(values))
            return status

    def remove_table(self, table_id: TableId) -> None:
        with self._write() as connection:
            sql = self._sql
            for table in (
                sql.tables,
                sql.history,
                sql.schemas,
                sql.fingerprints,
                sql.shapes,
                sql.selected_names,
                sql.copy_offers,
                sql.copy_ranges,
            ):
                connection.execute(sa.delete(table).where(*self._mine(table, table_id)))

    def progress(self) -> ReplicationProgress | None:
        row = self._row(self._sql.progress)
        return None if row is None else ReplicationProgress(**fields_of(row))

    def claim_progress(self, seen: ReplicationProgress | None, start: Lsn) -> ReplicationProgress:
        table = self._sql.progress
        claimed = replace(
            seen or ReplicationProgress(start), updated_at=self._later_than(seen), claim=secrets.token_hex(8)
        )
        with self._write() as connection:
            row = connection.execute(self._select(table)).one_or_none()
            if (None if row is None else ReplicationProgress(**fields_of(row))) != seen:
                raise StateConflict(f"progress of pipeline {self._pipeline} was stored meanwhile")
            self._put(connection, table, values_of(claimed))
        return claimed

    def save_progress(
        self, progress: ReplicationProgress, previous: ReplicationProgress | None = None
    ) -> ReplicationProgress:
        table = self._sql.progress
        claim = progress.claim if previous is None else previous.claim
        stored = replace(progress, updated_at=self._later_than(previous), claim=claim)
        values = {"pipeline": self._pipeline, **values_of(stored)}
        is_ours = () if previous is None else (table.c.updated_at == previous.updated_at,)
        with self._write() as connection:
            forward = table.c.flushed_lsn <= progress.flushed_lsn
            moved = connection.execute(sa.update(table).where(*self._mine(table), forward, *is_ours).values(values))
            if moved.rowcount == 1:
                return stored
            found = connection.scalar(sa.select(table.c.flushed_lsn).where(*self._mine(table)))
            if found is not None or previous is not None:
                raise StateConflict(
                    f"progress {progress.flushed_lsn} of pipeline {self._pipeline} is not stored over {found}",
                    hint="another process writes progress for this pipeline: end one of them",
                )
            connection.execute(sa.insert(table).values(values))
        return stored

    def _later_than(self, previous: ReplicationProgress | None) -> datetime:
        """Now, but never what `previous` has: that tells two writers apart, also by a clock that stands still."""
        now = self._now()
        if previous is None or previous.updated_at is None or now > previous.updated_at:
            return now
        return previous.updated_at + timedelta(microseconds=1)

    def stream_error(self) -> StreamError | None:
        row = self._row(self._sql.stream_errors)
        return None if row is None else StreamError(**fields_of(row))

    def save_stream_error(self, error: str, hint: str | None, *, is_permanent: bool) -> None:
        with self._write() as connection:
            saved = StreamError(error, hint, self._now(), is_permanent)
            self._put(connection, self._sql.stream_errors, values_of(saved))

    def schema(self, table_id: TableId) -> tuple[int, TableSchema] | None:
        with self._read() as connection:
            return self._newest_schema(connection, table_id)

    def schemas(self) -> Mapping[TableId, TableSchema]:
        with self._read() as connection:
            newest = self._newest_schemas(connection)
        return {table_id: schema_from_json(text) for table_id, (_, text) in newest.items()}

    def schema_versions(self, table_id: TableId, limit: int = 50) -> Sequence[SchemaVersion]:
        schemas = self._sql.schemas
        statement = self._select(schemas, table_id).order_by(schemas.c.version.desc()).limit(limit)
        with self._read() as connection:
            rows = connection.execute(statement).all()
        return [
            SchemaVersion(row.version, row.lsn, schema_from_json(row.schema_json), row.saved_at)
            for row in reversed(rows)
        ]

    def save_schema(self, schema: TableSchema, lsn: Lsn) -> int:
        text = schema_to_json(schema)  # with the comments, which equality leaves out
        with self._write() as connection:
            newest = self._newest_schema(connection, schema.table_id)
            if newest is not None and schema_to_json(newest[1]) == text:
                return newest[0]
            version = 1 if newest is None else newest[0] + 1
            connection.execute(
                sa.insert(self._sql.schemas).values(
                    pipeline=self._pipeline,
                    table_id=schema.table_id,
                    version=version,
                    lsn=lsn,
                    schema_json=text,
                    saved_at=self._now(),
                )
            )
            return version

    def fingerprints(self) -> Mapping[TableId, Remembered]:
        return {TableId(row.table_id): _remembered(row) for row in self._rows(self._sql.fingerprints)}

    def fingerprint(self, table_id: TableId) -> Remembered | None:
        row = self._row(self._sql.fingerprints, table_id)
        return None if row is None else _remembered(row)

    def save_fingerprint(self, table_id: TableId, remembered: Remembered) -> None:
        fingerprints = self._sql.fingerprints
        values = {
            "pipeline": self._pipeline,
            "table_id": table_id,
            "lsn": remembered.lsn,
            "fingerprint_json": remembered_to_json(remembered),
            "has_gap": remembered.has_gap,
        }
        with self._write() as connection:
            connection.execute(sa.delete(fingerprints).where(*self._mine(fingerprints, table_id)))
            connection.execute(sa.insert(fingerprints).values(values))

    def shapes(self) -> Mapping[TableId, str]:
        rows = self._rows(self._sql.shapes)
        return {TableId(row.table_id): row.shape_json for row in rows if row.table_id != _ALL_TABLES}

    def shape(self, table_id: TableId) -> str | None:
        row = self._row(self._sql.shapes, table_id)
        return None if row is None else str(row.shape_json)

    def save_shape(self, table_id: TableId, shape: str) -> None:
        shapes = self._sql.shapes
        with self._write() as connection:
            connection.execute(sa.delete(shapes).where(*self._mine(shapes, table_id)))
            connection.execute(sa.insert(shapes).values(pipeline=self._pipeline, table_id=table_id, shape_json=shape))

    def selected_names(self) -> Mapping[TableId, TableName]:
        rows = self._rows(self._sql.selected_names)
        return {TableId(row.table_id): TableName(row.namespace, row.name) for row in rows}

    def save_selected_name(self, table_id: TableId, name: TableName | None) -> None:
        selected = self._sql.selected_names
        with self._write() as connection:
            connection.execute(sa.delete(selected).where(*self._mine(selected, table_id)))
            if name is not None:
                values = {"namespace": name.namespace, "name": name.name}
                connection.execute(sa.insert(selected).values(pipeline=self._pipeline, table_id=table_id, **values))

    def checked_settings(self) -> str | None:
        return self.shape(_ALL_TABLES)

    def save_checked_settings(self, digest: str) -> None:
        self.save_shape(_ALL_TABLES, digest)

    def record_slot(self, name: str, table_id: TableId | None, system_identifier: str | None = None) -> None:
        slots = self._sql.slots
        slot = OwnedSlot(name, table_id, self._now(), system_identifier)
        values = {"pipeline": self._pipeline, **values_of(slot)}
        with self._write() as connection:
            connection.execute(sa.delete(slots).where(*self._mine(slots), slots.c.name == name))
            connection.execute(sa.insert(slots).values(values))

    def forget_slot(self, slot: OwnedSlot) -> None:
        slots = self._sql.slots
        is_it = (slots.c.name == slot.name, slots.c.created_at == slot.created_at)
        with self._write() as connection:
            connection.execute(sa.delete(slots).where(*self._mine(slots), *is_it))

    def owned_slots(self) -> Sequence[OwnedSlot]:
        rows = self._rows(self._sql.slots)
        return sorted((OwnedSlot(**fields_of(row)) for row in rows), key=lambda slot: slot.name)

    def publication_owned(self) -> bool:
        row = self._row(self._sql.publications)
        return row is not None and row.owned

    def publication_oid(self) -> int | None:
        row = self._row(self._sql.publications)
        return None if row is None else row.oid

    def set_publication_owned(self, owned: bool, oid: int | None = None) -> None:
        with self._write() as connection:
            self._put(connection, self._sql.publications, {"owned": owned, "oid": oid})

    def hold(self) -> Hold | None:
        with self._read() as connection:
            return self._hold_in_force(connection)

    def request_hold(self, hold: Hold) -> None:
        with self._write() as connection:
            current = self._hold_in_force(connection)
            if current is not None and current.owner != hold.owner:
                until = current.expires_at.isoformat(sep=" ", timespec="seconds")
                raise StateConflict(
                    f"pipeline {self._pipeline} is held by {current.owner} until {until}",
                    hint="wait until that hold is released or expires",
                )
            # A renewal keeps the answer: the stream still stands where it stopped for the same request.
            renewed = current is not None and current.lsn == hold.lsn
            reached = current.reached if current is not None and renewed else None
            expires_at = hold.expires_at
            if self._has_a_clock:
                # What is left by the caller's clock, from now on by the server's: hosts' clocks may differ.
                expires_at = connection.scalars(sa.select(sa.func.clock_timestamp())).one() + (expires_at - self._now())
            self._put(connection, self._sql.holds, values_of(replace(hold, expires_at=expires_at, reached=reached)))

    def answer_hold(self, owner: str, reached: Lsn) -> None:
        holds = self._sql.holds
        with self._write() as connection:
            # An expired one may be answered: nobody is shown it, and a new request does not inherit the answer.
            connection.execute(
                sa.update(holds).where(*self._mine(holds), holds.c.owner == owner).values(reached=reached)
            )

    def release_hold(self, owner: str) -> None:
        holds = self._sql.holds
        with self._write() as connection:
            connection.execute(sa.delete(holds).where(*self._mine(holds), holds.c.owner == owner))

    def forget_source(self) -> None:
        sql = self._sql
        position = (sql.sources, sql.progress, sql.stream_errors, sql.slots, sql.holds)
        self._delete(*position, sql.fingerprints, sql.shapes, sql.selected_names, sql.copy_offers, sql.copy_ranges)

    def clear(self) -> None:
        self._delete(*self._sql.of_pipeline())

    def _hold_in_force(self, connection: Connection) -> Hold | None:
        holds = self._sql.holds
        statement = self._select(holds)
        if self._has_a_clock:
            statement = statement.where(holds.c.expires_at > sa.func.clock_timestamp())
        row = connection.execute(statement).one_or_none()
        if row is None or (not self._has_a_clock and row.expires_at <= self._now()):
            return None
        return Hold(**fields_of(row))

    def _newest_schema(self, connection: Connection, table_id: TableId) -> tuple[int, TableSchema] | None:
        schemas = self._sql.schemas
        statement = self._select(schemas, table_id).order_by(schemas.c.version.desc()).limit(1)
        row = connection.execute(statement).one_or_none()
        return None if row is None else (row.version, schema_from_json(row.schema_json))


def _remembered(row: Row[Any]) -> Remembered:
    return remembered_from_json(row.fingerprint_json, row.lsn, has_gap=bool(row.has_gap))
