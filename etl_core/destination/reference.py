"""What the declarations of destinations say, for people and for editors: the reference page and the JSON Schema.

`make docs` writes both for the types of this package. A package of your own makes its own with the same functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from etl_core.destination.capabilities import CAPABILITIES, Capability, Described, describe_types
from etl_core.destination.declaration import DestinationType
from etl_core.destination.options import Kind, Option

_WRITTEN: Mapping[Kind, str] = {
    "text": "Text.",
    "path": "A file or folder of this machine. A relative one is in the folder of the configuration file.",
    "place": "A path, as above, or an address that begins with what it is an address of, such as `s3:`.",
    "integer": "A whole number.",
    "size": "Bytes, or a number with a unit: `1048576`, `64MiB` (2^20 each), `64MB` (10^6 each).",
    "duration": "Seconds, or a number with a unit: `1.5`, `500ms`, `2m`, `1h`.",
    "flag": "`true` or `false`.",
    "choice": "One of the words that are listed.",
    "mapping": "A mapping of text to text.",
}
VARIABLE = r"\$\{"
"""The value is an environment variable's, and is known when the configuration is read."""


def options_page(types: Mapping[str, DestinationType]) -> str:
    """The reference page, in Markdown."""
    lines = [
        "# Options of destinations",
        "",
        "Written by `make docs` from the declarations in `etl_core/destination/*/declaration.py`. Do not edit.",
        "",
        "`${NAME}` in a value is the environment variable NAME, for every kind. What is marked secret may hold a",
        "password: it is masked in what another package says while it builds its destination, and Dagster's",
        "`AnyDestinationResource` takes it from a variable alone.",
        "",
        "| Written as | |",
        "| --- | --- |",
        *(f"| {kind} | {meaning} |" for kind, meaning in _WRITTEN.items()),
    ]
    for name, declared in types.items():
        lines += ["", f"## `type: {name}`", ""]
        if declared.url is not None:
            lines += [f"As a URL: `destination: {declared.url.form}`", ""]
        lines += options_table(declared)
    return "\n".join(lines) + "\n"


def capabilities_table(types: Mapping[str, DestinationType]) -> list[str]:
    """What the types that can be queried can do, as the lines of a Markdown table."""
    described = [one for one in describe_types(types) if one.is_queried]
    rows = [
        f"| {capability.title} | {' | '.join(_answered(capability, one) for one in described)} |"
        for capability in CAPABILITIES
    ]
    return [
        f"| | {' | '.join(f'`{one.name}`' for one in described)} |",
        f"| --- |{' --- |' * len(described)}",
        f"| as a URL | {' | '.join('' if one.url is None else f'`{one.url}`' for one in described)} |",
        *rows,
    ]


def _answered(capability: Capability, one: Described) -> str:
    answer = one.answers[capability]
    if isinstance(answer, bool):
        return "yes" if answer else "–"
    return "?" if answer is None else f"`{answer}`" if capability.is_type else str(answer)


def options_table(declared: DestinationType) -> list[str]:
    """The options of one type, as the lines of a Markdown table."""
    if not declared.options:
        return ["No options."]
    rows = [
        f"| `{option.name}` | {_written(option)} | {_default(option)} | {_told(option)} |"
        for option in declared.options
    ]
    return ["| Option | Written as | Default | |", "| --- | --- | --- | --- |", *rows]


def _written(option: Option) -> str:
    return f"{option.kind}, secret" if option.secret else option.kind


def _default(option: Option) -> str:
    if option.required:
        return "required"
    if isinstance(option.default, bool):
        return f"`{str(option.default).lower()}`"
    return "none" if option.default is None else f"`{option.default}`"


def _told(option: Option) -> str:
    more = f" `{'`, `'.join(option.choices)}`." if option.choices else ""
    example = f" For example `{option.example}`." if option.example else ""
    return f"{option.help}{more}{example}".replace("|", "\\|")


def destination_schema(types: Mapping[str, DestinationType]) -> dict[str, Any]:
    """The JSON Schema of the section `destination`. Options of a type that is not among `types` may be anything."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "destination",
        "description": "Where a pipeline replicates to: its type and options, or a URL.",
        "type": ["object", "string"],
        "pattern": rf"^[A-Za-z][A-Za-z0-9+_-]*:|{VARIABLE}",
        "properties": {"type": {"description": f"{', '.join(types)}; a type that is installed; or module:name."}},
        "required": ["type"],
        "allOf": [_of_type(name, declared.options) for name, declared in types.items() if declared.options is not None],
    }


def _of_type(name: str, options: tuple[Option, ...]) -> dict[str, Any]:
    return {
        "if": {"properties": {"type": {"const": name}}, "required": ["type"]},
        "then": {
            "properties": {"type": True, **{option.name: _schema(option) for option in options}},
            "required": [option.name for option in options if option.required],
            "additionalProperties": False,
        },
    }


def _schema(option: Option) -> dict[str, Any]:
    described: dict[str, Any] = {"description": option.help}
    if option.default is not None:
        described["default"] = option.default
    if option.example is not None:
        described["examples"] = [option.example]
    return described | SHAPES.get(
        option.kind, {"type": "string", "anyOf": [{"enum": [*option.choices]}, {"pattern": VARIABLE}]}
    )


SHAPES: Mapping[Kind, dict[str, Any]] = {
    "text": {"type": "string", "minLength": 1},
    "path": {"type": "string", "minLength": 1},
    "place": {"type": "string", "minLength": 1},
    "integer": {"type": ["integer", "string"], "pattern": rf"^[0-9]+$|{VARIABLE}"},
    "size": {"type": ["number", "string"], "pattern": rf"^\s*[0-9.]+\s*([kKmMgG][iI]?)?[bB]?\s*$|{VARIABLE}"},
    "duration": {"type": ["number", "string"], "pattern": rf"^\s*[0-9.]+\s*(ms|s|m|min|h)?\s*$|{VARIABLE}"},
    "flag": {"type": ["boolean", "string"], "pattern": rf"^(true|false)$|{VARIABLE}"},
    "mapping": {"type": "object", "additionalProperties": {"type": "string"}},
}
"""`pattern` says nothing of numbers and truth values. What a choice may be stands in its option."""
