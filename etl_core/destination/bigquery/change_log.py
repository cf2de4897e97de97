"""The SQL of logs: what a new copy keeps of the table, and what its own rows have in the log's columns."""

# ruff: noqa: S608 names are quoted by `names`, and the only values are numbers and a timestamp of ours

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from etl_core.destination.bigquery.columns import StoredColumn, stored_columns
from etl_core.destination.bigquery.deleted_rows import carried_columns, carried_value, timestamp
from etl_core.destination.bigquery.names import Place, quoted
from etl_core.lsn import Lsn
from etl_core.schema.change_log import COMMITTED_AT, COPY, LSN, OP, SEQ, TRUNCATE
from etl_core.schema.table import TableSchema


@dataclass(frozen=True, slots=True)
class LogToKeep:
    """The log that a copy with that watermark is added to, with its columns. See AppendingCopy."""

    place: Place
    columns: tuple[StoredColumn, ...]
    changed: Collection[str]
    watermark: Lsn
    is_streamed: bool
    """Whether the table had a watermark until then, so that its stream may have passed the copy's."""

    def add_to(self, staging: Place, schema: TableSchema) -> str:
        """Adds its rows to `staging`, which has the copied ones, in the columns of `schema`."""
        carried = carried_columns(self.columns, schema, self.changed)
        stored = stored_columns(schema)
        listed = ", ".join(quoted(column.column) for column in stored)
        values = ", ".join(carried_value(column, carried.get(column.name)) for column in stored)
        return (
            f"INSERT INTO {staging.sql} ({listed}) SELECT {values} FROM {self.place.sql} AS t WHERE {self._is_before()}"
        )

    def _is_before(self) -> str:
        lsn, seq, watermark = quoted(LSN.name), quoted(SEQ.name), int(self.watermark)
        return f"{lsn} < {watermark}" if self.is_streamed else f"NOT ({lsn} = {watermark} AND {seq} = 0)"


def add_emptied(staging: Place, watermark: Lsn, taken_at: datetime) -> str:
    """Adds to `staging` the one row of a copy without rows: that the table was empty then, as after a TRUNCATE."""
    values = {**copied_values(watermark, taken_at), quoted(OP.name): f"'{TRUNCATE}'"}
    return f"INSERT INTO {staging.sql} ({', '.join(values)}) VALUES ({', '.join(values.values())})"


def is_copied(watermark: Lsn) -> str:
    """Whether a row of the log is of the copy with that watermark."""
    return f"{quoted(OP.name)} = '{COPY}' AND {quoted(LSN.name)} = {int(watermark)}"


def count_copied(place: Place, watermark: Lsn) -> str:
    return f"SELECT COUNT(*) FROM {place.sql} WHERE {is_copied(watermark)}"


def copied_values(watermark: Lsn, taken_at: datetime) -> dict[str, str]:
    """What copied rows, which were staged with NULL in the log's columns, have in them."""
    values = {OP: f"'{COPY}'", LSN: str(int(watermark)), SEQ: "0", COMMITTED_AT: timestamp(taken_at)}
    return {quoted(column.name): value for column, value in values.items()}
