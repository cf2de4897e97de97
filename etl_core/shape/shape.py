"""One version of a table, from the source's columns to the destination's. No clock, no I/O; columns only."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl_core.batch import PartialRows, TableChanges
from etl_core.decode.log import list_of
from etl_core.errors import EtlError, TableError, where
from etl_core.schema.change_log import (
    UNCHANGED,
    keeps_log,
    old_value,
)
from etl_core.schema.deleted_rows import DELETED_AT, keeps_deleted
from etl_core.schema.table import Column, TableSchema
from etl_core.shape.transforms import Function
from etl_core.type_options import EVERY_VALUE
from etl_core.values import read_csv
from etl_core.values.arrow import arrow_schema, arrow_type, key_schema
from etl_core.values.text import text_array
from etl_core.write_mode import WriteMode

_log = logging.getLogger(__name__)

_AnyColumn = Any
"""A pa.Array or a pa.ChunkedArray."""


@dataclass(frozen=True, slots=True)
class ShapedColumn:
    """A column that goes to the destination as `target`. Without a `function` its values stay as they are."""

    source: Column
    target: Column
    function: Function | None = None
    is_null: bool = False
    is_ours: bool = False
    """A column that the source does not have. A copy's rows have NULL in it."""
    is_gone: bool = False
    """A column that was dropped at the source, which was ignored: NULL from then on."""

    def of(self, rows: pa.Table | pa.RecordBatch) -> _AnyColumn:
        """Its values at the destination."""
        if self.is_null or (self.is_ours and self.source.name not in rows.schema.names):
            kind: Any = arrow_type(self.target)
            return pa.nulls(rows.num_rows, kind)
        values = rows.column(self.source.name)
        if self.function is None:
            return values
        if isinstance(values, pa.ChunkedArray):
            kind = arrow_type(self.target)
            return pa.chunked_array([self.function(chunk) for chunk in values.chunks], kind)
        return self.function(values)


