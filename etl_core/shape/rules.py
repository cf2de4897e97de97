"""What the settings say of one table: the entries that match it, merged. Still without knowing its columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from etl_core.config_tables import TableSettings
from etl_core.config_values import config_error
from etl_core.errors import ConfigError
from etl_core.identifiers import TableName
from etl_core.policies import SchemaChanges
from etl_core.schema.table import Column, TableSchema
from etl_core.shape.retyping import in_force, is_array, is_counted
from etl_core.shape.transforms import transform_named
from etl_core.type_options import (
    ARRAYS,
    AUTO,
    DEFAULTS,
    DOUBLE,
    ENUM,
    NUMERIC,
    OUT_OF_RANGE,
    RANGE,
    UNKNOWN,
    VARCHAR,
    Held,
    OutOfRange,
    read_types,
)
from etl_core.write_mode import WriteMode

EXCLUDE = "exclude"


_OF_ALL = "write_mode"
"""The field that has the write_mode of tables whose entries have none."""


@dataclass(frozen=True, slots=True)
class Rules:
    """By the names of columns at the source.

    `actions` has what is done with a column: EXCLUDE, or a transform's name and its argument. `fields` and
    `rename_fields` have the dotted field that says so, for errors; they do not count where rules are compared.
    """

    include: frozenset[str] | None = None
    actions: Mapping[str, tuple[str, int | None]] = field(default_factory=dict)
    rename: Mapping[str, str] = field(default_factory=dict)
    key_check: str | None = None
    """What tells one hash key from another without telling the key; None where nothing is hashed."""
    write_mode: WriteMode = WriteMode.MIRROR
    types: Mapping[str, str] = field(default_factory=dict)
    column_types: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """The words of the options of types: the table's by option, and those said for a column, which come first."""
    fields: Mapping[str, str] = field(default_factory=dict, compare=False)
    rename_fields: Mapping[str, str] = field(default_factory=dict, compare=False)
    mode_field: str = field(default=_OF_ALL, compare=False)
    type_fields: Mapping[tuple[str, str | None], str] = field(default_factory=dict, compare=False)
    """By option and column, None for the table."""
    value_range: Held = field(default=None, compare=False)
    """The destination's."""
    ignores: bool = False
    """Whether changes of the table's columns are ignored."""

    def leaves_out(self, column: str) -> bool:
        is_excluded = self.actions.get(column, ("", None))[0] == EXCLUDE
        return is_excluded or (self.include is not None and column not in self.include)

    @property
    def says_mode(self) -> bool:
        """Whether an entry for the table says its write_mode, not the pipeline's."""
        return self.mode_field != _OF_ALL

    def is_about(self, column: str) -> bool:
        """Whether it is what the settings say that the column is seen, or not seen, as it is."""
        return self.include is not None or column in self.actions

    def treatment(self, column: str) -> tuple[str, int | None] | None:
        """Equal for two columns of which the destination has the same, but for their names."""
        return (EXCLUDE, None) if self.leaves_out(column) else self.actions.get(column)

    def words(self, column: str) -> Mapping[str, str]:
        """The words of the options of types for a column; an option that is not in it has its default."""
        return {**self.types, **self.column_types.get(column, {})}

    def type_field(self, option: str, column: str) -> str:
        """The dotted field that says the word of `option` for a column."""
        return self.type_fields.get((option, column)) or self.type_fields.get((option, None), f"types.{option}")

    def words_in_force(self, column: Column, schema: TableSchema) -> Mapping[str, str]:
        """Those that make a difference to the column; equal for two of which the destination has values alike."""
        if self.treatment(column.name) is not None:
            return {}
        is_key = column.name in schema.key
        return in_force(column, self.words(column.name), is_key=is_key, value_range=self.value_range)

    def counts_digits(self, column: Column, schema: TableSchema) -> bool:
        """Whether a copy of the table decides how many digits the column's numerics have at the destination."""
        if self.treatment(column.name) is not None or not is_counted(column):
            return False
        words = {**DEFAULTS, **self.words(column.name)}
        if words[NUMERIC] != AUTO or (is_array(column) and words[ARRAYS] != DEFAULTS[ARRAYS]):
            return False
        # A row that was deleted as 1.0 and one that came as 1.00 would have one key.
        return column.name not in schema.key or self.write_mode is WriteMode.MIRROR

    def with_text_as_of(self, now: Rules, schema: TableSchema) -> Rules:
        """These rules, with `varchar` for numerics that are text though a copy was to count their digits.

        An older version made them text: whoever says `varchar` now has what is there already.
        """
        found = {
            column.name: {**self.column_types.get(column.name, {}), NUMERIC: VARCHAR}
            for column in schema.columns
            if column.fraction_digits is None
            and self.words(column.name).get(NUMERIC, AUTO) == AUTO
            and now.words(column.name).get(NUMERIC) == VARCHAR
        }
        return replace(self, column_types={**self.column_types, **found}) if found else self

    def restricted(self, schema: TableSchema) -> Rules:
        """What they come to for a table with these columns; equal rules of two such give the same rows."""
        columns = schema.column_names
        treated = {column: self.treatment(column) for column in sorted(columns)}
        actions = {column: treatment for column, treatment in treated.items() if treatment is not None}
        hashes = any(transform_named(name, name).needs_key for name, _ in actions.values() if name != EXCLUDE)
        rename = {name: new for name, new in self.rename.items() if name in columns and name != new}
        words = {column.name: self.words_in_force(column, schema) for column in schema.columns}
        types = {name: in_force for name, in_force in words.items() if in_force}
        return Rules(None, actions, rename, self.key_check if hashes else None, self.write_mode, {}, types)

    def same_values(
        self, column: str, then: Rules, name: str, words: Mapping[str, str], words_then: Mapping[str, str]
    ) -> bool:
        """Whether a column's values are what those of column `name` were by the rules `then`.

        The words are those in force. Values of another type may be the same; one that was rounded is not what it was.
        """
        treatment = self.treatment(column)
        if treatment != then.treatment(name):
            return False
        if any(words.get(option) != words_then.get(option) for option in (ARRAYS, ENUM, RANGE, UNKNOWN)):
            return False
        # Where values were refused or NULL, those that are there are the source's.
        if words_then.get(OUT_OF_RANGE) == OutOfRange.CLAMP != words.get(OUT_OF_RANGE):
            return False
        if words_then.get(NUMERIC) == DOUBLE != words.get(NUMERIC):
            return False
        is_hashed = (
            treatment is not None and treatment[0] != EXCLUDE and transform_named(treatment[0], treatment[0]).needs_key
        )
        return not is_hashed or self.key_check == then.key_check

    def to_json(self) -> str:
        """For the state store, which is to hold no secret."""
        include = None if self.include is None else sorted(self.include)
        stored: dict[str, Any] = {
            "include": include,
            "actions": self.actions,
            "rename": self.rename,
            "key_check": self.key_check,
        }
        if self.write_mode is not WriteMode.MIRROR:  # older versions knew no other
            stored["write_mode"] = self.write_mode
        if self.types or self.column_types:
            stored |= {"types": self.types, "column_types": self.column_types}
        if self.ignores:
            stored["ignores"] = True
        return json.dumps(stored, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, value_range: Held = None) -> Rules | None:
        """None for what `to_json` did not write: it cannot be told what the rules were then."""
        try:
            stored: dict[str, Any] = json.loads(text)
            include = stored["include"]
            for name, _ in stored["actions"].values():
                if name != EXCLUDE:
                    transform_named(name, name)  # one that nobody registers any more is not known
            return cls(
                None if include is None else frozenset(include),
                {column: (name, argument) for column, (name, argument) in stored["actions"].items()},
                dict(stored["rename"]),
                stored["key_check"],
                WriteMode(stored.get("write_mode", WriteMode.MIRROR)),
                read_types("types", stored.get("types", {})),
                {name: read_types(name, words) for name, words in stored.get("column_types", {}).items()},
                value_range=value_range,
                ignores=bool(stored.get("ignores")),
            )
        except (KeyError, TypeError, ValueError, AttributeError, ConfigError):
            return None


