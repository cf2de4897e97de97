"""Reads a pipeline's configuration from YAML; every error names the file's line and the dotted field.

    etl.yaml:7: source.publication: must be text, not a number

`${NAME}` in a value is the environment variable NAME (`$${` is a literal `${`). Relative paths in the file, such
as a DuckDB file's, are relative to the file's folder. A YAML library's own words may quote the text around an
error, where a password can stand: they are not repeated beyond single characters.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import yaml

from etl_core.config import DestinationConfig, PipelineConfig, SourceConfig, StateConfig
from etl_core.config_paths import absolute_dsn, absolute_keyword, absolute_url
from etl_core.config_tables import TableSettings, read_tables, read_write_mode
from etl_core.config_telemetry import ListenAddress, TelemetryConfig
from etl_core.config_values import (
    ALL_PUBLISHED,
    BatchConfig,
    CopyConfig,
    as_flag,
    as_integer,
    as_quantity,
    as_text,
    config_error,
    did_you_mean,
    parse_duration,
    parse_size,
    wrong_kind,
)
from etl_core.errors import ConfigError
from etl_core.identifiers import check_pipeline_name
from etl_core.policies import POLICY_FIELDS, TablePolicy, read_policy
from etl_core.silence import SILENCE
from etl_core.table_pattern import TableSelection, read_selection
from etl_core.type_options import read_types
from etl_core.write_mode import WriteMode

_T = TypeVar("_T")

_VARIABLE = re.compile(r"\$(\$)?\{([^}]*)\}")
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_QUOTED = re.compile(r"'(?!<)[^']{2,}'")
_TAG = "tag:yaml.org,2002:"
_NESTED = ("tables.", "types.")
"""What is below has no secret in it, so that every key may be named; `null` is the name of a transform."""
_WORD_NULL = ".out_of_range"
"""In a field with this, `null` is a word."""

_REMOVED = {"unknown_types_to_bytes": "it was removed: true is types: {unknown: bytes}, false types: {unknown: refuse}"}
"""What to write for fields that there were."""


def load_config(path: Path | str) -> PipelineConfig:
    """Reads and checks the file at `path`. Raises ConfigError, with `field` and `line` where there are."""
    path = Path(path)
    text = _read(path)
    lines: dict[str, int] = {}
    try:
        return _pipeline(_Section("", _parse(text, lines)), path.absolute().parent)
    except ConfigError as error:
        located = _located(error, path, lines)
    raise located


def locate(error: ConfigError, path: Path | str) -> ConfigError:
    """An error about a field that was found only when the configuration was used, as `load_config` would tell it."""
    if error.field is None or error.line is not None:
        return error
    path = Path(path)
    lines: dict[str, int] = {}
    try:
        _parse(_read(path), lines)
    except ConfigError:
        return error  # the file is no longer what was loaded
    return _located(error, path, lines)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file", hint="name the configuration file with -c") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _located(error: ConfigError, path: Path, lines: dict[str, int]) -> ConfigError:
    """`error` with the line of its field, or of the nearest section around it that is in the file."""
    message, line = str(error), error.line
    if error.field is not None:
        if not message.startswith(f"{error.field}: "):
            message = f"{error.field}: {message}"
        around = [
            known for known in lines if error.field == known or error.field.startswith((f"{known}.", f"{known}["))
        ]
        line = line or lines.get(max(around, key=len, default=""))
    return ConfigError(f"{path}:{line or 1}: {message}", field=error.field, line=line or 1, hint=error.hint)


# From YAML to plain values


def _parse(text: str, lines: dict[str, int]) -> dict[str, object]:
    """The document as dicts, lists and scalars; the line of each dotted field goes into `lines`."""
    problem = None
    try:
        loader = yaml.SafeLoader(text)
        _refuse_aliases(text)
        node = loader.get_single_node()
    except yaml.YAMLError as error:
        problem = _syntax_error(error, text)
    if problem is not None:
        raise problem
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError("the file must hold a mapping that begins with pipeline:", line=1)
    return _mapping(loader, node, "", lines)


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


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode, field: str, lines: dict[str, int]) -> dict[str, object]:
    values: dict[str, object] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        is_null = key_node.tag == f"{_TAG}null" and key_node.value == "null" and field.startswith(_NESTED)
        if not isinstance(key_node, yaml.ScalarNode) or (key_node.tag != f"{_TAG}str" and not is_null):
            raise ConfigError(f"{field}: a key must be text" if field else "a key must be text", line=line)
        key = key_node.value
        # Within a field's value a key may be part of an unquoted password: {hunter2}. Errors name the field only.
        is_value = "." in field and not field.startswith(_NESTED)
        where = field if is_value else f"{field}.{key}" if field else key
        if key in values:
            error = config_error(where, "has a key twice" if where == field else f"stands in line {lines[where]} too")
            error.line = line
            raise error
        lines.setdefault(where, line)
        values[key] = _value(loader, value_node, where, lines)
    return values


def _value(loader: yaml.SafeLoader, node: yaml.Node, field: str, lines: dict[str, int]) -> object:
    if isinstance(node, yaml.MappingNode):
        return _mapping(loader, node, field, lines)
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, item in enumerate(node.value):
            where = f"{field}[{index}]"
            lines[where] = item.start_mark.line + 1
            items.append(_value(loader, item, where, lines))
        return items
    return _scalar(loader, node, field)


def _scalar(loader: yaml.SafeLoader, node: yaml.Node, field: str) -> object:
    kind = node.tag.removeprefix(_TAG)
    if kind in ("str", "timestamp"):
        return _expand(str(node.value), field)
    if kind not in ("int", "float", "bool", "null"):
        raise config_error(
            field, "has a YAML tag that is not supported", hint="put text that begins with ! into quotes"
        )
    try:
        value: object = loader.construct_object(node)
    except (ValueError, KeyError, IndexError):
        raise config_error(field, "is not what its YAML tag says") from None
    if value is None and node.value == "null" and field.startswith(_NESTED) and _WORD_NULL in field:
        return "null"
    if value is None:
        raise config_error(field, "has no value", hint="give it one, or remove the line")
    return value


def _expand(text: str, field: str) -> str:
    """`text` with the values of the environment variables it names."""

    def value(match: re.Match[str]) -> str:
        if match[1]:
            return match[0][1:]
        if not _VARIABLE_NAME.fullmatch(match[2]):
            raise config_error(
                field, "has ${…} without the name of an environment variable", hint="write $${ for a literal ${"
            )
        if match[2] not in os.environ:
            raise config_error(
                field, f"the environment variable {match[2]} is not set", hint=f"export {match[2]}=… first"
            )
        return os.environ[match[2]]

    return _VARIABLE.sub(value, text)


# From plain values to the configuration

_PUBLICATION = "name the publication to be read, such as shop_pub; if it does not exist it is created for source.tables"


class _Section:
    """A mapping of the file: each key is taken once, and what is left at the end is unknown."""

    def __init__(self, field: str, values: dict[str, object]) -> None:
        self._field = field
        self._left = dict(values)
        self._known: list[str] = []

    def where(self, key: str) -> str:
        return f"{self._field}.{key}" if self._field else key

    def take(self, key: str) -> object | None:
        self._known.append(key)
        return self._left.pop(key, None)

    def rest(self) -> dict[str, object]:
        left, self._left = self._left, {}
        return left

    def required(self, key: str, value: _T | None, hint: str | None = None) -> _T:
        if value is None:
            slip = difflib.get_close_matches(key, self._left, n=1)
            raise config_error(self.where(key), "is missing", hint=f"did you mean it by {slip[0]}?" if slip else hint)
        return value

    def text(self, key: str) -> str | None:
        value = self.take(key)
        return None if value is None else as_text(self.where(key), value)

    def integer(self, key: str, default: _T) -> int | _T:
        value = self.take(key)
        return default if value is None else as_integer(self.where(key), value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.take(key)
        return default if value is None else as_flag(self.where(key), value)

    def quantity(self, key: str, parse: Callable[[str], _T], default: _T) -> _T:
        """A number, or text with a unit."""
        value = self.take(key)
        return default if value is None else as_quantity(self.where(key), parse, value)

    def section(self, key: str) -> _Section | None:
        value = self.take(key)
        if value is not None and not isinstance(value, dict):
            raise wrong_kind(self.where(key), "a mapping", value)
        return None if value is None else _Section(self.where(key), value)

    def texts(self, key: str) -> list[tuple[str, str]] | None:
        """A list of texts, each with its dotted field."""
        value = self.take(key)
        if value is None:
            return None
        if not isinstance(value, list):
            raise wrong_kind(self.where(key), "a list", value)
        wheres = [f"{self.where(key)}[{index}]" for index in range(len(value))]
        return [(where, as_text(where, item)) for where, item in zip(wheres, value, strict=True)]

    def finish(self) -> None:
        for key in self._left:
            raise config_error(
                self.where(key),
                "is unknown",
                hint=_REMOVED.get(self.where(key))
                or did_you_mean(key, self._known)
                or f"known here: {', '.join(self._known)}",
            )


def _pipeline(root: _Section, folder: Path) -> PipelineConfig:
    pipeline = check_pipeline_name(root.required("pipeline", root.text("pipeline")))
    source, destination = root.section("source"), _destination(root, folder)
    state, batch, copy = root.section("state"), root.section("batch"), root.section("copy")
    allow_append_only = root.flag("allow_append_only", False)
    tables, hash_key, write_mode = root.section("tables"), root.text("hash_key"), root.text("write_mode")
    policy = read_policy("", {name: root.take(name) for name in POLICY_FIELDS})
    types, metrics, traces = root.section("types"), root.section("metrics"), root.section("traces")
    root.finish()
    return PipelineConfig(
        pipeline=pipeline,
        source=_source(root.required("source", source), folder),
        destination=root.required("destination", destination),
        state=_state(state, pipeline, folder),
        batch=_batch(batch) if batch else BatchConfig(),
        copy=_copy(copy) if copy else CopyConfig(),
        allow_append_only=allow_append_only,
        tables=() if tables is None else _tables(tables),
        hash_key=hash_key,
        write_mode=WriteMode.MIRROR if write_mode is None else read_write_mode("write_mode", write_mode),
        policy=policy.over(TablePolicy()),
        types={} if types is None else read_types("types", types.rest()),
        telemetry=_telemetry(metrics, traces),
    )


def _tables(section: _Section) -> tuple[TableSettings, ...]:
    return read_tables("tables", section.rest())


def _selection(where: str, tables: list[tuple[str, str]]) -> TableSelection:
    return read_selection(where, [text for _, text in tables], instead=ALL_PUBLISHED)


def _source(section: _Section, folder: Path) -> SourceConfig:
    publication = section.required("publication", section.text("publication"), _PUBLICATION)
    password_file, tables = section.text("password_file"), section.texts("tables")
    source = SourceConfig(
        publication=publication,
        dsn=section.text("dsn"),
        host=section.text("host"),
        port=section.integer("port", None),
        database=section.text("database"),
        user=section.text("user"),
        password=section.text("password"),
        password_file=None if password_file is None else folder / password_file,
        password_command=_command(section, "password_command", folder),
        silence_timeout=section.quantity("silence_timeout", parse_duration, SILENCE),
        tables=None if tables is None else _selection(section.where("tables"), tables).entries,
        keywords={
            key: absolute_keyword(key, _keyword_value(section.where(key), value), folder)
            for key, value in section.rest().items()
        },
    )
    return source if source.dsn is None else replace(source, dsn=absolute_dsn(source.dsn, folder))


def _command(section: _Section, key: str, folder: Path) -> tuple[str, ...] | None:
    """A list of arguments, or text that is split as a shell would split it, and nothing else of a shell."""
    value = section.take(key)
    if value is None:
        return None
    if isinstance(value, str):
        try:
            arguments = shlex.split(value)
        except ValueError:
            raise config_error(section.where(key), "has a quote that is not closed") from None
    elif isinstance(value, list):
        arguments = [as_text(f"{section.where(key)}[{index}]", item) for index, item in enumerate(value)]
    else:
        raise wrong_kind(section.where(key), "text or a list", value)
    if arguments and "/" in arguments[0]:
        arguments[0] = str(folder / arguments[0])
    return tuple(arguments)


def _keyword_value(where: str, value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return as_text(where, value)


def _destination(root: _Section, folder: Path) -> DestinationConfig | None:
    given = root.take("destination")
    if given is None:
        return None
    if isinstance(given, str):
        return DestinationConfig.from_url(given, folder)
    if not isinstance(given, dict):
        raise wrong_kind("destination", "a mapping or a URL", given)
    section = _Section("destination", given)
    return DestinationConfig(section.required("type", section.text("type")), section.rest(), folder)


def _state(section: _Section | None, pipeline: str, folder: Path) -> StateConfig:
    if section is None:
        from sqlalchemy import URL  # slow to import: a mistake further up is told without it

        default = URL.create("sqlite", database=str(folder / f"{pipeline}.state.db"))
        return StateConfig(default.render_as_string(hide_password=False))
    url = section.required("url", section.text("url"))
    section.finish()
    return StateConfig(absolute_url(url, folder))


def _batch(section: _Section) -> BatchConfig:
    default = BatchConfig()
    batch = BatchConfig(
        max_rows=section.integer("max_rows", default.max_rows),
        max_bytes=section.quantity("max_bytes", parse_size, default.max_bytes),
        max_age=section.quantity("max_age", parse_duration, default.max_age),
        kept_wal=section.quantity("kept_wal", parse_size, default.kept_wal),
    )
    section.finish()
    return batch


def _copy(section: _Section) -> CopyConfig:
    default = CopyConfig()
    copy = CopyConfig(
        workers=section.integer("workers", default.workers),
        connections_per_table=section.integer("connections_per_table", default.connections_per_table),
    )
    section.finish()
    return copy


def _telemetry(metrics: _Section | None, traces: _Section | None) -> TelemetryConfig:
    prometheus, opentelemetry = None, False
    if metrics is not None:
        prometheus = metrics.required("prometheus", metrics.text("prometheus"), 'write prometheus: ":9187"')
        metrics.finish()
    if traces is not None:
        opentelemetry = traces.flag("opentelemetry", False)
        traces.finish()
    address = None if prometheus is None else ListenAddress.parse("metrics.prometheus", prometheus)
    return TelemetryConfig(address, opentelemetry)
