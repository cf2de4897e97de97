"""A destination as one URL, such as `duckdb:shop.duckdb`: the scheme names the type, which reads the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from etl_core.config_values import config_error


@dataclass(frozen=True, slots=True)
class DestinationUrl:
    """How a type is written as a URL. The scheme is the type's name, or another one that the registry knows.

    `form` is for people, with a word in capitals for each part: `duckdb:PATH`. `read` is given the whole URL and
    returns options as a configuration would have them; it raises ConfigError, in which the URL, which may hold a
    password, is not repeated.
    """

    form: str
    read: Callable[[str], Mapping[str, object]]


def after_scheme(url: str, form: str) -> str:
    """What stands behind the scheme. Raises ConfigError where nothing does, or `//` of a URL with a host."""
    rest = url.partition(":")[2]
    if not rest or rest.startswith("//"):
        raise config_error("destination", "is not a URL of its type", hint=f"write {form}")
    return rest
