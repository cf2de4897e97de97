"""Settings per table or pattern: write mode, policies, and which columns go to the destination, how called, how hidden.

Nothing here knows a table: what the settings mean for one is `etl_core.shape`'s, and so are the transforms' names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from etl_core.config_values import as_choice, check_positive, config_error, in_field, unknown_key, wrong_kind
from etl_core.identifiers import TableName
from etl_core.policies import POLICY_FIELDS, PolicySettings, read_policy
from etl_core.table_pattern import TablePattern
from etl_core.type_options import DEFAULTS, read_types, read_word
from etl_core.write_mode import WriteMode

_LEAST_KEY = 16
"""Characters of a hash key: with a shorter one, values can be found by trying keys."""


@dataclass(frozen=True, slots=True)
class ColumnSettings:
    """What becomes of columns, by their names at the source.

    With `include` only those go to the destination; `exclude` leaves some out. `transforms` has, by the transform's
    name, the columns it is for and its argument for each: None, or a number of characters for `truncate`. `types` has,
    by the option of types, the columns it is said for and its word for each.
    """

    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    rename: Mapping[str, str] = field(default_factory=dict)
    transforms: Mapping[str, Mapping[str, int | None]] = field(default_factory=dict)
    types: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)  # Shapes.digest is of the repr

    def named(self) -> list[tuple[str, str]]:
        """Every column that is named, with the dotted field in which it is, below that of these settings."""
        fields = [(f"include[{at}]", column) for at, column in enumerate(self.include or ())]
        fields += [(f"exclude[{at}]", column) for at, column in enumerate(self.exclude)]
        for transform, columns in self.transforms.items():
            for at, (column, argument) in enumerate(columns.items()):
                fields.append((f"{transform}[{at}]" if argument is None else f"{transform}.{column}", column))
        fields += [(where, column) for where, column, _ in self.typed()]
        return fields + [(f"rename.{column}", column) for column in self.rename]

    def typed(self) -> list[tuple[str, str, str]]:
        """For every column of an option of types: the field, as above, the column and the option."""
        return [(f"{option}.{column}", column, option) for option, columns in self.types.items() for column in columns]


@dataclass(frozen=True, slots=True)
class TableSettings:
    """The settings of the tables that `pattern` matches.

    See TablePattern for what a pattern is.
    """

    pattern: str
    columns: ColumnSettings = field(default_factory=ColumnSettings)
    write_mode: WriteMode | None = None
    """None leaves it to the entries before this one, and to the pipeline's."""
    policy: PolicySettings = field(default_factory=PolicySettings)
    types: Mapping[str, str] = field(default_factory=dict)
    """Words by option; what it does not have is left to the entries before this one, and to the pipeline's."""

    def __post_init__(self) -> None:
        in_field(self.where, TablePattern, self.pattern)
        columns = self.columns
        where = f"{self.where}.columns"
        if columns.include is not None and not columns.include:
            raise config_error(f"{where}.include", "is empty", hint="name the columns, or leave it out for all")
        if columns.include is not None and columns.exclude:
            raise config_error(f"{where}.exclude", "there is an include beside it", hint="write one of the two")
        seen: dict[str, str] = {}
        for name, column, _ in columns.typed():
            if column in columns.exclude or any(column in arguments for arguments in columns.transforms.values()):
                raise config_error(f"{where}.{name}", f"column {column} is left out or transformed by this entry")
        typed = {name for name, _, _ in columns.typed()}
        for name, column in columns.named():
            if name in typed:
                continue
            kind = "include" if name.startswith("include[") else "rename" if name.startswith("rename.") else "treatment"
            if kind == "rename" and column in columns.exclude:
                raise config_error(f"{where}.{name}", f"column {column} is excluded")
            if kind != "rename" and seen.setdefault(f"{kind} {column}", name) != name:
                raise config_error(f"{where}.{name}", f"column {column} is in {seen[f'{kind} {column}']} too")
        for transform, arguments in columns.transforms.items():
            for column, argument in arguments.items():
                if argument is not None:
                    check_positive(f"{where}.{transform}.{column}", argument)

    @property
    def where(self) -> str:
        """The dotted field."""
        return f"tables.{self.pattern}"

    @property
    def is_pattern(self) -> bool:
        """Whether it may match several tables."""
        return TablePattern(self.pattern).has_star

    def matches(self, name: TableName) -> bool:
        return TablePattern(self.pattern).matches(name)


