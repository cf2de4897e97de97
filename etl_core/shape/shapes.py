"""The shapes of one pipeline's tables: from its settings, for each version of a table."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from etl_core.config_tables import TableSettings
from etl_core.config_values import config_error, did_you_mean
from etl_core.errors import COPIED_AGAIN, ConfigError, CopiedAgain, TableError, UnsupportedType
from etl_core.identifiers import TableId, TableName
from etl_core.policies import SchemaChanges
from etl_core.schema.change_log import views_of
from etl_core.schema.ignored import as_kept
from etl_core.schema.pg_types import format_type, forms
from etl_core.schema.table import Column, TableSchema
from etl_core.shape.build import build_shape, check_ours, of_kept
from etl_core.shape.digits import carry_digits, columns_to_count, decide_digits
from etl_core.shape.keyed_hash import HashKey
from etl_core.shape.retyping import applies, is_counted
from etl_core.shape.rules import Rules, check_settings, rules_for
from etl_core.shape.shape import Shape, identity
from etl_core.type_options import EVERY_VALUE, REFUSE, UNKNOWN, Held
from etl_core.values.digits import Digits
from etl_core.write_mode import WriteMode

_FIX = "correct the settings of the table, then start again"
_LOST = {
    WriteMode.SOFT_DELETE: ", which removes its deleted rows",
    WriteMode.APPEND: ", which removes the log of its changes",
    WriteMode.HISTORY: ", which removes the log of its changes, and the views of its versions",
}
"""What goes with a mode that a table had."""
_BY_ITS_NEW_NAME = "write its new name into the settings instead of the old one, then start again"


class Shapes:
    """May be used from several threads. Without settings, every shape is the identity and costs nothing."""

    def __init__(
        self,
        settings: Sequence[TableSettings] = (),
        hash_key: str | None = None,
        write_mode: WriteMode = WriteMode.MIRROR,
        types: Mapping[str, str] | None = None,
        value_range: Held = None,
        schema_changes: SchemaChanges = SchemaChanges.APPLY,
    ) -> None:
        """`write_mode`, `types` and `schema_changes` are those of tables whose settings have none.

        `value_range` is the destination's.

        Without a hash key, shapes say what tables are, but cannot hash.
        """
        self._settings = tuple(settings)
        self._key = None if hash_key is None else HashKey.of(hash_key)
        self._write_mode = write_mode
        self._types = dict(types or {})
        self._value_range = value_range
        self._schema_changes = schema_changes
        self._ignores = SchemaChanges.IGNORE in (
            schema_changes,
            *(entry.policy.schema_changes for entry in self._settings),
        )
        self._known: dict[TableId, Shape] = {}
        self._carried: dict[TableId, tuple[TableSchema, TableSchema, TableSchema]] = {}

    @classmethod
    def checked(
        cls,
        settings: Sequence[TableSettings],
        hash_key: str | None,
        write_mode: WriteMode = WriteMode.MIRROR,
        types: Mapping[str, str] | None = None,
        value_range: Held = None,
        schema_changes: SchemaChanges = SchemaChanges.APPLY,
    ) -> Shapes:
        """Raises ConfigError for what is wrong with the settings, whatever the tables are."""
        check_settings(settings, hash_key)
        return cls(settings, hash_key, write_mode, types, value_range, schema_changes)

    def __bool__(self) -> bool:
        """Whether any table may have another shape than the source's."""
        is_mirror = self._write_mode is WriteMode.MIRROR
        is_printed = self._value_range is EVERY_VALUE
        return bool(self._settings) or bool(self._types) or not is_mirror or self._ignores or is_printed

    @property
    def hides(self) -> bool:
        """Whether something of the source's rows may not be seen at the destination, nor on any disk on the way."""
        return any(
            entry.columns.include is not None or entry.columns.exclude or entry.columns.transforms
            for entry in self._settings
        )

    @property
    def digest(self) -> str:
        """Of all settings. Not of the hash key."""
        shown = repr([(entry.pattern, entry.columns) for entry in self._settings])
        modes = [entry.write_mode for entry in self._settings]
        if any(modes) or self._write_mode is not WriteMode.MIRROR:
            shown += repr([self._write_mode, *modes])
        types = [(entry.types, entry.columns.types) for entry in self._settings]
        if self._types or any(of_table or of_columns for of_table, of_columns in types):
            shown += repr([self._types, *types])
        return hashlib.sha256(shown.encode()).hexdigest()

    def of(self, schema: TableSchema) -> Shape:
        """Raises TableError if the settings do not fit the table, or refuse a type that it has.

        They are about the columns that the destination keeps, by their names there where changes are ignored.
        """
        if not self and schema.kept is None and all(column.fraction_digits is None for column in schema.columns):
            return identity(schema)
        known = self._known.get(schema.table_id)
        if known is None or known.source is not schema:  # two that are equal may have other comments
            rules, kept = self.rules(schema.name), as_kept(schema)
            _refuse_unknown(rules, kept)
            try:
                known = build_shape(rules, kept, self._key)
                check_ours(rules, schema)
            except ConfigError as error:
                hint = f"{error.hint}; {_FIX}" if error.hint else _FIX
                raise TableError(str(error), table=str(schema.name), hint=hint) from None
            known = known if kept is schema else of_kept(known, schema)
            self._known[schema.table_id] = known
        return known

    def carried(self, schema: TableSchema, known: TableSchema) -> TableSchema:
        """`schema`, as the source describes it, with the digits of numerics that the destination has of `known`."""
        if not any(is_counted(column) for column in schema.columns):
            return schema
        before = self._carried.get(schema.table_id)
        if before is not None and before[0] is schema and (known is before[1] or known is before[2]):
            return before[2]
        found = carry_digits(schema, _with_kept_digits(known), self.rules(schema.name))
        self._carried[schema.table_id] = (schema, known, found)
        return found

    def columns_to_count(self, schema: TableSchema, stored: TableSchema | None) -> Sequence[Column]:
        """The source's columns of which a copy must count the digits, see `etl_core.shape.digits`."""
        if not any(is_counted(column) for column in as_kept(schema).columns):
            return ()
        before = None if stored is None else as_kept(stored)
        counted = {column.attnum for column in columns_to_count(as_kept(schema), before, self.rules(schema.name))}
        return [column for column in schema.columns if column.attnum in counted]

    def decided(self, schema: TableSchema, stored: TableSchema | None, found: Mapping[str, Digits]) -> TableSchema:
        """`schema` with the digits that a copy found. Raises TableError for a column that no DECIMAL holds."""
        before = None if stored is None else as_kept(stored)
        if schema.kept is None:
            return decide_digits(schema, before, self.rules(schema.name), found)
        called = {column.attnum: column.name for column in schema.kept}
        by_kept = {called[schema.column(name).attnum]: digits for name, digits in found.items()}
        decided = decide_digits(as_kept(schema), before, self.rules(schema.name), by_kept)
        columns = (decided.column(column.name) if column.name in by_kept else column for column in schema.kept)
        digits = [column.fraction_digits for column in columns]
        kept = (replace(column, fraction_digits=each) for column, each in zip(schema.kept, digits, strict=True))
        return replace(schema, kept=tuple(kept))

    def rules(self, name: TableName) -> Rules:
        key_check = None if self._key is None else self._key.check
        return rules_for(
            self._settings,
            name,
            key_check,
            self._write_mode,
            self._types,
            self._value_range,
            self._schema_changes,
        )

    def write_mode(self, name: TableName) -> WriteMode:
        return self.rules(name).write_mode

    def stored(self, schema: TableSchema) -> str:
        """What the state store is to keep of the rules by which a table was copied."""
        return self.rules(schema.name).to_json()

    def is_said(self, stored: str, name: TableName) -> bool:
        """Whether `stored` is word for word what the settings say now of the table."""
        return stored == self.rules(name).to_json()

    def is_as_copied(self, stored: str | None, schema: TableSchema) -> bool:
        """Whether a table that was copied by the rules `stored` is what it would be by those of now.

        `schema` is what the destination has of it, by the source's names.
        """
        now, then = self.rules(schema.name), None if stored is None else Rules.from_json(stored, self._value_range)
        if then is None or (schema.kept is not None and not now.ignores):
            return False
        kept = as_kept(schema)
        return then.with_text_as_of(now, kept).restricted(kept) == now.restricted(kept)

    def change_told(self, stored: str | None, name: TableName) -> str:
        """Why a table that was copied by the rules `stored` is not as it would be now, as the end of a sentence."""
        then = None if stored is None else Rules.from_json(stored, self._value_range)
        mode = self.write_mode(name)
        if then is None:
            return "by which settings it was copied is not known"
        if then.write_mode is not mode:
            lost = "" if then.write_mode.is_log and mode.is_log else _LOST.get(then.write_mode, "")
            return f"its write_mode was changed from {then.write_mode} to {mode}{lost}"
        now = self.rules(name)
        if then.ignores and not now.ignores:
            return "changes of its columns that were ignored are followed now"
        if (then.types, then.column_types) != (now.types, now.column_types):
            return "the settings of its types were changed"
        return "the settings of its columns were changed"

    def changed_values(self, stored: str | None, before: TableSchema | None, now: TableSchema) -> frozenset[str]:
        """The columns at the destination whose older values are not what the settings make of values now.

        The destination has the table as `before`, by the rules `stored`. If these are not known, what is hidden now may
        not have been.
        """
        then = None if stored is None else Rules.from_json(stored, self._value_range)
        before = None if before is None else as_kept(before)
        now = as_kept(now)
        rules, shape = self.rules(now.name), self.of(now)
        origins = {**shape.origins, **shape.old_origins}
        if then is None or before is None:
            return frozenset(name for name, column in origins.items() if rules.treatment(column) is not None)
        was = {name: column for column, name in _present(before, now)}
        return frozenset(
            name
            for name, column in origins.items()
            if column in was
            and (
                forms(was[column].type) != forms(now.column(column).type)
                or not rules.same_values(
                    column,
                    then,
                    was[column].name,
                    rules.words_in_force(now.column(column), now),
                    then.words_in_force(was[column], before),
                )
            )
        )

    def check_named(self, before: TableSchema, now: TableSchema) -> None:
        """Raises TableError if a column that the settings name has another name since `before`, or its table has.

        What they hide would be shown then, or what they keep be removed, and nobody has said so.
        """
        self._check_mode_named(before, now)
        before, now = as_kept(before), as_kept(now)
        for column, name in self._treated_otherwise(before, now):
            if self.rules(before.name).is_about(column.name):
                raise _still_by_its_old_name(before, now, column.name, name)

    def check_shown(self, before: TableSchema, now: TableSchema, stored: str | None) -> None:
        """The same before a new copy, when the settings may have been corrected since the rules `stored`.

        Raises TableError if a column that was hidden by them would be shown under its new name, or deleted rows that
        were kept by them would be removed, and what is said of the old name is what was said then.
        """
        then = None if stored is None else Rules.from_json(stored, self._value_range)
        if then is None:
            self.check_named(before, now)
            return
        before, now = as_kept(before), as_kept(now)
        if then.write_mode is not WriteMode.MIRROR:
            self._check_mode_named(before, now)
        old, new = self.rules(before.name), self.rules(now.name)
        for column, name in _present(before, now):
            was = then.treatment(column.name)
            is_renamed = name != column.name or before.name != now.name
            if is_renamed and was is not None and old.treatment(column.name) == was != new.treatment(name):
                raise _still_by_its_old_name(before, now, column.name, name)

    def _check_mode_named(self, before: TableSchema, now: TableSchema) -> None:
        """Raises TableError if a mode that keeps the past is said of the old name, and nothing of the new one."""
        old, new = self.rules(before.name), self.rules(now.name)
        is_unsaid = new.write_mode is not old.write_mode and not new.says_mode
        if before.name != now.name and old.write_mode is not WriteMode.MIRROR and is_unsaid:
            raise TableError(
                f"{now.name}: {before.name} was renamed to {now.name}, and the settings have write_mode"
                f" {old.write_mode} for its old name",
                table=str(now.name),
                hint=_BY_ITS_NEW_NAME,
            )

    def check_carried(self, before: TableSchema, now: TableSchema) -> None:
        """As `check_named`; raises CopiedAgain if the settings are about a column only since it has another name."""
        self.check_named(before, now)
        before, now = as_kept(before), as_kept(now)
        if self.write_mode(now.name) is not WriteMode.MIRROR:
            self._check_told_apart(before, now)
        if self.write_mode(before.name) is not self.write_mode(now.name):
            raise CopiedAgain(
                f"table {now.name}: the settings have another write_mode for it than for {before.name}",
                table=str(now.name),
                hint=COPIED_AGAIN,
            )
        for column, name in self._treated_otherwise(before, now):
            raise CopiedAgain(
                f"table {now.name}: column {column.name} was renamed to {name}, and the settings are about {name}",
                table=str(now.name),
                hint=COPIED_AGAIN,
            )
        old, new = self.rules(before.name), self.rules(now.name)
        for column, name in _present(before, now) if self else ():
            if old.words_in_force(column, before) != new.words_in_force(now.column(name), now):
                raise CopiedAgain(
                    f"table {now.name}: column {name} was altered, and the settings of types say otherwise of it now",
                    table=str(now.name),
                    hint=COPIED_AGAIN,
                )

    def _check_told_apart(self, before: TableSchema, now: TableSchema) -> None:
        """Raises CopiedAgain if what tells the rows of the past apart is something else now."""
        names = {column.name: name for column, name in _present(before, now)}
        what = None
        if {names.get(name) for name in before.key} != set(now.key):
            what = "its key changed, by which its deleted rows are known"
        elif before.is_multiset is not now.is_multiset:
            what = "old rows are sent otherwise than before"
        elif now.is_multiset and any(
            column.missing_value is not None for column in now.columns if column.name not in names.values()
        ):
            what = "a column came with a default, and older rows are told apart by all their values"
        if what is not None:
            raise CopiedAgain(f"table {now.name}: {what}", table=str(now.name), hint=COPIED_AGAIN)

    def _treated_otherwise(self, before: TableSchema, now: TableSchema) -> Iterator[tuple[Column, str]]:
        """Columns that are still there, with the name that each has now."""
        if not self:
            return
        old, new = self.rules(before.name), self.rules(now.name)
        for column, name in _present(before, now):
            if old.treatment(column.name) != new.treatment(name):
                yield column, name

    def check(self, tables: Iterable[TableSchema], known: Collection[TableName] = ()) -> Iterator[ConfigError]:
        """What does not fit the tables: an entry that matches none, a column that none has, a key that is hidden.

        `known` are names of tables beyond `tables` that the entries may be about, whose columns are not known.
        """
        schemas = [as_kept(schema) for schema in tables]
        names = {schema.name: schema for schema in schemas}
        for entry in self._settings:
            matched = [schema for schema in schemas if entry.matches(schema.name)]
            if any(entry.matches(name) for name in known if name not in names):
                pass  # its columns may be that table's
            elif not matched:
                hint = did_you_mean(entry.pattern, [str(name) for name in names])
                yield config_error(entry.where, "no table of the pipeline has that name", hint=hint)
            else:
                yield from _unknown_columns(entry, matched, self._value_range)
        for schema in schemas:
            try:
                shape = build_shape(self.rules(schema.name), schema, self._key)
            except ConfigError as error:
                yield error
                continue
            yield from self._taken(shape.target, {*names, *known})

    def _taken(self, target: TableSchema, tables: Collection[TableName]) -> Iterator[ConfigError]:
        """Which view of the table's versions has the name of a table."""
        for view in views_of(target.name) if target.history else ():
            if view in tables:
                yield config_error(
                    self.rules(target.name).mode_field,
                    f"{target.name} with write_mode history has a view called {view}, and a table is called so",
                    hint="rename one of them at the source, or write for this table:"
                    f" tables: {{{target.name}: {{write_mode: append}}}}",
                )


