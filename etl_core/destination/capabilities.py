"""What each destination can do, as its declaration and its code say: for `etl destinations` and the table in the docs.

Nothing is said here a second time. Write modes are what `refuses` lets pass, abilities are the protocols that the built
destination has, and types are what it stores columns as. A destination is built with the examples of its options, which
connects to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from etl_core.destination.declaration import DestinationType
from etl_core.destination.options import Options
from etl_core.destination.protocol import (
    BackupDestination,
    CountingDestination,
    Destination,
    RemovingDestination,
    SharingDestination,
    WaitingDestination,
)
from etl_core.destination.registry import FoundType, LibraryMissing, destination_types, find_type
from etl_core.errors import ConfigError, EtlError
from etl_core.identifiers import TableId, TableName
from etl_core.schema import pg_types
from etl_core.schema.table import Column, PgType, TableSchema, TypeKind
from etl_core.write_mode import WriteMode

Answer: TypeAlias = bool | str | int | None
"""Whether, what or how many; None where it is not known: the type does not tell, or its package is missing."""

_TEXT = PgType(pg_types.TEXT, "text")


class Availability(StrEnum):
    """Whether a type can be used: MISSING needs a package, BROKEN is refused for what its code does."""

    INSTALLED = "installed"
    MISSING = "not installed"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Capability:
    """One line of the table: `name` is its key in JSON, `title` is for people. `is_type` where answers are types."""

    name: str
    title: str
    is_type: bool = False


MODES = {mode: Capability(str(mode), f"`write_mode: {mode}`") for mode in WriteMode}
_ABILITIES: Mapping[Capability, Callable[[Destination], Answer]] = {
    Capability("without_key", "updates and deletes of tables without a key"): lambda found: _removes(found),
    Capability("shared_copies", "several processes copy one table"): lambda found: isinstance(
        found, SharingDestination
    ),
    Capability("shared_access", "readers and other writers at any time"): lambda found: (
        not isinstance(found, WaitingDestination)
    ),
    Capability("counts", "counts rows without reading them"): lambda found: isinstance(found, CountingDestination),
    Capability("backup", "backup of its file, while a run writes it"): lambda found: isinstance(
        found, BackupDestination
    ),
}
_COMMIT = Capability("tables_in_commit", "tables in one commit")
_ENUMS = Capability("enums", "`types.enum: enum`")
_STORED: Mapping[Capability, PgType] = {
    Capability("stored_array", "`text[]` becomes", is_type=True): PgType(
        1009, "_text", kind=TypeKind.ARRAY, element=_TEXT
    ),
    Capability("stored_json", "`jsonb` becomes", is_type=True): PgType(pg_types.JSONB, "jsonb"),
    Capability("stored_range", "`int4range` becomes", is_type=True): PgType(3904, "int4range", kind=TypeKind.RANGE),
    Capability("stored_enum", "an enum becomes", is_type=True): PgType(70_000, "mood", "public", TypeKind.ENUM),
}
CAPABILITIES = (*MODES.values(), *_ABILITIES, _COMMIT, _ENUMS, *_STORED)
"""All, in the order in which they are shown."""
_QUOTES = str.maketrans("", "", '`"')
"""Around names, where they need none."""


@dataclass(frozen=True, slots=True)
class Described:
    """A destination type and its answers. `problem` and `hint` say why it cannot be used, and what to do.

    `origin` is the package that brings it, None if that is not known. `url` is how it is written as one.
    """

    name: str
    origin: str | None
    availability: Availability = Availability.INSTALLED
    problem: str | None = None
    hint: str | None = None
    url: str | None = None
    is_queried: bool = False
    answers: Mapping[Capability, Answer] = field(default_factory=lambda: dict.fromkeys(CAPABILITIES))


def describe_all() -> list[Described]:
    """Every type of this package and of installed ones, by name. What one of them raises is told of it alone."""
    return [_describe(name) for name in destination_types()]


def describe_types(types: Mapping[str, DestinationType]) -> list[Described]:
    """These types."""
    return [_describe_found(FoundType(name, "the reference", declared)) for name, declared in types.items()]


def _describe(name: str) -> Described:
    try:
        return _describe_found(find_type(name))
    except EtlError as error:
        return Described(name, None, _availability(error), str(error), error.hint)


def _describe_found(found: FoundType) -> Described:
    declared = found.type
    answers: dict[Capability, Answer] = dict.fromkeys(CAPABILITIES)
    availability, problem, hint = Availability.INSTALLED, None, None
    try:
        for capability, answer in _answers(found):
            answers[capability] = answer  # noqa: PERF403 - those before one that fails count
    except EtlError as error:
        availability, problem, hint = _availability(error), str(error), error.hint
    except Exception as error:
        availability, problem = Availability.BROKEN, f"{found.origin} failed with {type(error).__name__}: {error}"
    return Described(
        found.name,
        found.origin,
        availability,
        problem,
        hint,
        url=None if declared.url is None else declared.url.form,
        is_queried=declared.reader_names is not None,
        answers=answers,
    )


def _answers(found: FoundType) -> Iterator[tuple[Capability, Answer]]:
    """One after the other: what is known before something fails is known."""
    declared = found.type
    yield _ENUMS, declared.has_enums
    yield _COMMIT, "all" if declared.tables_in_commit is None else declared.tables_in_commit
    if declared.options is None:
        return
    given = {option.name: option.example for option in declared.options if option.required and option.example}
    try:
        options = found.read_options(given)
    except ConfigError:
        return  # a required option has no example
    for mode, capability in MODES.items():
        yield capability, found.refuses(mode, options) is None
    destination = found.build(given, None, "example")
    try:
        for capability, ask in _ABILITIES.items():
            yield capability, ask(destination)
    finally:
        destination.close()
    yield from _stored(found, options)


def _stored(found: FoundType, options: Options) -> Iterator[tuple[Capability, Answer]]:
    names = found.reader_names(options)
    if names is None:
        return
    for capability, kind in _STORED.items():
        [column] = names.columns(_table(Column("c", kind)))
        yield capability, column.type.translate(_QUOTES)


def _removes(destination: Destination) -> bool:
    if not isinstance(destination, RemovingDestination):
        return False
    return destination.refuses_removals(_table(Column("c", _TEXT))) is None


def _table(column: Column) -> TableSchema:
    """A table without a key."""
    return TableSchema(TableId(1), TableName("public", "t"), (column,), ())


def _availability(error: EtlError) -> Availability:
    return Availability.MISSING if isinstance(error, LibraryMissing) else Availability.BROKEN
