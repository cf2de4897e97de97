"""The JSON Schema of a configuration file, made of the code that reads one: for editors, as they are typed into.

What depends on two fields, on an environment variable or on another package is left to `etl config check`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, TypeAlias

from psycopg import pq

from etl_core.config import NOT_KEYWORDS, PipelineConfig, SourceConfig
from etl_core.config_tables import TableSettings
from etl_core.config_values import BatchConfig, CopyConfig
from etl_core.destination.declaration import DestinationType
from etl_core.destination.reference import SHAPES, VARIABLE, destination_schema
from etl_core.policies import POLICY_FIELDS, Recopy, SchemaChanges
from etl_core.shape.transforms import registered_transforms
from etl_core.type_options import ARRAYS, DEFAULTS, NUMERIC, words_of
from etl_core.write_mode import WriteMode

Schema: TypeAlias = dict[str, Any]

_TEXT: Schema = {"type": "string", "minLength": 1}
_TEXTS: Schema = {"type": "array", "items": _TEXT, "minItems": 1}
_TYPE_PATTERNS = {NUMERIC: r"^[Dd][Ee][Cc][Ii][Mm][Aa][Ll]\s*\(.*\)$", ARRAYS: r"^[Ll][Ii][Ss][Tt]\s*\(.*\)$"}
"""Of words with numbers in them."""


def configuration_schema(types: Mapping[str, DestinationType]) -> Schema:
    """The schema of the whole file, with the options of these destination types."""
    destination = destination_schema(types)
    del destination["$schema"]
    fields: dict[str, Schema] = {
        "pipeline": _text(
            "The pipeline's name: up to 43 lower-case letters, digits and _. It names the replication slot.",
            pattern=rf"^[a-z][a-z0-9_]{{0,42}}$|{VARIABLE}",
        ),
        "source": _source(),
        "destination": destination,
        "state": _section(
            "What has to survive a restart. The default is a SQLite file next to this one.",
            {"url": _text("sqlite:///shop.state.db, or postgresql://user@host/database.", examples=["sqlite:///x.db"])},
            required=["url"],
        ),
        "batch": _section(
            "When a batch of changes is written: at whichever limit is met first.",
            _described(
                BatchConfig,
                max_rows=("integer", "Row changes of a batch."),
                max_bytes=("size", "Bytes of a batch, as PostgreSQL sends them."),
                max_age=("duration", "Time since the first change of a batch arrived."),
                kept_wal=("size", "WAL that one stopped table may keep on the source; 0 keeps none."),
            ),
        ),
        "copy": _section(
            "The initial copy.",
            _described(
                CopyConfig,
                workers=("integer", "Tables that are copied at the same time."),
                connections_per_table=("integer", "Connections that read one table."),
            ),
        ),
        "allow_append_only": _shape(
            "flag", "Whether tables without a replica identity may be published, inserts alone."
        ),
        "tables": {
            "description": "Settings by table or pattern; of two that match a table, the later decides.",
            "type": "object",
            "additionalProperties": _table(),
        },
        "hash_key": _text("The secret key of columns that are hashed, 16 characters or more: give it as ${NAME}."),
        "write_mode": _choice(WriteMode, "What tables keep of their rows' past."),
        "types": _types("What values become where more than one type may have them."),
        "metrics": _section(
            "Metrics of the pipeline.",
            {"prometheus": _text("Where they are served, as host:port or :port.", examples=[":9187"])},
            required=["prometheus"],
        ),
        "traces": _section(
            "Traces of copies, batches and hand-overs.",
            {"opentelemetry": _shape("flag", "Whether OpenTelemetry is told.")},
        ),
        **_policies(),
    }
    names = {field.name for field in dataclasses.fields(PipelineConfig)} - {"policy", "telemetry"}
    _check_complete(fields, names.union(POLICY_FIELDS, ("metrics", "traces")))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "etl.yaml",
        **_section(
            "One pipeline: one PostgreSQL database into one destination.", fields, ["pipeline", "source", "destination"]
        ),
    }


def _source() -> Schema:
    own: dict[str, Schema] = {
        "publication": _text("The publication to read. If it does not exist, it is created for `tables`."),
        "tables": {
            **_TEXTS,
            "description": "Tables as namespace.name, or patterns such as public.*; ! before one leaves it out."
            " All that the publication publishes, if it is left out.",
        },
        "dsn": _text("A libpq URL or keyword string.", examples=["postgresql://etl@db.example:5432/shop"]),
        "host": _text("A name, an address, or the directory of a unix socket."),
        "port": _shape("integer", "5432 without it."),
        "database": _text("The database."),
        "user": _text("Needs LOGIN, REPLICATION, and SELECT on the tables."),
        "password": _text("Give it as ${NAME}, or use password_file, password_command, PGPASSWORD or .pgpass."),
        "password_file": _text("A file that holds the password alone. Read again at every connection."),
        "password_command": {
            "description": "A program that prints the password alone. Run again at every connection.",
            "anyOf": [_TEXT, _TEXTS],
        },
        "silence_timeout": _shape(
            "duration", "After so long without a word from the server a connection is made anew."
        ),
    }
    _check_complete(own, {field.name for field in dataclasses.fields(SourceConfig)} - {"keywords"})
    keywords = {option.keyword.decode() for option in pq.Conninfo.get_defaults()} - NOT_KEYWORDS - own.keys()
    libpq: Schema = {"description": "A connection keyword of libpq.", "type": ["string", "integer"]}
    return _section(
        "The database to replicate: dsn, or host, port, database and user.",
        {**own, **dict.fromkeys(sorted(keywords), libpq)},
        required=["publication"],
    )


def _table() -> Schema:
    transforms: dict[str, Schema] = {}
    for transform in registered_transforms():
        numbers: Schema = {"type": "object", "additionalProperties": {"type": "integer", "exclusiveMinimum": 0}}
        transforms[transform.name] = {
            "description": "Columns, each with a number." if transform.needs_argument else "Columns.",
            **(numbers if transform.needs_argument else _TEXTS),
        }
    words = {option: {"type": "object", "additionalProperties": _word(option)} for option in DEFAULTS}
    columns = {
        "include": {"description": "The only columns that go to the destination.", **_TEXTS},
        "exclude": {"description": "Columns that do not go to the destination.", **_TEXTS},
        "rename": {
            "description": "Names at the destination by names at the source.",
            "type": "object",
            "additionalProperties": _TEXT,
        },
        **transforms,
        **words,
    }
    fields: dict[str, Schema] = {
        "columns": _section("Which columns arrive, under which names, and what is hidden in them.", columns),
        "types": _types("As `types` of the file, for these tables."),
        "write_mode": _choice(WriteMode, "What these tables keep of their rows' past."),
        **_policies(),
    }
    names = {field.name for field in dataclasses.fields(TableSettings)} - {"pattern", "policy"}
    _check_complete(fields, names.union(POLICY_FIELDS))
    return _section("Settings of the tables that the name or pattern matches.", fields)


def _policies() -> dict[str, Schema]:
    return {
        "schema_changes": _choice(
            SchemaChanges, "Which changes of a table's columns and key are applied by themselves."
        ),
        "recopy": _choice(Recopy, "Whether a table that needs a new copy is copied by itself, or a person is asked."),
        "recopy_max_bytes": _shape("size", "A larger table waits as with `recopy: ask`."),
    }


def _types(description: str) -> Schema:
    return _section(description, {option: _word(option) for option in DEFAULTS})


def _word(option: str) -> Schema:
    patterns = [VARIABLE, *([_TYPE_PATTERNS[option]] if option in _TYPE_PATTERNS else [])]
    words: list[str | None] = [*words_of(option)]
    if "null" in words:
        words.append(None)  # as which YAML reads it
    return {"anyOf": [{"enum": words}, *({"type": "string", "pattern": pattern} for pattern in patterns)]}


def _choice(kind: type[StrEnum], description: str) -> Schema:
    words = [str(word) for word in kind]
    return {"description": description, "type": "string", "anyOf": [{"enum": words}, {"pattern": VARIABLE}]}


def _text(description: str, **more: object) -> Schema:
    return {"description": description, **_TEXT, **more}


def _shape(kind: str, description: str) -> Schema:
    return {"description": description, **SHAPES[kind]}  # type: ignore[index] # the kinds above


def _described(config: type[BatchConfig | CopyConfig], **fields: tuple[str, str]) -> dict[str, Schema]:
    """Fields, each with its kind and description; the default is the class's."""
    defaults = config()
    _check_complete(fields, {field.name for field in dataclasses.fields(config)})
    return {
        name: {**_shape(kind, description), "default": getattr(defaults, name)}
        for name, (kind, description) in fields.items()
    }


def _section(description: str, fields: Mapping[str, Schema], required: Iterable[str] = ()) -> Schema:
    return {
        "description": description,
        "type": "object",
        "properties": dict(fields),
        **({"required": [*required]} if required else {}),
        "additionalProperties": False,
    }


def _check_complete(described: Iterable[str], fields: Iterable[str]) -> None:
    """A field that was added to a class, and is not here, would be called unknown by editors."""
    missing = set(fields).symmetric_difference(described)
    if missing:
        raise ValueError(f"the JSON Schema and the code that reads the configuration differ in {sorted(missing)}")
