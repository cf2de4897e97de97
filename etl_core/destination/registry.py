"""Finds the destination that a configuration names: one of this package's, an installed package's, or `module:name`.

A package makes its type known by an entry point in the group `etl.destinations`, which names a `DestinationType`, or a
function `(options, pipeline) -> Destination`; so does `type: some_package.module:name`, for what is not installed as a
type. Modules are imported when their type is asked for: nobody needs the libraries of the others.
"""

from __future__ import annotations

import importlib
import re
import sys
import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from etl_core.config_values import WHOLE_URL, config_error, did_you_mean
from etl_core.destination.declaration import DestinationType
from etl_core.destination.options import masked, read_options
from etl_core.destination.protocol import Destination
from etl_core.destination.reader_names import ReaderNames
from etl_core.errors import ConfigError, EtlError
from etl_core.type_options import Held
from etl_core.write_mode import WriteMode

if TYPE_CHECKING:
    from etl_core.config import DestinationConfig
    from etl_core.destination.options import Options

GROUP = "etl.destinations"
"""The group of entry points."""
_PACKAGE = "etl-dagster"
_BUILT_IN = {  # what a type needs beyond this package is installed by the extra of the type's name
    "bigquery": "etl_core.destination.bigquery.declaration:BIGQUERY",
    "duckdb": "etl_core.destination.duckdb.declaration:DUCKDB",
    "ducklake": "etl_core.destination.ducklake.declaration:DUCKLAKE",
    "iceberg": "etl_core.destination.iceberg.declaration:ICEBERG",
    "memory": "etl_core.destination.memory:MEMORY",
    "null": "etl_core.destination.null:NULL",
    "postgres": "etl_core.destination.postgres.declaration:POSTGRES",
    "snowflake": "etl_core.destination.snowflake.declaration:SNOWFLAKE",
}
_METHODS = tuple(name for name in vars(Destination) if not name.startswith("_"))
_REFERENCE = re.compile(r"(?P<module>[^\W\d]\w*(\.\w+)*):(?P<path>\w+(\.\w+)*)")
_FIELD = "destination.type"


class LibraryMissing(ConfigError):
    """The type is there, and a Python package that it needs is not."""


@dataclass(frozen=True, slots=True)
class FoundType:
    """A type by its name in the configuration, and where it comes from, for people: `etl-mine 1.0`."""

    name: str
    origin: str
    type: DestinationType

    def read_options(
        self, given: Mapping[str, object], folder: Path | None = None, elsewhere: Collection[str] = ()
    ) -> Options:
        """The options of a configuration, checked. Raises ConfigError.

        Those whose names are in `elsewhere` are not known yet: they are None here, and `check` is not asked.
        """
        given = self.spelled_out(given)
        declared = self.type.options
        options = given if declared is None else read_options(self.name, declared, given, folder, elsewhere)
        if self.type.check is not None and not elsewhere:
            with self._calling(given):
                self.type.check(options)
        return options

    def build(self, given: Mapping[str, object], folder: Path | None, pipeline: str) -> Destination:
        """See `build_destination`."""
        given = self.spelled_out(given)
        options = self.read_options(given, folder)
        with self._calling(given):
            built = self.type.build(options, pipeline)
        missing = [name for name in _METHODS if not callable(getattr(built, name, None))]
        if missing:
            raise ConfigError(
                f"destination type {self.name} of {self.origin} builds a {_kind(built)}, which is no destination: it"
                f" has no method {', '.join(missing)}",
                field=_FIELD,
                hint=_TELL_AUTHORS,
            )
        return built

    def spelled_out(self, given: Mapping[str, object]) -> Mapping[str, object]:
        """The options that a URL stands for, `given` itself where there is none. Raises ConfigError."""
        if WHOLE_URL not in given:
            return given
        url = self.type.url
        if url is None:
            raise config_error(
                "destination",
                f"destination type {self.name} has no URL",
                hint=f"write its options one by one: destination: {{type: {self.name}, …}}",
            )
        with self._calling(given):
            return url.read(str(given[WHOLE_URL]))

    def reader_names(self, options: Options) -> ReaderNames | None:
        """What queries call the tables, by what `read_options` gave; None where the type does not tell."""
        if self.type.reader_names is None:
            return None
        with self._calling(options):
            return self.type.reader_names(options)

    def refuses(self, mode: WriteMode, options: Options) -> str | None:
        """Why tables cannot have that write mode, as the end of a sentence; None where they can."""
        if self.type.refuses is None:
            return None if mode is WriteMode.MIRROR else "it keeps the rows that the source has, and no others"
        with self._calling(options):
            return self.type.refuses(mode, options)

    @contextmanager
    def _calling(self, given: Mapping[str, object]) -> Iterator[None]:
        """Code of the type's package: what it raises that is no EtlError becomes one; none shows a secret."""
        try:
            yield
        except EtlError as error:
            if self.origin != _PACKAGE:
                declared = None if WHOLE_URL in given else self.type.options
                error.args = tuple(masked(str(told), declared, given) for told in error.args)
                error.hint = error.hint and masked(error.hint, declared, given)
            raise
        except ModuleNotFoundError as error:
            raise _needs_package(self.name, self.origin, error) from None
        except Exception as error:
            declared = None if WHOLE_URL in given else self.type.options
            told = masked(f"{type(error).__name__}: {error}", declared, given)
            raise ConfigError(
                f"destination type {self.name} of {self.origin} failed with {told} ({_place(error)})",
                field="destination",
                hint=f"check the options of the destination; if they are right, {_TELL_AUTHORS}",
            ) from None  # its own text may hold a secret


