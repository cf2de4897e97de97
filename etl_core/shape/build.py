"""A table's shape, from its settings and the source's columns; what does not fit is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from etl_core.config_values import config_error
from etl_core.errors import ConfigError
from etl_core.schema.change_log import (
    EACH_ROW,
    PREFIX,
    identity_of,
    number_at_source,
    old_name,
    old_value,
)
from etl_core.schema.deleted_rows import DELETED_AT
from etl_core.schema.table import Column, ReplicaIdentity, TableSchema
from etl_core.shape.keyed_hash import HashKey
from etl_core.shape.retyping import retyped
from etl_core.shape.rules import Rules
from etl_core.shape.shape import Shape, ShapedColumn, identity
from etl_core.shape.transforms import Transform, as_text, transform_named
from etl_core.type_options import DOUBLE, ENUM, NUMERIC, VARCHAR
from etl_core.values.text import Array, one_text
from etl_core.write_mode import WriteMode


def build_shape(rules: Rules, source: TableSchema, key: HashKey | None) -> Shape:
    """The shape that `rules` give the table. Raises ConfigError, whose `field` says which of the settings is wrong."""
    kept: list[ShapedColumn] = []
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
            kept.append(ShapedColumn(column, typed if name == column.name else replace(typed, name=name)))
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
        kept.append(ShapedColumn(DELETED_AT, DELETED_AT, is_ours=True))
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
    source: TableSchema, read: Sequence[Column], asked: Sequence[Column], kept: Sequence[ShapedColumn], *, history: bool
) -> Shape:
    """A table without a key, of the columns that are kept, their old values where they tell rows apart, and ours."""
    identity, by_name = identity_of(source), {column.name: column for column in read}
    columns = [replace(one, target=replace(one.target, nullable=True)) for one in kept]
    columns += [
        replace(one, source=old_value(by_name[one.source.name]), target=old_value(one.target), is_ours=True)
        for one in kept
        if one.source.name in identity and not one.is_null
    ]
    columns += [ShapedColumn(column, column, is_ours=True) for column in EACH_ROW]
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


def _transformed(
    transform: Transform, argument: int | None, column: Column, name: str, key: HashKey | None
) -> ShapedColumn:
    target = replace(transform.target(column), name=name)
    if transform.function is None:
        return ShapedColumn(column, target, is_null=True)
    if transform.needs_key and key is None:
        # For whoever asks what the table is, and moves no rows.
        return ShapedColumn(column, replace(target, missing_value=None), _no_key)
    function = transform.function(argument, key)
    if column.missing_value is not None:
        target = replace(target, missing_value=function(one_text(column.missing_value))[0].as_py())
    return ShapedColumn(column, target, function)


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


def _check_names(rules: Rules, source: TableSchema, kept: Sequence[ShapedColumn], asked: Sequence[Column]) -> None:
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


def _check_keeps(rules: Rules, source: TableSchema, kept: Sequence[ShapedColumn]) -> None:
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


def _check_log(rules: Rules, source: TableSchema, kept: Sequence[ShapedColumn]) -> None:
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
