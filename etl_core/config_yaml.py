"""From a YAML file to plain values: text with its variables, lists and mappings, and the line of each dotted field.

`${NAME}` in a value is the environment variable NAME (`$${` is a literal `${`). A YAML library's own words may quote
the text around an error, where a password can stand: they are not repeated beyond single characters.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from etl_core.config_values import config_error
from etl_core.errors import ConfigError

_VARIABLE = re.compile(r"\$(\$)?\{([^}]*)\}")
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_QUOTED = re.compile(r"'(?!<)[^']{2,}'")
_TAG = "tag:yaml.org,2002:"
_NESTED = ("tables.", "types.")
"""What is below has no secret in it, so that every key may be named; `null` is the name of a transform."""
_WORD_NULL = ".out_of_range"
"""In a field with this, `null` is a word."""


@dataclass(slots=True)
class Document:
    """A file's values, without those that are at fault: `faults` has an error for each, in the file's order."""

    path: Path
    values: dict[str, object] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    faults: list[ConfigError] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """The file's folder, to which relative paths in it belong."""
        return self.path.absolute().parent

    def located(self, error: ConfigError) -> ConfigError:
        """`error` with the line of its field, or of the nearest section around it that is in the file."""
        message, line = str(error), error.line
        if error.field is not None:
            if not message.startswith(f"{error.field}: "):
                message = f"{error.field}: {message}"
            around = [
                known
                for known in self.lines
                if error.field == known or error.field.startswith((f"{known}.", f"{known}["))
            ]
            line = line or self.lines.get(max(around, key=len, default=""))
        return ConfigError(f"{self.path}:{line or 1}: {message}", field=error.field, line=line or 1, hint=error.hint)


def read_document(path: Path | str, environment: Mapping[str, str] = os.environ) -> Document:
    """Reads the file at `path`; variables are those of `environment`.

    Raises ConfigError, located, for a file that cannot be read or is not YAML.
    """
    document = Document(Path(path))
    text = _read(document.path)
    problem: ConfigError | None = None
    try:
        loader = yaml.SafeLoader(text)
        _refuse_aliases(text)
        node = loader.get_single_node()
        if isinstance(node, yaml.MappingNode):
            document.values = _Reader(loader, document, environment).mapping(node, "")
            return document
        problem = ConfigError("the file must hold a mapping that begins with pipeline:", line=1)
    except yaml.YAMLError as error:
        problem = _syntax_error(error, text)
    except ConfigError as error:
        problem = error
    raise document.located(problem)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file", hint="name the configuration file with -c") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _refuse_aliases(text: str) -> None:
    """Nothing here needs them, and an unquoted password that begins with * or & reads as one."""
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ConfigError(
                "YAML aliases are not supported",
                line=event.start_mark.line + 1 if event.start_mark else None,
                hint="put text that begins with * or & into quotes",
            )


def _syntax_error(error: yaml.YAMLError, text: str) -> ConfigError:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        line = error.problem_mark.line + 1
        problem = _QUOTED.sub("…", error.problem or "")
    else:
        line = text.count("\n", 0, getattr(error, "position", 0)) + 1
        problem = "a character that YAML does not allow"
    source_line = text.split("\n")[line - 1] if line <= text.count("\n") + 1 else ""
    return ConfigError(
        f"not valid YAML: {problem}",
        line=line,
        hint="inside { } and [ ] put a value with ${…} into quotes" if "${" in source_line else None,
    )


class _Reader:
    """Reads nodes into values. What is at fault is noted and left out, and reading goes on."""

    def __init__(self, loader: yaml.SafeLoader, document: Document, environment: Mapping[str, str]) -> None:
        self._loader = loader
        self._lines = document.lines
        self._faults = document.faults
        self._environment = environment

    def mapping(self, node: yaml.MappingNode, field: str) -> dict[str, object]:
        values: dict[str, object] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            is_null = key_node.tag == f"{_TAG}null" and key_node.value == "null" and field.startswith(_NESTED)
            if not isinstance(key_node, yaml.ScalarNode) or (key_node.tag != f"{_TAG}str" and not is_null):
                what = "a key must be text"
                self._faults.append(ConfigError(f"{field}: {what}" if field else what, line=line))
                continue
            key = key_node.value
            # Within a field's value a key may be part of an unquoted password: {hunter2}. Errors name the field only.
            is_value = "." in field and not field.startswith(_NESTED)
            where = field if is_value else f"{field}.{key}" if field else key
            if key in values:
                what = "has a key twice" if where == field else f"stands in line {self._lines[where]} too"
                error = config_error(where, what)
                error.line = line
                self._faults.append(error)
                continue
            self._lines.setdefault(where, line)
            self._add(values, key, value_node, where)
        return values

    def _add(self, values: dict[str, object], key: str, node: yaml.Node, where: str) -> None:
        try:
            values[key] = self._value(node, where)
        except ConfigError as error:
            self._faults.append(error)

    def _value(self, node: yaml.Node, field: str) -> object:
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, field)
        if isinstance(node, yaml.SequenceNode):
            return self._sequence(node, field)
        return self._scalar(node, field)

    def _sequence(self, node: yaml.SequenceNode, field: str) -> list[object]:
        """Left out as a whole where an item is at fault: the others keep their numbers."""
        items: list[object] = []
        problems: list[ConfigError] = []
        for index, item in enumerate(node.value):
            where = f"{field}[{index}]"
            self._lines[where] = item.start_mark.line + 1
            try:
                items.append(self._value(item, where))
            except ConfigError as error:
                problems.append(error)
        if problems:
            self._faults += problems[:-1]
            raise problems[-1]
        return items

    def _scalar(self, node: yaml.Node, field: str) -> object:
        kind = node.tag.removeprefix(_TAG)
        if kind in ("str", "timestamp"):
            return self._expand(str(node.value), field)
        if kind not in ("int", "float", "bool", "null"):
            raise config_error(
                field, "has a YAML tag that is not supported", hint="put text that begins with ! into quotes"
            )
        try:
            value: object = self._loader.construct_object(node)
        except (ValueError, KeyError, IndexError):
            raise config_error(field, "is not what its YAML tag says") from None
        if value is None and node.value == "null" and field.startswith(_NESTED) and _WORD_NULL in field:
            return "null"
        if value is None:
            raise config_error(field, "has no value", hint="give it one, or remove the line")
        return value

    def _expand(self, text: str, field: str) -> str:
        """`text` with the values of the environment variables it names."""

        def value(match: re.Match[str]) -> str:
            if match[1]:
                return match[0][1:]
            if not _VARIABLE_NAME.fullmatch(match[2]):
                raise config_error(
                    field, "has ${…} without the name of an environment variable", hint="write $${ for a literal ${"
                )
            if match[2] not in self._environment:
                raise config_error(
                    field, f"the environment variable {match[2]} is not set", hint=f"export {match[2]}=… first"
                )
            return self._environment[match[2]]

        return _VARIABLE.sub(value, text)