def rules_for(
    settings: Iterable[TableSettings],
    name: TableName,
    key_check: str | None,
    write_mode: WriteMode = WriteMode.MIRROR,
    types: Mapping[str, str] | None = None,
    value_range: Held = None,
    schema_changes: SchemaChanges = SchemaChanges.APPLY,
) -> Rules:
    """Of two entries that say the same of a column or of the table, the later one decides.

    `write_mode`, `types` and `schema_changes` are the pipeline's, for a table whose entries have none; `value_range` is
    the destination's.
    """
    types = dict(types or {})
    column_types: dict[str, dict[str, str]] = {}
    type_fields: dict[tuple[str, str | None], str] = {}
    mode_field = _OF_ALL
    include: frozenset[str] | None = None
    actions: dict[str, tuple[str, int | None]] = {}
    rename: dict[str, str] = {}
    fields: dict[str, str] = {}
    rename_fields: dict[str, str] = {}
    for entry in settings:
        if not entry.matches(name):
            continue
        if entry.write_mode is not None:
            write_mode, mode_field = entry.write_mode, f"{entry.where}.write_mode"
        schema_changes = entry.policy.schema_changes or schema_changes
        types |= entry.types
        type_fields |= {(option, None): f"{entry.where}.types.{option}" for option in entry.types}
        columns = entry.columns
        for where, column, option in columns.typed():
            column_types.setdefault(column, {})[option] = columns.types[option][column]
            type_fields[option, column] = f"{entry.where}.columns.{where}"
        if columns.include is not None:
            include = frozenset(columns.include)
        actions |= dict.fromkeys(columns.exclude, (EXCLUDE, None))
        for transform, arguments in columns.transforms.items():
            actions |= {column: (transform, argument) for column, argument in arguments.items()}
        rename |= columns.rename
        for where, column in columns.named():
            if where.startswith(tuple(f"{option}." for option in columns.types)):
                continue
            by_column = rename_fields if where.startswith("rename.") else fields
            by_column[column] = f"{entry.where}.columns.{where}"
    return Rules(
        include,
        actions,
        rename,
        key_check,
        write_mode,
        types,
        column_types,
        fields,
        rename_fields,
        mode_field,
        type_fields,
        value_range,
        schema_changes is SchemaChanges.IGNORE,
    )


def check_settings(settings: Sequence[TableSettings], hash_key: str | None) -> None:
    """Raises ConfigError for a transform that nobody knows, a wrong argument, a missing hash key."""
    for entry in settings:
        for name, columns in entry.columns.transforms.items():
            where = f"{entry.where}.columns.{name}"
            transform = transform_named(name, where)
            for column, argument in columns.items():
                if transform.needs_argument != (argument is not None):
                    how = "a mapping of columns to numbers" if transform.needs_argument else "a list of columns"
                    raise config_error(where if argument is None else f"{where}.{column}", f"needs {how}")
            if transform.needs_key and hash_key is None:
                raise config_error(where, "needs a hash_key", hint="set hash_key: ${NAME}, a secret that never changes")
