"""`etl init URL [--to URL]`: writes a configuration for the tables of a database, then looks at both as doctor does."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from etl_core.cli.arguments import CONFIG, Arguments
from etl_core.cli.doctor import doctor
from etl_core.cli.exit_status import DONE, FAILED
from etl_core.cli.init_file import Draft, FoundTable, draft_text
from etl_core.cli.texts import plural, put
from etl_core.config import DestinationConfig, SourceConfig, is_secret, redacted
from etl_core.config_file import build_config
from etl_core.config_yaml import read_document
from etl_core.control import PipelineControl
from etl_core.destination.registry import check_destination
from etl_core.errors import ConfigError, PermanentError
from etl_core.source.connection import connect
from etl_core.source.plan import read_plan
from etl_core.source.publication import create_statement, publishes_generated_by_default
from etl_core.source.role import may_create_roles, role_statements
from etl_core.source.selected import all_tables

_ROLE = "etl"
_SHOWN = 5
"""Tables that are named in a line; the file has all of them."""
_NAMES = {"dbname": "database"}
"""What connection keywords of libpq are called in the configuration."""
_FIRST = ("host", "port", "dbname", "user")


@dataclass(frozen=True, slots=True)
class _Found:
    """What the source has. `sql` makes a role for replication, where the connected one has more rights than that."""

    database: str
    tables: Sequence[FoundTable]
    sql: Sequence[str]


def init(arguments: Arguments) -> int:
    """Raises ConfigError for a file that exists and a URL that is wrong, before anything is written."""
    path = arguments.config
    _check_new(path)
    source = _source(arguments.source)
    if arguments.to is not None:
        check_destination(DestinationConfig.from_url(arguments.to))
    found = _look(source)
    draft, environment = _draft(source, arguments.to, found)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(draft_text(draft, path))
    except FileExistsError:
        _check_new(path)
        raise
    _tell(path, draft, found)
    if all(table.harms for table in found.tables):
        put("no table can be replicated as it is: decide about those in the file, then: etl doctor")
        return FAILED
    document = read_document(path, {**os.environ, **environment})
    config = build_config(document.values, document.folder)
    with PipelineControl(config) as pipeline:
        status = doctor(pipeline, Arguments("doctor", config=path))
    etl = "etl" if path == CONFIG else f"etl -c {path}"
    put()
    exports = "".join(f"export {name}=…; " for name in environment)
    put(f"next: {exports}{etl} run" if status == DONE else f"when that is done: {exports}{etl} doctor; {etl} run")
    return status


def _source(url: str | None) -> SourceConfig:
    try:
        return SourceConfig(publication=_ROLE, dsn=url)
    except ConfigError as error:
        said = str(error).removeprefix(f"{error.field}: ")
        raise ConfigError(f"the source's URL {said}", hint=error.hint) from None


def _check_new(path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise ConfigError(
            f"{path} exists, and etl init overwrites nothing",
            hint="name another file with -c, or remove this one",
        )


def _look(source: SourceConfig) -> _Found:
    with connect(source.conninfo(), pipeline=_ROLE, role="init") as conn:
        generated = publishes_generated_by_default(conn)
        tables = [
            FoundTable(plan.name, plan.harms(conn, publishes_generated=generated))
            for plan in read_plan(conn, all_tables(conn))
        ]
        database = conn.info.dbname
        if not tables:
            raise PermanentError(
                f"database {database} has no table to replicate, so nothing was written",
                hint="check the database's name in the URL, or create its tables first",
            )
        names = [table.name for table in tables if not table.harms]
        statements: list[str] = []
        if names and conn.info.user != _ROLE and may_create_roles(conn):
            statements = role_statements(conn, _ROLE, names)
            statements.append(create_statement(conn, _publication(_pipeline_name(database)), names))
        return _Found(database, tables, statements)


def _draft(source: SourceConfig, to: str | None, found: _Found) -> tuple[Draft, Mapping[str, str]]:
    """The draft, and the variables that it names, with their values."""
    pipeline = _pipeline_name(found.database)
    prefix = pipeline.upper()
    given = {"dbname": found.database, **conninfo_to_dict(source.conninfo())}
    order = sorted(given, key=lambda key: _FIRST.index(key) if key in _FIRST else len(_FIRST))
    secret = {key: f"{prefix}_{key.upper()}" for key in order if is_secret(key)}
    environment = {name: str(given[key]) for key, name in secret.items()}
    shown = {key: str(given[key]) for key in order if key not in secret}
    options: dict[str, str | int]
    if shown.get("port", "0").isdigit():
        options = {_NAMES.get(key, key): int(value) if key == "port" else value for key, value in shown.items()}
    else:  # several hosts, each with its port
        options = {"dsn": make_conninfo("", **shown)}
    variable = None
    if to is not None and "://" in to and redacted(to) != to:
        variable = f"{prefix}_DESTINATION"
        environment[variable] = to
    draft = Draft(
        pipeline,
        _publication(pipeline),
        options,
        to or f"duckdb:{pipeline}.duckdb",
        found.tables,
        secret,
        variable,
    )
    return draft, environment


def _tell(path: Path, draft: Draft, found: _Found) -> None:
    harmed = [str(table.name) for table in found.tables if table.harms]
    put(f"wrote {path}: {plural(len(found.tables) - len(harmed), 'table')} of database {found.database}")
    if harmed:
        shown = ", ".join(harmed[:_SHOWN]) + (f" and {len(harmed) - _SHOWN} more" if len(harmed) > _SHOWN else "")
        put(f"commented out there, as they have no usable key, with the ways to include them: {shown}")
    if draft.destination_variable is not None:
        put(f"its destination is not in the file, as it has a password: set {draft.destination_variable} to its URL")
    for key, name in draft.variables.items():
        put(f"the {key} is not in the file: set the environment variable {name} for every command")
    if found.sql:
        put()
        put(f"if you want a role that can do no more than replicate (then, in psql: \\password {_ROLE}):")
        for statement in found.sql:
            put(f"    {statement};")
    put()


def _pipeline_name(database: str) -> str:
    """The database's name as a pipeline may be called."""
    name = re.sub(r"[^a-z0-9]+", "_", database.lower()).strip("_")
    return (name if name[:1].isalpha() else f"db_{name}")[:39].rstrip("_")


def _publication(pipeline: str) -> str:
    return f"{pipeline}_pub"
