"""The one list of destinations: what each type in the configuration is called and where it lives.

A module is imported only when its type is asked for, so that nobody needs the libraries of the others. It has a
function `from_options(options, pipeline) -> Destination` that checks its options.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import cast

from etl_core.destination.protocol import Destination
from etl_core.errors import ConfigError

# type: (module, the extra of this package that installs its libraries, or None)
_TYPES: dict[str, tuple[str, str | None]] = {
    "bigquery": ("etl_core.destination.bigquery.destination", "bigquery"),
    "duckdb": ("etl_core.destination.duckdb.destination", "duckdb"),
    "memory": ("etl_core.destination.memory", None),
    "null": ("etl_core.destination.null", None),
}


def destination_types() -> tuple[str, ...]:
    """The types `build_destination` knows, by name."""
    return tuple(sorted(_TYPES))


def build_destination(type: str, options: Mapping[str, object], pipeline: str) -> Destination:
    """The destination of `pipeline` that configuration describes. Nothing is opened or connected yet.

    `options` are the keys of the `destination` section but `type`. Raises ConfigError for an unknown type or option
    and for a missing library.
    """
    if type not in _TYPES:
        raise ConfigError(
            f"there is no destination type {type!r}",
            field="destination.type",
            hint=f"use one of: {', '.join(destination_types())}",
        )
    module_name, extra = _TYPES[type]
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if extra is None or (error.name or "").partition(".")[0] == "etl_core":
            raise
        raise ConfigError(
            f"destination type {type} needs the Python package {error.name}, which is not installed",
            field="destination.type",
            hint=f"run: pip install 'etl-dagster[{extra}]'",
        ) from None
    return cast(Destination, module.from_options(options, pipeline))
