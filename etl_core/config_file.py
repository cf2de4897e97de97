"""Reads a pipeline's configuration from YAML; every error names the file's line and the dotted field.

    etl.yaml:7: source.publication: must be text, not a number

Relative paths in the file, such as a DuckDB file's, are relative to the file's folder.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

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
    parse_duration,
    parse_size,
    unknown_key,
    wrong_kind,
)
from etl_core.config_yaml import read_document
from etl_core.errors import ConfigError
from etl_core.identifiers import check_pipeline_name
from etl_core.policies import POLICY_FIELDS, TablePolicy, read_policy
from etl_core.silence import SILENCE
from etl_core.table_pattern import TableSelection, read_selection
from etl_core.type_options import read_types
from etl_core.write_mode import WriteMode

_T = TypeVar("_T")

SCHEMA_FILE = Path(__file__).with_name("etl.schema.json")
"""The JSON Schema of the file, for editors: written by `make docs` of `etl_core.config_schema`."""

_REMOVED = {"unknown_types_to_bytes": "it was removed: true is types: {unknown: bytes}, false types: {unknown: refuse}"}
"""What to write for fields that there were."""


def load_config(path: Path | str) -> PipelineConfig:
    """Reads and checks the file at `path`. Raises ConfigError, with `field` and `line` where there are."""
    document = read_document(path)
    try:
        if document.faults:
            raise document.faults[0]
        return build_config(document.values, document.folder)
    except ConfigError as error:
        located = document.located(error)
    raise located


def locate(error: ConfigError, path: Path | str) -> ConfigError:
    """An error about a field that was found only when the configuration was used, as `load_config` would tell it."""
    if error.field is None or error.line is not None:
        return error
    try:
        return read_document(path).located(error)
    except ConfigError:
        return error  # the file is no longer what was loaded


_PUBLICATION = "name the publication to be read, such as shop_pub; if it does not exist it is created for source.tables"


class _Section:
    """A mapping of the file: each key is taken once, and what is left at the end is unknown."""

    def __init__(self, field: str, values: Mapping[str, object]) -> None:
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
            if slip:
                raise unknown_key(self.where(slip[0]), [key])
            raise config_error(self.where(key), "is missing", hint=hint)
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
            where = self.where(key)
            if where in _REMOVED:
                raise config_error(where, "is unknown", hint=_REMOVED[where])
            raise unknown_key(where, self._known, hint=f"known here: {', '.join(self._known)}")


def build_config(values: Mapping[str, object], folder: Path) -> PipelineConfig:
    """The configuration that a file in `folder` with these values has. Raises ConfigError with a field."""
    root = _Section("", values)
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