_TELL_AUTHORS = "report it to whoever wrote the package"


def destination_types() -> tuple[str, ...]:
    """The names of all types, of this package and of installed ones. Imports none of them."""
    return tuple(sorted({*_BUILT_IN, *(entry.name for entry in _installed())}))


def check_type_name(name: str) -> None:
    """Raises ConfigError for a type that is not installed, and is no `module:name`. Imports nothing."""
    known = destination_types()
    if ":" not in name and name not in known:
        raise ConfigError(
            f"there is no destination type {name!r}",
            field=_FIELD,
            hint=did_you_mean(name, known)
            or f"use one of: {', '.join(known)}; or install the package that brings it; or write module:name",
        )


def built_in_types() -> dict[str, DestinationType]:
    """The types of this package by name, for its reference."""
    return {name: _load(name, _PACKAGE, reference) for name, reference in _BUILT_IN.items()}


def find_type(name: str) -> FoundType:
    """The type of that name, imported. Raises ConfigError where it is not there, or not there once."""
    if ":" in name:
        return FoundType(name, "the configuration", _load(name, "the configuration", name))
    check_type_name(name)
    given = [(_origin(entry), entry.value.partition("[")[0].strip()) for entry in _installed().select(name=name)]
    if name in _BUILT_IN:
        given.insert(0, (_PACKAGE, _BUILT_IN[name]))
    if len(given) > 1:
        raise ConfigError(
            f"destination type {name} is brought by several packages: {', '.join(origin for origin, _ in given)}",
            field=_FIELD,
            hint="uninstall all but one, or name the one that is meant: "
            + " or ".join(f"type: {reference}" for _, reference in given),
        )
    [(origin, reference)] = given
    return FoundType(name, origin, _load(name, origin, reference))


def type_label(name: str) -> str:
    """What a type is called where `module:name` may not stand, such as in a Dagster asset's key."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)


def check_destination(config: DestinationConfig) -> None:
    """Raises ConfigError as `build_destination` would for these options, but does not need the type's libraries."""
    find_type(config.type).read_options(config.options, config.folder)


def check_write_modes(config: DestinationConfig, modes: Iterable[tuple[str, WriteMode]]) -> None:
    """Raises ConfigError for a write mode that tables of this destination cannot have; each comes with its field."""
    wanted = [(where, mode) for where, mode in modes if mode is not WriteMode.MIRROR]
    if not wanted:
        return
    found = find_type(config.type)
    options = found.read_options(config.options, config.folder)
    for where, mode in wanted:
        reason = found.refuses(mode, options)
        if reason is not None:
            raise config_error(
                where, f"is {mode}, which destination type {config.type} cannot do: {reason}", hint="use mirror"
            )


