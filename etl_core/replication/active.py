"""Which tables a stream applies, from which watermark on, and the schema each has in the destination.

Read by the writing thread and changed by the conducting one; a lock keeps each step whole.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from etl_core.batch import WatermarkMove
from etl_core.identifiers import TableId
from etl_core.lsn import Lsn
from etl_core.schema.table import TableSchema


class ActiveTables:
    """The tables whose changes are applied. A table that is not in it is passed over."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watermarks: dict[TableId, Lsn] = {}
        self._schemas: dict[TableId, TableSchema] = {}

    def activate(self, table_id: TableId, watermark: Lsn, schema: TableSchema) -> None:
        """From the next batch on, changes beyond `watermark` are applied; `schema` is what the destination has."""
        with self._lock:
            self._watermarks[table_id] = watermark
            self._schemas[table_id] = schema

    def deactivate(self, table_id: TableId) -> None:
        with self._lock:
            self._watermarks.pop(table_id, None)
            self._schemas.pop(table_id, None)

    def advance(self, moves: Mapping[TableId, WatermarkMove]) -> None:
        """What a write has made durable. A table deactivated or copied again meanwhile stays as it is."""
        with self._lock:
            for table_id, move in moves.items():
                if self._watermarks.get(table_id) == move.expected:
                    self._watermarks[table_id] = move.new

    def set_schema(self, schema: TableSchema) -> None:
        with self._lock:
            if schema.table_id in self._schemas:
                self._schemas[schema.table_id] = schema

    def watermarks(self) -> dict[TableId, Lsn]:
        """A copy of the moment."""
        with self._lock:
            return dict(self._watermarks)

    def watermark(self, table_id: TableId) -> Lsn | None:
        with self._lock:
            return self._watermarks.get(table_id)

    def schema(self, table_id: TableId) -> TableSchema | None:
        with self._lock:
            return self._schemas.get(table_id)

    def __contains__(self, table_id: object) -> bool:
        with self._lock:
            return table_id in self._watermarks

    def shares_name(self, schema: TableSchema) -> bool:
        """Whether another active table is known by the name of this one, which was its own until then."""
        with self._lock:
            others = (other for table_id, other in self._schemas.items() if table_id != schema.table_id)
            return any(other.name == schema.name for other in others)

    def named(self, name: str) -> TableId | None:
        """The active table whose name prints as `name`."""
        with self._lock:
            for table_id, schema in self._schemas.items():
                if str(schema.name) == name:
                    return table_id
        return None
