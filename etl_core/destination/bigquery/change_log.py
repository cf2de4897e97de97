"""The SQL of logs: what a new copy keeps of the table, what its own rows have in its columns, and names in those."""

# ruff: noqa: S608 names are quoted by `names`, values are literals

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

from etl_core.destination.bigquery.columns import StoredColumn, stored_columns
from etl_core.destination.bigquery.deleted_rows import carried_columns, carried_value, timestamp
from etl_core.destination.bigquery.names import Place, quoted
from etl_core.destination.bigquery.statements import literal
from etl_core.destination.bigquery.types import ELEMENT, ELEMENTS
from etl_core.lsn import Lsn
from etl_core.schema.alterations import origins
from etl_core.schema.change_log import COMMITTED_AT, COPY, LSN, OP, PREFIX, SEQ, TRUNCATE, UNCHANGED
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
        origin = origins({column.name: column.attnum for column in self.columns}, schema.columns)
        now: dict[str, str | None] = dict.fromkeys(column.name for column in self.columns)
        now |= {there: name for name, there in origin.items()}
        found = {column.name: carried_value(column, carried.get(column.name)) for column in stored}
        found[UNCHANGED.name] = renamed("t", now) or found[UNCHANGED.name]
        values = ", ".join(found.values())
        return (
            f"INSERT INTO {staging.sql} ({listed}) SELECT {values} FROM {self.place.sql} AS t WHERE {self._is_before()}"
        )

    def _is_before(self) -> str:
        lsn, seq, watermark = quoted(LSN.name), quoted(SEQ.name), int(self.watermark)
        return f"{lsn} < {watermark}" if self.is_streamed else f"NOT ({lsn} = {watermark} AND {seq} = 0)"


def forget_unchanged(place: Place, gone: Collection[str]) -> str | None:
    """Has UNCHANGED name none of the columns that are gone; None where no column of the source is."""
    value = renamed("t", dict.fromkeys(gone))
    if value is None:
        return None
    unchanged = quoted(UNCHANGED.name)
    return f"UPDATE {place.sql} AS t SET {unchanged} = {value} WHERE t.{unchanged} IS NOT NULL"


def renamed(alias: str, now: Mapping[str, str | None]) -> str | None:
    """UNCHANGED with columns of the source as they are called `now`, without those that are None: they are gone.

    None where that is what it is.
    """
    names = {name: new for name, new in now.items() if not name.startswith(PREFIX) and name != new}
    if not names:
        return None
    cases = "".join(f" WHEN {literal(name)} THEN {literal(new)}" for name, new in names.items() if new is not None)
    called = f"CASE e.{ELEMENT}{cases} ELSE e.{ELEMENT} END" if cases else f"e.{ELEMENT}"
    gone = ", ".join(literal(name) for name, new in names.items() if new is None)
    stays = f" WHERE e.{ELEMENT} NOT IN ({gone})" if gone else ""
    return (
        f"(SELECT IF(COUNT(*) = 0, NULL, STRUCT(ARRAY_AGG(STRUCT({called} AS {ELEMENT})) AS {ELEMENTS}))"
        f" FROM UNNEST({alias}.{quoted(UNCHANGED.name)}.{ELEMENTS}) AS e{stays})"
    )


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
