"""Renames tables in the destination that no row has said to be renamed: see `renames`. Each in a write of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

from etl_core.batch import TableChanges, WatermarkMove, WriteBatch
from etl_core.destination.protocol import Destination
from etl_core.errors import DestinationError, DestinationUnusable, TableError, TransientError, WatermarkConflict
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.replication.active import ActiveTables
from etl_core.replication.failpoints import BATCH_WRITTEN, reach
from etl_core.replication.observer import Observer
from etl_core.replication.renames import Renames
from etl_core.schema.alterations import alterations
from etl_core.schema.table import TableSchema
from etl_core.shape.shapes import Shapes
from etl_core.state.store import StateStore
from etl_core.values.arrow import arrow_schema, key_schema


class RenameWriter:
    """Of one stream. `write` is called by the writing thread, `look_aside` and `is_due` by any."""

    def __init__(
        self,
        renames: Renames,
        destination: Destination,
        store: StateStore,
        active: ActiveTables,
        shapes: Shapes,
        observer: Observer,
        *,
        write_lock: threading.Lock,
        table_failed: Callable[[TableId, TableError], None],
        reload: Callable[[], None],
        look_soon: Callable[[], None],
        check_named: Callable[[TableName, TableName], None],
    ) -> None:
        """`table_failed` and `reload` are the conductor's reactions; `look_soon` has the catalog looked at.

        `check_named` raises TableError for a name under which the settings say less of the table.
        """
        self._renames = renames
        self._looking = threading.Lock()
        self._destination = destination
        self._store = store
        self._active = active
        self._shapes = shapes
        self._observer = observer
        self._write_lock = write_lock
        self._table_failed = table_failed
        self._reload = reload
        self._look_soon = look_soon
        self._check_named = check_named

    def is_due(self, position: Lsn) -> bool:
        return self._renames.is_due(position)

    def write(self, position: Lsn) -> None:
        """Renames what is due at `position`, up to which all is written. What fails for the moment waits for a look."""
        due = self._renames.take(position)
        for table_id, name in due.items():
            try:
                self._rename(table_id, name, position)
            except TableError as error:
                self._stop(table_id, error)
            except WatermarkConflict:
                self._reload()
            except TransientError as error:
                self._observer.on_retry(error, 0.0)
            except DestinationUnusable:
                raise
            except DestinationError as error:
                what = f"{name} cannot be renamed: {error}"
                self._stop(table_id, TableError(what, table=str(name), hint=error.hint))
        if due:
            self.look_aside()

    def look_aside(self) -> None:
        """After a name was taken: asks the destination which tables it has put aside for another one."""
        try:
            with self._looking:  # an answer of before would undo a later one
                aside = self._destination.positions().aside
                self._renames.put_aside(aside)
        except TransientError as error:
            self._observer.on_retry(error, 0.0)
            return
        if aside:
            self._look_soon()

    def _rename(self, table_id: TableId, name: TableName, position: Lsn) -> None:
        known, mark = self._active.schema(table_id), self._active.watermark(table_id)
        if known is None or mark is None:
            return
        schema = replace(known, name=name)
        self._check_named(known.name, name)
        self._shapes.check_carried(known, schema)
        before, after = self._shapes.of(known).target, self._shapes.of(schema).target
        move = WatermarkMove(mark, max(mark, position))
        part = replace(_no_changes(after), alterations=alterations(before, after))
        with self._write_lock:
            self._destination.write(WriteBatch(iter([part]), {table_id: move}, None))
        reach(BATCH_WRITTEN)
        self._active.advance({table_id: move})
        self._store.save_schema(self._shapes.of(schema).stored, position)
        self._active.set_schema(schema)

    def _stop(self, table_id: TableId, error: TableError) -> None:
        # In this order: see `Applier`.
        self._table_failed(table_id, error)
        self._active.deactivate(table_id)


def _no_changes(schema: TableSchema) -> TableChanges:
    rows = arrow_schema(schema).empty_table()
    return TableChanges(schema, rows, rows, key_schema(schema).empty_table())
