"""The options of a destination: declared once, read from configuration by that declaration, refused by name.

The reference page, the JSON Schema (`etl_core.destination.reference`) and Dagster's forms are made of the same
declaration.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.parse import quote

from etl_core.config_values import (
    as_flag,
    as_integer,
    as_quantity,
    as_text,
    config_error,
    did_you_mean,
    parse_duration,
    parse_size,
    unknown_key,
)
from etl_core.errors import ConfigError

Options: TypeAlias = Mapping[str, Any]
"""Read options by name. Every declared one is there, None where it was neither given nor has a default."""

Kind: TypeAlias = Literal["text", "path", "place", "integer", "size", "duration", "flag", "choice", "mapping"]
"""What an option is written as, and what it is read as:

text and choice str, path Path (absolute, if the configuration is a file), place str (a path, made absolute so, or an
address), integer int, size int (bytes), duration float (seconds), flag bool, mapping dict of str to str.
"""

_NAME = re.compile("[a-z][a-z0-9_]*")
_PREFIX = re.compile(r"(?P<prefix>[A-Za-z][A-Za-z0-9_+.-]+|):")
"""`md:`, `s3:`, `ducklake:`, `:memory:`. One letter is a drive of Windows."""
_MASK = "***"


@dataclass(frozen=True, slots=True)
class Option:
    """One option. `help` is whole sentences, for the reference page and for Dagster's forms.

    `default` is as a person writes it: `10m`, not 600.0. `choices` are of kind choice. A `secret` is text that may
    hold a password: it is masked in what another package says while it builds its destination, and
    AnyDestinationResource takes it from a variable alone.
    """

    name: str
    help: str
    _: KW_ONLY
    kind: Kind = "text"
    required: bool = False
    default: str | int | float | bool | None = None
    choices: tuple[str, ...] = ()
    secret: bool = False
    example: str | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name == "type":
            raise ValueError(f"{self.name!r} cannot name an option: write a-z, 0-9 and _, but not type")
        if self.required and self.default is not None:
            raise ValueError(f"option {self.name} is required, so it has no default")
        if (self.kind == "choice") != bool(self.choices):
            raise ValueError(f"option {self.name}: choices belong to kind choice, and kind choice needs some")
        if self.secret and self.kind != "text":
            raise ValueError(f"option {self.name}: a secret is text")
        if self.default is not None:
            self.read(self.default, None)

    def read(self, value: object, folder: Path | None) -> Any:
        """The value as its kind says; a relative path is in `folder`. Raises ConfigError for one of another kind."""
        where = f"destination.{self.name}"
        match self.kind:
            case "text":
                return _not_empty(where, value)
            case "path":
                return _path(where, value, folder)
            case "place":
                return _place(where, value, folder)
            case "integer":
                return as_integer(where, value)
            case "size":
                return as_quantity(where, parse_size, value)
            case "duration":
                return as_quantity(where, parse_duration, value)
            case "flag":
                return as_flag(where, value)
            case "choice":
                return self._choice(where, value)
            case "mapping":
                return self._mapping(where, value)

    def _choice(self, where: str, value: object) -> str:
        if value not in self.choices:
            given = f", not {value!r}" if isinstance(value, str) else ""
            raise config_error(where, f"must be one of {', '.join(self.choices)}{given}", hint=self._hint(value))
        return str(value)

    def _hint(self, value: object) -> str:
        return did_you_mean(str(value), self.choices) or f"write for example: {self.name}: {self.choices[0]}"

    def _mapping(self, where: str, value: object) -> dict[str, str]:
        if not isinstance(value, Mapping) or not all(isinstance(text, str) for pair in value.items() for text in pair):
            raise config_error(
                where,
                "must be a mapping of text to text",
                hint=f"write for example: {self.name}: {self.example or '{key: value}'}",
            )
        return dict(value)


def read_options(
    type: str,
    declared: Collection[Option],
    given: Mapping[str, object],
    folder: Path | None = None,
    elsewhere: Collection[str] = (),
) -> dict[str, Any]:
    """All declared options by name, as `Options` says; None also for those that are given `elsewhere`.

    Raises ConfigError, with the field `destination.<name>`, for an option that is unknown, missing or of another kind.
    Reading what was read changes nothing.
    """
    names = [option.name for option in declared]
    for name in (*given, *elsewhere):
        if name not in names:
            rest = f"; the options of {type} are: {', '.join(names)}" if names else "; it has none"
            error = unknown_key(f"destination.{name}", names, hint=f"remove it{rest}")
            error.args = (f"destination type {type} has no option {name!r}",)
            raise error
    known = {option: given.get(option.name, option.default) for option in declared if option.name not in elsewhere}
    for option, value in known.items():
        if option.required and value is None:
            raise ConfigError(
                f"destination type {type} needs the option {option.name!r}",
                field=f"destination.{option.name}",
                hint=f"write for example: destination: {{type: {type}, {option.name}: {option.example or '…'}}}",
            )
    read = {option.name: option.read(value, folder) for option, value in known.items() if value is not None}
    return {option.name: {} if option.kind == "mapping" else None for option in declared} | read


def _not_empty(where: str, value: object) -> str:
    text = as_text(where, value)
    if not text:
        raise config_error(where, "is empty", hint="give it a value, or remove the line")
    return text


def _path(where: str, value: object, folder: Path | None) -> Path:
    if isinstance(value, Path):
        return value if folder is None else folder / value
    text = _not_empty(where, value)
    found = _PREFIX.match(text)
    if found is not None:
        raise config_error(  # the rest may hold a token
            where,
            f"must be a file or folder of this machine, and begins with {found[0]}",
            hint=f"write its path; of a file whose name begins so ./{found[0]}…",
        )
    return Path(text) if folder is None else folder / text


def _place(where: str, value: object, folder: Path | None) -> str:
    text = _not_empty(where, str(value) if isinstance(value, Path) else value)
    found = _PREFIX.match(text)
    if folder is None or (found is not None and found["prefix"] != "sqlite"):
        return text
    prefix = "" if found is None else found[0]
    return f"{prefix}{folder / text.removeprefix(prefix)}"


def masked(text: str, declared: Collection[Option] | None, given: Mapping[str, object]) -> str:
    """`text`, which another program wrote, without the values of secret options; without any if none are declared."""
    secrets = None if declared is None else {option.name for option in declared if option.secret}
    hidden = {shown for name, value in given.items() if secrets is None or name in secrets for shown in _texts(value)}
    for value in sorted(hidden, key=len, reverse=True):
        text = text.replace(value, _MASK)
    return text


def _texts(value: object) -> Iterator[str]:
    """What a value may look like where it is repeated."""
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, str) and value:
        yield from (value, repr(value)[1:-1], quote(value), quote(value, safe=""))
