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
from etl_core.config_values import config_error
from etl_core.decode.log import list_of
from etl_core.errors import ConfigError, EtlError, TableError, where
from etl_core.schema.change_log import (
    EACH_ROW,
    PREFIX,
    UNCHANGED,
    identity_of,
    keeps_log,
    number_at_source,
    old_name,
    old_value,
)
from etl_core.schema.deleted_rows import DELETED_AT, keeps_deleted
from etl_core.schema.table import Column, ReplicaIdentity, TableSchema
from etl_core.shape.keyed_hash import HashKey
from etl_core.shape.retyping import retyped
from etl_core.shape.rules import Rules
from etl_core.shape.transforms import Function, Transform, as_text, transform_named
from etl_core.type_options import DOUBLE, ENUM, NUMERIC, VARCHAR
from etl_core.values import read_csv
from etl_core.values.arrow import arrow_schema, arrow_type, key_schema
from etl_core.values.text import Array, one_text, text_array
from etl_core.write_mode import WriteMode

_log = logging.getLogger(__name__)

_AnyColumn = Any
"""A pa.Array or a pa.ChunkedArray."""


@dataclass(frozen=True, slots=True)
class _Kept:
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
        columns: Sequence[_Kept],
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
    def columns(self) -> Sequence[_Kept]:
        """What becomes of which column; also of the identity, which needs none."""
        return [_Kept(column, column) for column in self.source.columns] if self.is_identity else self._columns

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
    def _keys(self) -> tuple[Sequence[_Kept], pa.Schema]:
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


def build_shape(rules: Rules, source: TableSchema, key: HashKey | None) -> Shape:
    """The shape that `rules` give the table. Raises ConfigError, whose `field` says which of the settings is wrong."""
    kept: list[_Kept] = []
    read: list[Column] = []
    asked: list[Column] = []
    for column in source.columns:
        name = rules.rename.get(column.name, column.name)
        if rules.leaves_out(column.name):
            _check_key(rules, source, column, is_unique=False, what="left out")
            read.append(as_text(column))
            continue
        action = rules.actions.get(column.name)
        if action is None:
            is_key = column.name in source.key
            typed = retyped(column, rules.words(column.name), is_key=is_key, value_range=rules.value_range)
            if typed is not column:
                _check_typed_key(rules, source, column)
                _check_enum(rules, source, column)
            kept.append(_Kept(column, typed if name == column.name else replace(typed, name=name)))
            read.append(typed)
            asked.append(column)
            continue
        transform = transform_named(action[0], rules.fields.get(column.name, action[0]))
        _check_key(rules, source, column, is_unique=transform.keeps_unique, what=f"changed by {transform.name}")
        kept.append(_transformed(transform, action[1], column, name, key))
        read.append(as_text(column))
        if transform.function is not None:
            asked.append(column)
    _check_names(rules, source, kept, asked)
    if rules.write_mode is WriteMode.SOFT_DELETE:
        _check_keeps(rules, source, kept)
        kept.append(_Kept(DELETED_AT, DELETED_AT, is_ours=True))
        read.append(DELETED_AT)
    elif rules.write_mode.is_log:
        _check_log(rules, source, kept)
        return _as_log(source, read, asked, kept, history=rules.write_mode is WriteMode.HISTORY)
    elif len(kept) == len(source.columns) and all(one.target is one.source for one in kept):
        return identity(source)
    names = {one.source.name: one.target.name for one in kept}
    target = replace(
        source, columns=tuple(one.target for one in kept), key=tuple(names[column] for column in source.key)
    )
    return Shape(source, replace(source, columns=tuple(read)), replace(source, columns=tuple(asked)), target, kept)


def _as_log(
    source: TableSchema, read: Sequence[Column], asked: Sequence[Column], kept: Sequence[_Kept], *, history: bool
) -> Shape:
    """A table without a key, of the columns that are kept, their old values where they tell rows apart, and ours."""
    identity, by_name = identity_of(source), {column.name: column for column in read}
    columns = [replace(one, target=replace(one.target, nullable=True)) for one in kept]
    columns += [
        replace(one, source=old_value(by_name[one.source.name]), target=old_value(one.target), is_ours=True)
        for one in kept
        if one.source.name in identity and not one.is_null
    ]
    columns += [_Kept(column, column, is_ours=True) for column in EACH_ROW]
    ours = tuple(one.source for one in columns if one.is_ours)
    return Shape(
        source,
        replace(source, columns=(*read, *ours)),
        replace(source, columns=tuple(asked)),
        # Its rows are never looked for again, whatever the source sends of old ones.
        replace(
            source,
            columns=tuple(one.target for one in columns),
            key=(),
            replica_identity=ReplicaIdentity.NOTHING,
            history=history,
        ),
        columns,
    )