class Shape:
    """What a table is at the source, and what it is at the destination.

    `source` is what the catalog or the WAL says; the state store keeps it. `read` is how the stream's values are to be
    loaded: those that are transformed, or left out, as their text. `asked` is what a COPY is to ask for, by the
    source's types, and `target` what a destination and its readers see.
    """

    def __init__(
        self,
        source: TableSchema,
        read: TableSchema,
        asked: TableSchema,
        target: TableSchema,
        columns: Sequence[ShapedColumn],
    ) -> None:
        """By `build_shape` or `identity`."""
        self.source = source
        self.read = read
        self.asked = asked
        self.target = target
        self._columns = columns

    @property
    def is_identity(self) -> bool:
        return self.target is self.source

    @property
    def columns(self) -> Sequence[ShapedColumn]:
        """What becomes of which column; also of the identity, which needs none."""
        return [ShapedColumn(column, column) for column in self.source.columns] if self.is_identity else self._columns

    @property
    def origins(self) -> Mapping[str, str]:
        """The source's name of each column at the destination, but for those that were dropped there."""
        if self.is_identity:
            return {name: name for name in self.source.column_names}
        return {kept.target.name: kept.source.name for kept in self._columns if not (kept.is_ours or kept.is_gone)}

    @property
    def old_origins(self) -> Mapping[str, str]:
        """Of a log, the source's name of each column that has an old value."""
        names = {old_value(column).name: column.name for column in self.source.columns}
        found = {kept.target.name: names.get(kept.source.name) for kept in self._columns if kept.is_ours}
        return {name: column for name, column in found.items() if column is not None}

    @property
    def write_mode(self) -> WriteMode:
        if self.keeps_log:
            return WriteMode.HISTORY if self.target.history else WriteMode.APPEND
        return WriteMode.SOFT_DELETE if self.keeps_deleted else WriteMode.MIRROR

    @property
    def keeps_log(self) -> bool:
        """Whether the destination has a row for every change."""
        return keeps_log(self.target)

    @property
    def row_key(self) -> tuple[str, ...]:
        """What the columns are called at the destination that tell the source's rows apart."""
        names = {origin: name for name, origin in self.origins.items()}
        return tuple(names[column] for column in self.source.key)

    @property
    def keeps_deleted(self) -> bool:
        """Whether the destination keeps rows that were deleted at the source."""
        return keeps_deleted(self.target)

    def living(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Of rows as the destination has them, those that the source has, too."""
        if not self.keeps_deleted:
            return rows
        deleted: Any = rows.column(DELETED_AT.name)
        return rows if deleted.null_count == rows.num_rows else rows.filter(pc.is_null(deleted))

    @cached_property
    def compared(self) -> TableSchema:
        """`target` without columns that were dropped at the source: older rows have values there."""
        gone = {kept.target.name for kept in self._columns if kept.is_gone}
        columns = tuple(column for column in self.target.columns if column.name not in gone)
        return replace(self.target, columns=columns) if gone else self.target

    @property
    def readable(self) -> TableSchema:
        """`target`, every column in an Arrow type of its own: as people read it, where the destination is given text.

        Reading then raises ValueOutOfRange for what Arrow does not have, unless `out_of_range` says otherwise.
        """
        columns = self.target.columns
        if all(column.value_range is not EVERY_VALUE for column in columns):
            return self.target
        plain = (replace(one, value_range=None) if one.value_range is EVERY_VALUE else one for one in columns)
        return replace(self.target, columns=tuple(plain))

    @cached_property
    def stored(self) -> TableSchema:
        """`source` as the state store is to keep it: a hidden column's default may be what its rows hold."""
        if self.is_identity:
            return self.source
        shown = {kept.source.name for kept in self._columns if kept.function is None and not kept.is_null}
        columns = self.source.columns
        hidden = tuple(one if one.name in shown else replace(one, missing_value=None) for one in columns)
        return replace(self.source, columns=hidden)

    @cached_property
    def copied(self) -> TableSchema:
        """`asked`, with the types by which `rows` is given the values."""
        if self.is_identity:
            return self.source
        asked = set(self.asked.column_names)
        return replace(self.asked, columns=tuple(column for column in self.read.columns if column.name in asked))

    @cached_property
    def _arrow(self) -> pa.Schema:
        return arrow_schema(self.target)

    @cached_property
    def _empty(self) -> pa.Table:
        return pa.Table.from_arrays([pa.nulls(0, field.type) for field in self._arrow], schema=self._arrow)

    @cached_property
    def _keys(self) -> tuple[Sequence[ShapedColumn], pa.Schema]:
        key = self.source.key
        columns = [kept for kept in self._columns if kept.source.name in key and not kept.is_gone]
        return columns, key_schema(self.target)

    def load(self, block: bytes | bytearray | memoryview | pa.Buffer) -> pa.RecordBatch:
        """Rows as COPY sent them, of the columns `asked`, in the Arrow schema of `target`."""
        return self.rows(read_csv(block, self.copied))

    def rows(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Rows of a copy, in the Arrow schema of `copied`, in that of `target`."""
        if self.is_identity:
            return rows
        return pa.RecordBatch.from_arrays([kept.of(rows) for kept in self._columns], schema=self._arrow)

    def changes(self, changes: TableChanges) -> TableChanges:
        """Changes by `read` as changes by `target`."""
        if self.is_identity:
            return changes
        try:
            return self._changes(changes)
        except EtlError:
            raise
        except Exception as error:
            # Its text is left out: it may quote a row.
            name = self.source.name
            _log.error("shaping changes of %s ended with %s\n%s", name, type(error).__name__, where(error))
            raise TableError(
                f"internal error while shaping changes of {name}: {type(error).__name__}",
                table=str(name),
                hint="the log says where; report it",
            ) from None

    def _changes(self, changes: TableChanges) -> TableChanges:
        if self.keeps_log:
            rows = self._table(changes.inserts)
            none = pa.Table.from_arrays([], schema=key_schema(self.target))
            return replace(changes, schema=self.target, inserts=self._named(rows), upserts=self._empty, deletes=none)
        upserts, deletes = [self._table(changes.upserts)], [self._key_table(changes.deletes)]
        partials = []
        for partial in changes.partials:
            shaped = self._partial(partial)
            if shaped.unchanged:
                partials.append(shaped)
            else:
                # All that was unchanged is left out, so that the row is whole; it may have had another key, and
                # where deleted rows are kept the row under that one is another of the partial rows.
                upserts.append(shaped.rows.select(self._arrow.names))
                if not self.keeps_deleted:
                    deletes.append(shaped.origin_keys)
        return replace(
            changes,
            schema=self.target,
            inserts=self._table(changes.inserts),
            upserts=_together(upserts),
            deletes=_together(deletes),
            partials=tuple(partials),
            removals=None if changes.removals is None else self._table(changes.removals),
        )

    def _named(self, rows: pa.Table) -> pa.Table:
        """Rows of a log with the destination's names in UNCHANGED, without columns that it has not or that are NULL."""
        at = rows.schema.get_field_index(UNCHANGED.name)
        lists: Any = rows.column(at).combine_chunks()
        if lists.null_count == len(lists):
            return rows
        names = {kept.source.name: kept.target.name for kept in self._columns if not (kept.is_ours or kept.is_null)}
        found: Any = pc.index_in(lists.flatten(), text_array(list(names)))
        row: Any = pc.list_parent_indices(lists)
        lengths = np.bincount(np.asarray(row)[np.asarray(found.is_valid())], minlength=len(lists))
        named = text_array(list(names.values())).take(found.drop_null())
        return rows.set_column(at, rows.schema.field(at), list_of(named, lengths))

    def _partial(self, partial: PartialRows) -> PartialRows:
        # Rows that are marked as deleted, and not otherwise written, keep what they had in dropped columns, too.
        marked = self.keeps_deleted and len(partial.unchanged) == len(self.source.columns) - len(self.source.key)
        unchanged = tuple(
            kept.target.name
            for kept in self._columns
            if (kept.is_gone and marked) or (kept.source.name in partial.unchanged and not kept.is_null)
        )
        known = [kept for kept in self._columns if kept.target.name not in unchanged]
        rows = pa.Table.from_arrays(
            [kept.of(partial.rows) for kept in known],
            schema=pa.schema([self._arrow.field(kept.target.name) for kept in known]),
        )
        return PartialRows(unchanged, self._key_table(partial.origin_keys), rows)

    def _table(self, rows: pa.Table) -> pa.Table:
        if not rows.num_rows:
            return self._empty
        return pa.Table.from_arrays([kept.of(rows) for kept in self._columns], schema=self._arrow)

    def _key_table(self, keys: pa.Table) -> pa.Table:
        columns, schema = self._keys
        return pa.Table.from_arrays([kept.of(keys) for kept in columns], schema=schema)


def identity(source: TableSchema) -> Shape:
    """The table as it is."""
    return Shape(source, source, source, source, ())


def _together(tables: Sequence[pa.Table]) -> pa.Table:
    return tables[0] if len(tables) == 1 else pa.concat_tables(tables)
