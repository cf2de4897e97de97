"""How tables are made beyond their columns: method, partitions and labels, as the options say.

https://cloud.google.com/bigquery/docs/creating-partitioned-tables, https://cloud.google.com/bigquery/docs/labels-intro
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from etl_core.config import parse_duration
from etl_core.destination.bigquery.columns import stored_columns
from etl_core.destination.bigquery.method import LOAD_MERGE, METHODS
from etl_core.destination.bigquery.names import quoted
from etl_core.errors import ConfigError, TableError
from etl_core.identifiers import TableName
from etl_core.schema.table import TableSchema

OWNER = "etl_pipeline"
"""The label of a replicated table: its pipeline, or nothing when that has given the table up."""

_LONGEST_STALENESS = 24 * 3600.0
_BY_DAY = {"DATE": "{}", "DATETIME": "DATE({})", "TIMESTAMP": "DATE({})"}
_LABEL_KEY = re.compile("[a-z][a-z0-9_-]{0,62}")
_LABEL_VALUE = re.compile("[a-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class Layout:
    """`partition_by` has the column by whose days a table is partitioned, `labels` go on every table.

    `method` is one of `METHODS`. `max_staleness`, in seconds, is of tables whose changes are streamed; None is
    BigQuery's own, none.
    """

    method: str = LOAD_MERGE
    max_staleness: float | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    partition_by: Mapping[TableName, str] = field(default_factory=dict)

    def partition(self, schema: TableSchema) -> str | None:
        """The expression after PARTITION BY, if the table is partitioned. Raises TableError if it cannot be."""
        name = self.partition_by.get(schema.name)
        if name is None:
            return None
        stored = next((column for column in stored_columns(schema) if column.name == name), None)
        if stored is None or stored.type not in _BY_DAY:
            kind = "is not there" if stored is None else f"is {stored.type} in BigQuery"
            raise TableError(
                f"{schema.name} cannot be partitioned by column {name}, which {kind}",
                table=str(schema.name),
                hint=f"name a date or timestamp column in destination.partition_by, then: etl resync {schema.name}",
            )
        return _BY_DAY[stored.type].format(quoted(stored.column))


def parse_layout(method: str, max_staleness: str | None, labels: object, partition_by: object) -> Layout:
    """Raises ConfigError."""
    if method not in METHODS:
        raise ConfigError(
            f"there is no method {method!r}", field="destination.method", hint=f"use: {', '.join(METHODS)}"
        )
    return Layout(method, _max_staleness(max_staleness, method), _labels(labels), _partition_by(partition_by))


def _max_staleness(text: str | None, method: str) -> float | None:
    if text is None:
        return None
    if method == LOAD_MERGE:
        raise ConfigError(
            "max_staleness is of tables whose changes are streamed, and method load_merge streams none",
            field="destination.max_staleness",
            hint="remove it, or use method: auto",
        )
    try:
        seconds = parse_duration(text)
    except ConfigError as error:
        raise ConfigError(str(error), field="destination.max_staleness", hint=error.hint) from None
    if not 0 < seconds <= _LONGEST_STALENESS:
        raise ConfigError(
            f"max_staleness is {text}, and BigQuery takes up to 24 hours",
            field="destination.max_staleness",
            hint="write for example: max_staleness: 10m",
        )
    return seconds


def _labels(given: object) -> dict[str, str]:
    labels = _texts(given, "labels", "{team: data}")
    for key, value in labels.items():
        if key == OWNER or not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
            raise ConfigError(
                f"{key}: {value} cannot be a label" + (f": {OWNER} says whose the table is" if key == OWNER else ""),
                field=f"destination.labels.{key}",
                hint="labels are of up to 63 lower-case letters, digits, underscores and hyphens; a key begins with"
                " a letter",
            )
    return labels


def _partition_by(given: object) -> dict[TableName, str]:
    columns = _texts(given, "partition_by", "{public.events: created_at}")
    return {TableName.parse(table): column for table, column in columns.items()}


def _texts(given: object, option: str, example: str) -> dict[str, str]:
    if not isinstance(given, Mapping) or not all(isinstance(text, str) for pair in given.items() for text in pair):
        raise ConfigError(
            f"destination.{option} is a mapping of text to text",
            field=f"destination.{option}",
            hint=f"write for example: {option}: {example}",
        )
    return dict(given)
