"""Turns DuckDB's exceptions into ours. Values of rows are never repeated: DuckDB quotes them."""

from __future__ import annotations

import re

import duckdb

from etl_core.destination.duckdb_sql.failures import table_failure
from etl_core.errors import (
    DestinationError,
    DestinationUnavailable,
    DestinationUnusable,
    EtlError,
    TableError,
    TryAgain,
    ValueOutOfRange,
)
from etl_core.identifiers import TableName

_REPORT = "report this as a bug"
_IN_LIST_OF_MAPS = re.compile(r"NOT NULL constraint failed: [^.]*\.(.+)\.element\.key")
_RIGHTS = (
    "Unauthorized_401",
    "Forbidden_403",
    "HTTP code 403",
    "HTTP 403",
    "AccessDenied",
    "Could not get token",
)


def explain(error: duckdb.Error, uri: str) -> EtlError:
    """The error for a failure of the catalog as a whole."""
    message = str(error)
    if "reachable state" in message:  # it was changed after the transaction had begun
        return TryAgain(f"a table in the catalog {uri} was changed while it was looked at")
    if "Conflict_409" in message:
        return DestinationUnavailable(
            f"another writer has changed a table or the bookkeeping in the catalog {uri} meanwhile; nothing of this"
            " was applied",
            hint="it is done again by itself; if that goes on, give the pipelines a bookkeeping namespace each",
        )
    if any(part in message for part in _RIGHTS):
        return DestinationError(
            f"the catalog {uri} or its storage refuses access", hint="check credential or token, and the s3_… options"
        )
    if isinstance(error, (duckdb.CatalogException, duckdb.BinderException)):
        return DestinationUnusable(
            f"the bookkeeping in the catalog {uri} is missing or was changed",
            hint="start again: tables whose progress is not known are named then; copy them: etl resync TABLE",
        )
    if "returned a non-200 status code" in message and not is_bad_request(error):
        return DestinationUnavailable(f"the catalog {uri} failed")
    if isinstance(error, (duckdb.HTTPException, duckdb.IOException, duckdb.TransactionException)):
        return DestinationUnavailable(f"the catalog {uri} or its storage failed ({type(error).__name__})")
    if isinstance(error, (duckdb.FatalException, duckdb.InternalException)):
        return DestinationUnavailable(f"DuckDB gave up while it worked on the catalog {uri}")
    return DestinationError(f"DuckDB refused the work on the catalog {uri} ({type(error).__name__})", hint=_REPORT)


def is_bad_request(error: duckdb.Error) -> bool:
    """Whether the catalog called a request bad, as for a name that it does not allow."""
    return "BadRequest_400" in str(error) or "Bad Request" in str(error)


def explain_table(error: duckdb.Error, name: TableName, uri: str) -> EtlError:
    """The error for a failure while one table was worked on."""
    message = str(error)
    if "ADD COLUMN for Nested" in message:
        return TableError(
            f"{name} has a new column of a list, struct or map, which DuckDB cannot add to a table in Iceberg",
            table=str(name),
            hint=f"DROP TABLE {name} in the catalog, then copy it again, which makes it anew: etl resync {name}; or"
            " have an array as text there with types: {arrays: json}",
        )
    if is_bad_request(error):
        return TableError(
            f"{name} cannot be kept in the catalog {uri}: it refuses a name",
            table=str(name),
            hint="many catalogs allow a-z, 0-9 and _ alone in the names of namespaces and tables; rename the table at"
            " the source, or remove it from the publication",
        )
    if "Cannot write infinity" in message:  # in an array: elsewhere the column is known (`dialect`)
        return ValueOutOfRange(
            f"{name} has an array with an infinite date or timestamp, which Iceberg does not have",
            table=str(name),
            hint="have the array as text there with types: {arrays: json}, or leave the column out of the publication",
        )
    maps = _IN_LIST_OF_MAPS.search(message)
    if maps is not None:
        return ValueOutOfRange(
            f"column {maps[1]} of {name} has an array of hstore that is NULL, has one, or has no elements, which DuckDB"
            " cannot write to Iceberg",
            table=str(name),
            hint="have the array as text there with types: {arrays: json}, or leave the column out of the publication",
        )
    found = table_failure(error, name, "Iceberg", f"the catalog {uri}")
    if found is not None:
        return found
    explained = explain(error, uri)
    if type(explained) is DestinationError and explained.hint == _REPORT:
        return TableError(
            f"DuckDB refused the changes of {name} ({type(error).__name__})", table=str(name), hint=_REPORT
        )
    return explained