def identity(source: TableSchema) -> Shape:
    """The table as it is."""
    return Shape(source, source, source, source, ())


def of_kept(shape: Shape, source: TableSchema) -> Shape:
    """The shape of a `source` some of whose changes are ignored, from that of `as_kept(source)`.

    The destination sees the same of both. Columns that are not kept are read as those that are left out, and those that
    were dropped are NULL.
    """
    now = {column.attnum: column for column in source.columns}
    read = {column.attnum: column for column in shape.read.columns}
    ours = shape.read.columns[len(shape.source.columns) :]
    columns = [replace(read.get(one.attnum) or as_text(one), name=one.name) for one in source.columns]
    columns += [called for called in (_as_called(column, now) for column in ours) if called is not None]
    asked = tuple(now[one.attnum] for one in shape.asked.columns if one.attnum in now)
    kept = []
    for one in shape.columns:
        called = _as_called(one.source, now)
        gone = replace(one, is_null=True, is_gone=True)
        kept.append(gone if called is None else replace(one, source=called))
    return Shape(
        source,
        replace(source, columns=tuple(columns), kept=None),
        replace(source, columns=asked, kept=None),
        shape.target,
        kept,
    )


def _as_called(column: Column, now: Mapping[int, Column]) -> Column | None:
    """By the name that the source's column has `now`, by number; None if it is gone. Ours keep their names."""
    number = number_at_source(column)
    if number is None:
        return column
    found = now.get(number)
    if found is None:
        return None
    return replace(column, name=found.name if number == column.attnum else old_name(found.name))


def _transformed(transform: Transform, argument: int | None, column: Column, name: str, key: HashKey | None) -> _Kept:
    target = replace(transform.target(column), name=name)
    if transform.function is None:
        return _Kept(column, target, is_null=True)
    if transform.needs_key and key is None:
        # For whoever asks what the table is, and moves no rows.
        return _Kept(column, replace(target, missing_value=None), _no_key)
    function = transform.function(argument, key)
    if column.missing_value is not None:
        target = replace(target, missing_value=function(one_text(column.missing_value))[0].as_py())
    return _Kept(column, target, function)


def _check_typed_key(rules: Rules, source: TableSchema, column: Column) -> None:
    """Refuses types by which rows that the source has could not be told apart."""
    word = rules.words_in_force(column, source).get(NUMERIC)
    if column.name not in source.key or word in (None, VARCHAR):
        return
    what = f"column {column.name} is in the key of {source.name}"
    instead = f"tables: {{{source.name}: {{columns: {{numeric: {{{column.name}: varchar}}}}}}}}"
    if word == DOUBLE:
        problem, hint = "two keys that differ could be rounded to one", f"use varchar, or decimal(p,s): {instead}"
    elif rules.write_mode is not WriteMode.MIRROR:
        # A row that was deleted as 1.0 and one that came as 1.00 would have one key.
        problem = f"write_mode {rules.write_mode} tells rows of before apart by its text"
        hint = f"use varchar: {instead}"
    else:
        return
    raise config_error(rules.type_field(NUMERIC, column.name), f"is {word}: {what}, and {problem}", hint=hint)


def _check_enum(rules: Rules, source: TableSchema, column: Column) -> None:
    """Refuses an enum in a table that keeps rows of before, with labels that may have another name since."""
    if rules.write_mode is not WriteMode.MIRROR and ENUM in rules.words_in_force(column, source):
        raise config_error(
            rules.type_field(ENUM, column.name),
            f"is enum: column {column.name} of {source.name} may keep labels that the enum no longer has, as its"
            f" write_mode is {rules.write_mode}",
            hint=f"use varchar: tables: {{{source.name}: {{columns: {{enum: {{{column.name}: varchar}}}}}}}}",
        )


def _no_key(_: Array) -> Array:
    raise ConfigError("there is no hash_key", field="hash_key")