def _with_kept_digits(known: TableSchema) -> TableSchema:
    """The source's columns with the digits that those have which the destination keeps of them."""
    if known.kept is None:
        return known
    digits = {column.attnum: column.fraction_digits for column in known.kept}
    columns = (replace(one, fraction_digits=digits.get(one.attnum, one.fraction_digits)) for one in known.columns)
    return replace(known, columns=tuple(columns))


def _refuse_unknown(rules: Rules, schema: TableSchema) -> None:
    """Raises UnsupportedType naming the first column that the settings refuse for its type."""
    for column in schema.columns:
        if rules.words_in_force(column, schema).get(UNKNOWN) == REFUSE:
            raise UnsupportedType(
                f"column {column.name} of table {schema.name} has type {format_type(column)}, which is not known",
                table=str(schema.name),
                hint="set types.unknown to varchar or bytes for it, or leave the column out: "
                f"tables: {{{schema.name}: {{columns: {{exclude: [{column.name}]}}}}}}",
            )


def _present(before: TableSchema, now: TableSchema) -> Iterator[tuple[Column, str]]:
    """The columns of `before` that are there now, and what they are called."""
    by_number = {column.attnum: column.name for column in now.columns if column.attnum}
    for column in before.columns:
        name = by_number.get(column.attnum, column.name)
        if name in now.column_names:
            yield column, name