def check_hash_key(where: str, key: str | None) -> None:
    """Raises ConfigError for a key that is too short; it is never shown."""
    if key is not None and len(key) < _LEAST_KEY:
        raise config_error(where, f"must have {_LEAST_KEY} characters or more", hint="openssl rand -hex 32 makes one")


def read_tables(where: str, given: Mapping[str, object]) -> tuple[TableSettings, ...]:
    """The settings as YAML or Dagster has them: by pattern, `{write_mode: …, recopy: …, columns: {exclude: […], …}}`.

    Raises ConfigError with the dotted field. Of two that match a table, the later one decides about a column.
    """
    return tuple(_settings(f"{where}.{pattern}", pattern, settings) for pattern, settings in given.items())


def read_write_mode(where: str, given: object) -> WriteMode:
    """Raises ConfigError for what is not the name of one."""
    return as_choice(where, WriteMode, given)


def _settings(where: str, pattern: str, settings: object) -> TableSettings:
    if not isinstance(settings, Mapping):
        raise wrong_kind(where, "a mapping", settings)
    known = ("columns", "types", "write_mode", *POLICY_FIELDS)
    for key in settings:
        if key not in known:
            raise unknown_key(f"{where}.{key}", known, hint=f"known here: {', '.join(known)}")
    mode = settings.get("write_mode")
    return TableSettings(
        pattern,
        _columns(f"{where}.columns", settings.get("columns", {})),
        None if mode is None else read_write_mode(f"{where}.write_mode", mode),
        read_policy(where, settings),
        read_types(f"{where}.types", settings.get("types", {})),
    )


def _columns(where: str, given: object) -> ColumnSettings:
    if not isinstance(given, Mapping):
        raise wrong_kind(where, "a mapping", given)
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    rename: dict[str, str] = {}
    transforms: dict[str, dict[str, int | None]] = {}
    types: dict[str, dict[str, str]] = {}
    for key, value in given.items():
        if key is None:  # what YAML makes of null:
            key = "null"
        if key == "include":
            include = _names(f"{where}.include", value)
        elif key == "exclude":
            exclude = _names(f"{where}.exclude", value)
        elif key == "rename":
            rename = _renames(f"{where}.rename", value)
        elif key in DEFAULTS:
            types[key] = _words(f"{where}.{key}", key, value)
        else:
            transforms[key] = _arguments(f"{where}.{key}", value)
    return ColumnSettings(include, exclude, rename, transforms, types)


def _names(where: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise wrong_kind(where, "a list", value)
    for at, item in enumerate(value):
        if not isinstance(item, str):
            raise wrong_kind(f"{where}[{at}]", "text", item)
        if item in value[:at]:
            raise config_error(f"{where}[{at}]", f"column {item} is listed twice")
    return tuple(value)


def _renames(where: str, value: object) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise wrong_kind(where, "a mapping", value)
    for column, name in value.items():
        if not isinstance(name, str):
            raise wrong_kind(f"{where}.{column}", "text", name)
        if not name:
            raise config_error(f"{where}.{column}", "must not be empty")
    return dict(value)


def _words(where: str, option: str, value: object) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise wrong_kind(where, "a mapping of columns to words", value)
    return {column: read_word(f"{where}.{column}", option, word) for column, word in value.items()}


def _arguments(where: str, value: object) -> dict[str, int | None]:
    """A list of columns, or a mapping of columns to whole numbers."""
    if not isinstance(value, Mapping):
        return dict.fromkeys(_names(where, value))
    for column, argument in value.items():
        if isinstance(argument, bool) or not isinstance(argument, int):
            raise wrong_kind(f"{where}.{column}", "a whole number", argument)
    return dict(value)