def _check_key(rules: Rules, source: TableSchema, column: Column, *, is_unique: bool, what: str) -> None:
    if column.name in source.key and not is_unique:
        raise config_error(
            _field(rules, source, column.name),
            f"column {column.name} is in the key of {source.name}, and cannot be {what}",
            hint="rows are found by their key: hash it instead, which keeps it unique",
        )


def _check_names(rules: Rules, source: TableSchema, kept: Sequence[_Kept], asked: Sequence[Column]) -> None:
    seen: dict[str, str] = {}
    for one in kept:
        other = seen.setdefault(one.target.name, one.source.name)
        if other != one.source.name:
            renamed = one.source.name if one.source.name in rules.rename else other
            raise config_error(
                rules.rename_fields.get(renamed, f"tables.{source.name}.columns"),
                f"columns {other} and {one.source.name} of {source.name} would both be called {one.target.name}",
            )
    if source.columns and not asked:
        raise config_error(f"tables.{source.name}.columns", f"{source.name} would have no column with values")


def check_ours(rules: Rules, source: TableSchema) -> None:
    """Refuses columns at the source that would be taken for ours, also those that the destination does not keep."""
    for column in source.column_names:
        taken = rules.write_mode is WriteMode.SOFT_DELETE and column.lower() == DELETED_AT.name
        if taken or (rules.write_mode.is_log and column.lower().startswith(PREFIX)):
            raise config_error(
                rules.mode_field,
                f"{source.name} has a column {column}, which write_mode {rules.write_mode} has for its own",
                hint="rename the column at the source",
            )


def _check_keeps(rules: Rules, source: TableSchema, kept: Sequence[_Kept]) -> None:
    """Refuses what deleted rows cannot be kept of."""
    mirror = f"write for this table: tables: {{{source.name}: {{write_mode: mirror}}}}"
    if not source.key:
        add = "add a primary key"
        if source.replica_identity is ReplicaIdentity.NOTHING:
            add += f", or, if it has one, ALTER TABLE {source.name} REPLICA IDENTITY DEFAULT"
        raise config_error(
            rules.mode_field,
            f"{source.name} has no key, and write_mode soft_delete finds deleted rows by it",
            hint=f"{add}, or {mirror}",
        )
    # By the source's names too, whatever the settings make of them: the values of the stream go by those.
    for column in source.column_names:
        if column.lower() == DELETED_AT.name:
            raise config_error(
                rules.mode_field,
                f"{source.name} has a column {column}, and write_mode soft_delete adds one called {DELETED_AT.name}",
                hint=f"rename the column at the source, or {mirror}",
            )
    for one in kept:
        if one.target.name.lower() == DELETED_AT.name:
            raise config_error(
                rules.rename_fields.get(one.source.name, rules.mode_field),
                f"column {one.source.name} of {source.name} would be called {one.target.name}, and write_mode"
                f" soft_delete adds a column {DELETED_AT.name}",
                hint="give it another name",
            )


def _check_log(rules: Rules, source: TableSchema, kept: Sequence[_Kept]) -> None:
    """Refuses columns that would be taken for the log's own, and what versions cannot be told of."""
    if rules.write_mode is WriteMode.HISTORY and not source.key:
        raise config_error(
            rules.mode_field,
            f"{source.name} has no key, and write_mode history tells the versions of a row by it",
            hint=f"add a primary key, or write for this table: tables: {{{source.name}: {{write_mode: append}}}}",
        )
    for column in source.column_names:
        if column.lower().startswith(PREFIX):
            raise config_error(
                rules.mode_field,
                f"{source.name} has a column {column}, and write_mode {rules.write_mode} adds columns whose names begin"
                f" with {PREFIX}",
                hint="rename the column at the source, or write for this table:"
                f" tables: {{{source.name}: {{write_mode: mirror}}}}",
            )
    for one in kept:
        if one.target.name.lower().startswith(PREFIX):
            raise config_error(
                rules.rename_fields.get(one.source.name, rules.mode_field),
                f"column {one.source.name} of {source.name} would be called {one.target.name}, and write_mode"
                f" {rules.write_mode} adds columns whose names begin with {PREFIX}",
                hint="give it another name",
            )


def _field(rules: Rules, source: TableSchema, column: str) -> str:
    return rules.fields.get(column, f"tables.{source.name}.columns")


def _together(tables: Sequence[pa.Table]) -> pa.Table:
    return tables[0] if len(tables) == 1 else pa.concat_tables(tables)