def _still_by_its_old_name(before: TableSchema, now: TableSchema, column: str, name: str) -> TableError:
    was = f"{before.name}.{column}" if before.name != now.name else f"column {column}"
    is_now = f"{now.name}.{name}" if before.name != now.name else name
    return TableError(
        f"{now.name}: {was} was renamed to {is_now}, and the settings have it by its old name",
        table=str(now.name),
        hint=_BY_ITS_NEW_NAME,
    )


def _unknown_columns(entry: TableSettings, matched: Sequence[TableSchema], value_range: Held) -> Iterator[ConfigError]:
    columns = {name for schema in matched for name in schema.column_names}
    for where, column in entry.columns.named():
        if column not in columns:
            of = str(matched[0].name) if not entry.is_pattern else "any table that the pattern matches"
            yield config_error(
                f"{entry.where}.columns.{where}",
                f"{column} is no published column of {of}",
                hint=did_you_mean(column, columns),
            )
    for where, column, option in entry.columns.typed():
        found = [schema.column(column) for schema in matched if column in schema.column_names]
        word = entry.columns.types[option][column]
        if found and not any(applies(option, word, one, value_range) for one in found):
            yield config_error(
                f"{entry.where}.columns.{where}",
                f"column {column} has type {format_type(found[0])}, of which {option} says nothing",
                hint="the options of types are in docs/types.md; remove the line",
            )
