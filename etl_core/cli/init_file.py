"""The text of the configuration that `etl init` writes: commented, and without a password."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from etl_core.config_file import SCHEMA_FILE
from etl_core.identifiers import TableName
from etl_core.source.plan import Harm

_PLAIN = re.compile(r"[A-Za-z_/](?:[A-Za-z0-9_./$@-]|:(?=[A-Za-z0-9./]))*")
_WORDS = ("y", "yes", "n", "no", "on", "off", "true", "false", "null")
"""What YAML reads as something else than text."""


@dataclass(frozen=True, slots=True)
class FoundTable:
    """A table of the source. One with `harms` has no usable replica identity, or a partition of it has none."""

    name: TableName
    harms: Sequence[Harm] = ()


@dataclass(frozen=True, slots=True)
class Draft:
    """What is to be written. `source` has options of that section; `variables` those whose values are not written."""

    pipeline: str
    publication: str
    source: Mapping[str, str | int]
    destination: str
    tables: Sequence[FoundTable]
    variables: Mapping[str, str] = field(default_factory=dict)
    destination_variable: str | None = None


def draft_text(draft: Draft, path: Path) -> str:
    """The file's text, to be written at `path`."""
    destination = _variable(draft.destination_variable) if draft.destination_variable else _text(draft.destination)
    lines = [
        f"# yaml-language-server: $schema={_schema(path)}",
        "# Written by etl init. What is wrong with it after a change: etl config check",
        "",
        f"pipeline: {_text(draft.pipeline)}  # names the replication slot etl_{draft.pipeline}; do not change it later",
        "",
        "source:",
        *(f"  {key}: {_text(value)}" for key, value in draft.source.items()),
        *(f"  {key}: {_variable(name)}  # export {name}=… first" for key, name in draft.variables.items()),
        f"  publication: {_text(draft.publication)}  # created for these tables by the first run, if it does not exist",
        *_tables(draft.tables),
        "",
        f"destination: {destination}"
        + (f"  # export {draft.destination_variable}=… first" if draft.destination_variable else ""),
        "",
        "# What follows are the defaults: remove the # before a line to change it.",
        f'# state: {{url: "sqlite:///{draft.pipeline}.state.db"}}  # what survives a restart; or postgresql://…',
        "# batch: {max_rows: 100000, max_bytes: 16MiB, max_age: 1s}  # how far the destination is behind",
        "# copy: {workers: 4, connections_per_table: 4}  # tables that are copied at once",
        "# write_mode: mirror  # or soft_delete, append, history: what is kept of rows that change or are deleted",
        "# schema_changes: apply  # or add_only, approve, ignore: whether a changed table waits for `etl approve`",
        "",
    ]
    return "\n".join(lines)


def _tables(tables: Sequence[FoundTable]) -> Iterator[str]:
    yield '  tables:  # or patterns, which take in tables that are added later: ["public.*", "!audit_*"]'
    yield from (f"    - {_text(str(table.name))}" for table in tables if not table.harms)
    harmed = [table for table in tables if table.harms]
    if harmed:
        yield "    # Not replicated before you have decided: the source would refuse their UPDATE and DELETE, or their"
        yield "    # changes could not be applied. Do one of what is listed below a table, then remove the # before it."
    for table in harmed:
        yield f"    # - {_text(str(table.name))}"
        for harm in table.harms[:3]:
            yield from _harm_lines(harm)
        if len(table.harms) > 3:
            yield f"    #   and so do {len(table.harms) - 3} more of its partitions; etl doctor lists all"


def _harm_lines(harm: Harm) -> Iterator[str]:
    yield f"    #   {_comment(f'{harm.relation} {harm.why}')}"
    if "add a primary key" in harm.ways:
        yield "    #     add a primary key"
    if harm.sql is not None:
        costs = "  -- costs more: rows are found by all their values" if harm.sql.endswith(" FULL") else ""
        yield f"    #     {_comment(harm.sql)};{costs}"
    elif "add a primary key" not in harm.ways:
        yield from (f"    #     {_comment(way)}" for way in harm.ways)
    yield "    #     or have only its inserts, in a pipeline of its own with allow_append_only: true"


def _schema(path: Path) -> str:
    """Where an editor finds the JSON Schema: relative to the file, if it is installed below the file's folder."""
    folder = path.absolute().parent
    if SCHEMA_FILE.is_relative_to(folder):
        return f"./{SCHEMA_FILE.relative_to(folder).as_posix()}"
    return SCHEMA_FILE.as_uri()


def _variable(name: str) -> str:
    return f"${{{name}}}"


def _text(value: str | int) -> str:
    """A YAML scalar that is read as `value`, also where it has the beginning of a variable in it."""
    if isinstance(value, int):
        return str(value)
    escaped = value.replace("${", "$${")
    if _PLAIN.fullmatch(escaped) and escaped.lower() not in _WORDS:
        return escaped
    dumped: str = yaml.safe_dump(escaped, default_style='"', allow_unicode=True, width=2**20)
    return dumped.strip()


def _comment(text: str) -> str:
    """One line: a table's name may have any character in it."""
    return "".join(character if character.isprintable() else "?" for character in text)
