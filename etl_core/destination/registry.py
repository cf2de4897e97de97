"""The one list of destinations: what each type in the configuration is called and where it lives.

A module is imported only when its type is asked for, so that nobody needs the libraries of the others. It has a
function `from_options(options, pipeline) -> Destination`; `parse_options(options)`, which raises ConfigError, may be in
a module of its own that needs no library, so that a command that writes nothing checks them without it. Likewise
`reader_names(options)`, of a destination that others query.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from etl_core.destination.protocol import Destination
from etl_core.destination.reader_names import ReaderNames
from etl_core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class _Type:
    """Modules by name; `extra` of this package installs the libraries that `module` needs."""

    module: str
    options: str
    extra: str | None = None
    readers: str | None = None


_TYPES = {
    "bigquery": _Type(
        "etl_core.destination.bigquery.destination",
        "etl_core.destination.bigquery.options",
        "bigquery",
        "etl_core.destination.bigquery.readers",
    ),
    "duckdb": _Type(
        "etl_core.destination.duckdb.destination",
        "etl_core.destination.duckdb.location",
        "duckdb",
        "etl_core.destination.duckdb.readers",
    ),
    "memory": _Type("etl_core.destination.memory", "etl_core.destination.memory"),
    "null": _Type("etl_core.destination.null", "etl_core.destination.null"),
}


def destination_types() -> tuple[str, ...]:
    """The types `build_destination` knows, by name."""
    return tuple(sorted(_TYPES))


def check_options_of(type: str, options: Mapping[str, object]) -> None:
    """Raises ConfigError as `build_destination` would for these, but does not need the type's libraries."""
    importlib.import_module(_find(type).options).parse_options(options)


def build_destination(type: str, options: Mapping[str, object], pipeline: str) -> Destination:
    """The destination of `pipeline` that configuration describes. Nothing is opened or connected yet.

    `options` are the keys of the `destination` section but `type`. Raises ConfigError for an unknown type or option
    and for a missing library.
    """
    found = _find(type)
    try:
        module = importlib.import_module(found.module)
    except ModuleNotFoundError as error:
        if found.extra is None or (error.name or "").partition(".")[0] == "etl_core":
            raise
        raise ConfigError(
            f"destination type {type} needs the Python package {error.name}, which is not installed",
            field="destination.type",
            hint=f"run: pip install 'etl-dagster[{found.extra}]'",
        ) from None
    return cast(Destination, module.from_options(options, pipeline))


def reader_names(type: str, options: Mapping[str, object]) -> ReaderNames:
    """What queries call the tables of the destination. Opens nothing, and needs no library of the destination's.

    Raises ConfigError for an unknown type or option, and for a type that cannot be queried.
    """
    found = _find(type)
    if found.readers is None:
        raise ConfigError(
            f"destination type {type} keeps no tables that can be queried",
            field="destination.type",
            hint=f"use one of: {', '.join(name for name in destination_types() if _TYPES[name].readers)}",
        )
    return cast(ReaderNames, importlib.import_module(found.readers).reader_names(options))


def _find(type: str) -> _Type:
    if type not in _TYPES:
        raise ConfigError(
            f"there is no destination type {type!r}",
            field="destination.type",
            hint=f"use one of: {', '.join(destination_types())}",
        )
    return _TYPES[type]
