"""Whether the settings fit the tables, and whether the destination has a table as the settings say it now.

By which settings a table was copied is stored with its copy. A table whose settings come to something else now is
copied again by itself, and so is one of which that is not known: what its rows mean is never guessed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from etl_core.errors import COPIED_AGAIN, CopiedAgain
from etl_core.identifiers import TableId, TableName
from etl_core.replication.observer import Observer, tell_shortened
from etl_core.schema.table import TableSchema
from etl_core.shape.shapes import Shapes
from etl_core.state.store import StateStore


class Shaping:
    """Of one pipeline."""

    def __init__(self, shapes: Shapes, store: StateStore, observer: Observer) -> None:
        self._shapes = shapes
        self._store = store
        self._observer = observer
        self._told: set[str] = set()

    def check_settings(self, tables: Sequence[TableSchema], known: Collection[TableName]) -> None:
        """Raises ConfigError for settings that do not fit, unless the very same did before: tables change, too.

        Then what does not fit any more is told. `known` are names of tables that are not there now.
        """
        if not self._shapes:
            return
        found = list(self._shapes.check(tables, known))
        if found and self._store.checked_settings() != self._shapes.digest:
            raise found[0]
        sentences = [str(error) for error in found if str(error) not in self._told]
        self._told.update(sentences)
        tell_shortened(self._observer, sentences)

    def settings_fit(self) -> None:
        """Remembers that, when the store is there."""
        if self._store.checked_settings() != self._shapes.digest:
            self._store.save_checked_settings(self._shapes.digest)

    def copied(self, schema: TableSchema) -> None:
        """Remembers by which settings the table was copied, before anybody takes the copy for finished."""
        self._store.save_shape(schema.table_id, self._shapes.stored(schema))

    def changed(self) -> dict[TableId, str]:
        """The tables that must be copied again, each with the reason, as the end of a sentence."""
        stored = self._store.shapes()
        found = {}
        for status in self._store.tables():
            shape = stored.get(status.table_id)
            if shape is None:
                found[status.table_id] = "by which settings it was copied is not known"
                continue
            if self._shapes.is_said(shape, status.name):
                continue
            schema = self._store.schema(status.table_id)  # a query for each table, so only where it may matter
            if schema is None:
                continue
            if self._shapes.is_as_copied(shape, schema[1]):
                # What comes to the same now need not later, when columns have come or the settings are changed back.
                self._store.save_shape(status.table_id, self._shapes.stored(schema[1]))
            else:
                found[status.table_id] = self._shapes.change_told(shape, status.name)
        return found

    def check_copied(self, schema: TableSchema, shape: str | None = None) -> None:
        """Raises CopiedAgain if the destination's table, of `schema`, is not as the settings say it now.

        `shape` are the settings by which it was copied, where they are read already.
        """
        copied = self._store.shape(schema.table_id) if shape is None else shape
        if self._shapes.is_as_copied(copied, schema):
            return
        raise CopiedAgain(
            f"{schema.name} is copied again: it was copied by other settings",
            table=str(schema.name),
            hint=COPIED_AGAIN,
        )
