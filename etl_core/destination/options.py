"""Reads the options of a destination from configuration, refusing what it does not know by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from etl_core.errors import ConfigError


def check_options(kind: str, options: Mapping[str, object], known: tuple[str, ...]) -> None:
    """Raises ConfigError with the field `destination.<key>` for an option not in `known`."""
    for key in options:
        if key not in known:
            listed = ", ".join(known) if known else "none"
            raise ConfigError(
                f"destination type {kind} has no option {key!r}",
                field=f"destination.{key}",
                hint=f"remove it; the options of {kind} are: {listed}",
            )


def required_path(kind: str, options: Mapping[str, object], key: str) -> Path:
    """The option `key` as a path. Raises ConfigError if it is missing or no text."""
    value = options.get(key)
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value:
        raise ConfigError(
            f"destination type {kind} needs {key!r}, the name of a file",
            field=f"destination.{key}",
            hint=f"write for example: destination: {{type: {kind}, {key}: warehouse.{kind}}}",
        )
    return Path(value)
