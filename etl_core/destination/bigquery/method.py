"""How a table's changes get into BigQuery: by MERGE, or streamed as change data capture.

BigQuery refuses DML on a table while changes that were streamed to it are being applied, so a table is of one kind from
its copy to its next copy. https://cloud.google.com/bigquery/docs/change-data-capture#limitations
"""

from __future__ import annotations

import re

from etl_core.destination.bigquery.types import bigquery_field
from etl_core.errors import TableError
from etl_core.schema import pg_types
from etl_core.schema.change_log import keeps_log
from etl_core.schema.deleted_rows import keeps_deleted
from etl_core.schema.table import Column, ReplicaIdentity, TableSchema, TypeKind
from etl_core.values.arrow import arrow_type
from etl_core.write_mode import WriteMode

LOAD_MERGE, STREAMED, AUTO = "load_merge", "storage_write_cdc", "auto"
LOGGED = "storage_write_cdc_redo"
"""Of a table, not of the configuration: streamed out of a redo log, in which rows are completed. See `redo_log`."""

MAX_KEY_COLUMNS = 16

_KEEPS = "it keeps its deleted rows, whose values only the table itself holds"
_LOGS = "it has a row for every change, and none is ever changed"
_FIXED_LENGTH = frozenset(
    {
        *(pg_types.CHAR, pg_types.NAME, pg_types.UUID),
        *(pg_types.POINT, pg_types.LINE, pg_types.LSEG, pg_types.BOX, pg_types.CIRCLE),
    }
)


def refuses(mode: WriteMode, configured: str) -> str | None:
    """Why tables cannot have the write mode with the method of the configuration; None if they can."""
    if mode is WriteMode.HISTORY:
        return "its views of versions are not made there; with append it has the log that they would show"
    if mode is WriteMode.SOFT_DELETE and configured == STREAMED:
        return f"destination.method is {STREAMED}, by which a deleted row loses its values; with load_merge it can"
    if mode is WriteMode.APPEND and configured == STREAMED:
        return f"destination.method is {STREAMED}, which has one row for each key; with load_merge it can"
    return None


def is_streamed(method: str) -> bool:
    """Whether a table's changes are streamed: such a table takes no DML, and is read through a query."""
    return method in (STREAMED, LOGGED)


def is_stale(max_staleness: str | None) -> bool:
    """Whether reads of a table with this option, an interval, may lack changes that were streamed to it."""
    return bool(re.search("[1-9]", max_staleness or ""))


def choose(schema: TableSchema, configured: str, *, may_be_stale: bool = False) -> tuple[str, str]:
    """A table's method, and why, as the end of "because …". Raises TableError if it cannot be the configured one.

    `may_be_stale` is whether reads of streamed tables may be of older rows: from those no row can be completed.
    """
    if configured == LOAD_MERGE:
        return LOAD_MERGE, "destination.method says so"
    reason = _KEEPS if keeps_deleted(schema) else _LOGS if keeps_log(schema) else key_refused(schema)
    if configured == STREAMED:
        if reason is None:
            by_log = not may_be_stale and _unchanged_values(schema) is not None
            return LOGGED if by_log else STREAMED, "destination.method says so"
        raise TableError(
            f"changes of {schema.name} cannot be streamed, because {reason}",
            table=str(schema.name),
            hint="use method: auto, which takes load_merge for such a table",
        )
    reason = reason or _unchanged_values(schema)
    return (STREAMED, "it has a key, and the WAL has whole rows") if reason is None else (LOAD_MERGE, reason)


def key_refused(schema: TableSchema) -> str | None:
    """Why BigQuery cannot tell the table's rows apart; None if it can."""
    if not schema.key:
        return "the table has no key"
    if len(schema.key) > MAX_KEY_COLUMNS:
        return f"its key has {len(schema.key)} columns and BigQuery takes {MAX_KEY_COLUMNS}"
    for name in schema.key:
        kind = bigquery_field(schema.column(name))
        if not kind.may_be_key:
            return f"its key column {name} is {kind.sql}, which BigQuery takes into no primary key"
    return None


def _unchanged_values(schema: TableSchema) -> str | None:
    """Why an update may leave values out that only the table itself holds; None if it never does."""
    if schema.replica_identity is ReplicaIdentity.FULL:
        return None
    for column in schema.columns:
        if column.name not in schema.key and _may_be_toasted(column):
            return f"the WAL may lack unchanged values of column {column.name} (not so with REPLICA IDENTITY FULL)"
    return None


def _may_be_toasted(column: Column) -> bool:
    if column.type.kind is TypeKind.ENUM or column.type.oid in _FIXED_LENGTH:
        return False
    kind = arrow_type(column)
    return str(kind) in ("string", "binary") or kind.num_fields > 0
