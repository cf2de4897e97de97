"""How tables are made beyond their columns: method, partitions and labels, as the options say.

https://cloud.google.com/bigquery/docs/creating-partitioned-tables, https://cloud.google.com/bigquery/docs/labels-intro
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from etl_core.destination.bigquery.columns import stored_columns
from etl_core.destination.bigquery.method import LOAD_MERGE
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

    `method` is a choice of that option. `max_staleness`, in seconds, is of tables whose changes are streamed; None is
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


def parse_layout(
    method: str, max_staleness: float | None, labels: Mapping[str, str], partition_by: Mapping[str, str]
) -> Layout:
    """Of the options of these names, read. Raises ConfigError."""
    if max_staleness is not None:
        _check_staleness(max_staleness, method)
    _check_labels(labels)
    return Layout(method, max_staleness, labels, {TableName.parse(table): by for table, by in partition_by.items()})


def _check_staleness(seconds: float, method: str) -> None:
    if method == LOAD_MERGE:
        raise ConfigError(
            "max_staleness is of tables whose changes are streamed, and method load_merge streams none",
            field="destination.max_staleness",
            hint="remove it, or use method: auto",
        )
    if not 0 < seconds <= _LONGEST_STALENESS:
        raise ConfigError(
            f"max_staleness is {seconds:g} s, and BigQuery takes up to 24 hours",
            field="destination.max_staleness",
            hint="write for example: max_staleness: 10m",
        )


def _check_labels(labels: Mapping[str, str]) -> None:
    for key, value in labels.items():
        if key == OWNER or not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
            raise ConfigError(
                f"{key}: {value} cannot be a label" + (f": {OWNER} says whose the table is" if key == OWNER else ""),
                field=f"destination.labels.{key}",
                hint="labels are of up to 63 lower-case letters, digits, underscores and hyphens; a key begins with"
                " a letter",
            )
