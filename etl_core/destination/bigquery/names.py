"""What PostgreSQL's names are called in BigQuery, and identifiers as SQL has them.

A name of letters, digits and underscores stays as it is. Of any other the rest becomes `_`, and a digest of the name
follows, so that no two meet. Columns are told apart without regard to case, and some prefixes are BigQuery's own:
https://cloud.google.com/bigquery/docs/schemas#column_names
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from etl_core.errors import ConfigError
from etl_core.identifiers import TableName
from etl_core.schema.change_log import PREFIX, is_ours
from etl_core.schema.table import Column

_PLAIN = re.compile("[A-Za-z0-9_]+")
_PLAIN_COLUMN = re.compile("[A-Za-z_][A-Za-z0-9_]*")
_OTHER = re.compile("[^A-Za-z0-9_]")
_RESERVED = ("_TABLE_", "_FILE_", "_PARTITION", "_ROW_TIMESTAMP", "__ROOT__", "_COLIDENTIFIER", "_CHANGE_", "_ETL_")
_LONGEST_COLUMN = 300
_DATASET_TEMPLATE = re.compile(r"(?:[A-Za-z0-9_]|\{namespace\})+")


@dataclass(frozen=True, slots=True)
class Place:
    """A table in BigQuery."""

    project: str
    dataset: str
    table: str

    def __str__(self) -> str:
        return f"{self.project}.{self.dataset}.{self.table}"

    @property
    def sql(self) -> str:
        """The quoted identifier. The parts hold nothing that would end the quotes."""
        return f"`{self}`"

    @property
    def path(self) -> str:
        """As the Storage API names it."""
        return f"projects/{self.project}/datasets/{self.dataset}/tables/{self.table}"


def check_dataset(template: str) -> str:
    """Raises ConfigError unless a dataset can be called so; `{namespace}` may stand in it."""
    if not _DATASET_TEMPLATE.fullmatch(template):
        raise ConfigError(
            f"{template!r} cannot name a dataset",
            field="destination.dataset",
            hint="use letters, digits and underscores; {namespace} stands for the PostgreSQL schema",
        )
    return template


def place_of(project: str, template: str, name: TableName) -> Place:
    """Where a table is replicated to."""
    return Place(project, template.replace("{namespace}", _plain(name.namespace)), _plain(name.name))


def column_names(columns: Sequence[Column]) -> dict[str, str]:
    """The name in BigQuery of every column, by its own."""
    names = field_names([column.name for column in columns])
    rests = {column.name: column.name.removeprefix(PREFIX) for column in columns if is_ours(column)}
    named = field_names(list(rests.values()))
    return names | {name: PREFIX + named[rest] for name, rest in rests.items()}  # the prefix is reserved for these


def field_names(names: Sequence[str]) -> dict[str, str]:
    """The same for the fields of a STRUCT."""
    folded = [name.lower() for name in names]
    found = {}
    for name in names:
        clashes = folded.count(name.lower()) > 1
        is_reserved = name.upper().startswith(_RESERVED)
        if _PLAIN_COLUMN.fullmatch(name) and not clashes and not is_reserved and len(name) <= _LONGEST_COLUMN:
            found[name] = name
        else:
            found[name] = f"c_{_OTHER.sub('_', name)[:200]}_{_digest(name)}"
    return found


def quoted(column: str) -> str:
    """A column of BigQuery as SQL has it."""
    return f"`{column}`"


def _plain(name: str) -> str:
    return name if _PLAIN.fullmatch(name) else f"{_OTHER.sub('_', name)[:200]}_{_digest(name)}"


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:8]