def check_enums(config: DestinationConfig, fields: Iterable[str]) -> None:
    """Raises ConfigError for a destination without enums, naming the first of `fields`, which say there are some."""
    for where in fields:
        if not find_type(config.type).type.has_enums:
            raise config_error(
                where, f"is enum, which destination type {config.type} does not have", hint="leave it out"
            )


def default_types(config: DestinationConfig) -> Mapping[str, str]:
    """The words of the options of types that the destination has where the settings have none."""
    return find_type(config.type).type.types


def value_range(config: DestinationConfig) -> Held:
    """What the destination holds of values, None where that is what Arrow has."""
    return find_type(config.type).type.value_range


def build_destination(config: DestinationConfig, pipeline: str) -> Destination:
    """The destination of `pipeline` that the configuration describes. Nothing is opened or connected yet.

    Raises ConfigError for an unknown type or option, for a missing library, and for a package that builds something
    else than a destination.
    """
    return find_type(config.type).build(config.options, config.folder, pipeline)


def reader_names(config: DestinationConfig) -> ReaderNames:
    """What queries call the tables of the destination. Opens nothing, and needs no library of the destination's.

    Raises ConfigError for an unknown type or option, and for a type that cannot be queried.
    """
    found = find_type(config.type)
    names = found.reader_names(found.read_options(config.options, config.folder))
    if names is None:
        raise ConfigError(
            f"destination type {config.type} keeps no tables that can be queried",
            field=_FIELD,
            hint="use a type that does; etl destinations lists what there is",
        )
    return names


def _installed() -> EntryPoints:
    return _entry_points(tuple(sys.path))


@cache
def _entry_points(path: tuple[str, ...]) -> EntryPoints:  # noqa: ARG001 - they are looked for there
    """Of all installed packages. Looking takes 6 ms, and Dagster asks for a type with each table's name."""
    return entry_points(group=GROUP)


def _load(name: str, origin: str, reference: str) -> DestinationType:
    """What `module:name` names, as a DestinationType."""
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise ConfigError(
            f"{origin} names destination type {name} by {reference!r}, which is not module:name",
            field=_FIELD,
            hint="write for example etl_mine:MINE",
        )
    found: object = _import(name, origin, match["module"])
    for part in match["path"].split("."):
        if not hasattr(found, part):
            raise ConfigError(
                f"{match['module']} has no {match['path']!r}, which {origin} names as destination type {name}",
                field=_FIELD,
                hint=did_you_mean(part, vars(found)) if isinstance(found, ModuleType) else None,
            )
        found = getattr(found, part)
    if isinstance(found, DestinationType):
        return found
    if callable(found):
        return DestinationType(build=found)
    raise ConfigError(
        f"{reference}, which {origin} names as destination type {name}, is a {_kind(found)}",
        field=_FIELD,
        hint="it must be a DestinationType, or a function (options, pipeline) that returns a destination",
    )


def _import(name: str, origin: str, module_name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _needs_package(name, origin, error) from None
        raise ConfigError(
            f"there is no module {error.name!r}, which {origin} names as destination type {name}",
            field=_FIELD,
            hint="correct the name, install its package, or put its folder into PYTHONPATH",
        ) from None
    except Exception as error:
        raise ConfigError(
            f"destination type {name} of {origin} cannot be imported: {type(error).__name__}: {error}"
            f" ({_place(error)})",
            field=_FIELD,
            hint="install the versions that its package asks for; if they are, report it to whoever wrote the package",
        ) from error


def _needs_package(name: str, origin: str, error: ModuleNotFoundError) -> LibraryMissing:
    if origin == _PACKAGE:
        if (error.name or "").partition(".")[0] == "etl_core":
            raise error
        hint = f"run: pip install 'etl-dagster[{name}]'"
    else:
        hint = f"install it, for example: pip install {(error.name or '').partition('.')[0]}"
    return LibraryMissing(
        f"destination type {name} needs the Python package {error.name}, which is not installed",
        field=_FIELD,
        hint=hint,
    )


def _origin(entry: EntryPoint) -> str:
    return entry.value if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"


def _kind(value: object) -> str:
    return value.__name__ if isinstance(value, type) else type(value).__name__


def _place(error: BaseException) -> str:
    """The line of code that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else "no traceback"
