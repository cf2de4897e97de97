"""Turns the exceptions of DuckDB and DuckLake into ours.

Messages quote values, and those about a catalog in PostgreSQL its connection string, so only known ones are told.
"""

from __future__ import annotations

import re

import duckdb

from etl_core.destination.duckdb_sql.failures import table_failure
from etl_core.destination.ducklake.catalog import Catalog
from etl_core.errors import DestinationError, DestinationUnavailable, DestinationUnusable, EtlError, TableError
from etl_core.identifiers import TableName

_FULL = re.compile("o space left|File too large|quota exceeded|disk is full")
_BUSY = re.compile("database is locked|database table is locked|database is busy")
_RIGHT = re.compile("ermission denied|ead-only|readonly database|AccessDenied|HTTP (code )?403")
_LOST_FILE = re.compile("No such file|HTTP (code )?404|NoSuchKey|Cannot open file|not find file")
_OTHER_DATA = re.compile("DATA_PATH|does not match existing data path")
_REPORT = "report this as a bug"


def unavailable(catalog: Catalog, error: Exception) -> DestinationUnavailable:
    """A catalog in PostgreSQL that does not answer."""
    return DestinationUnavailable(f"{catalog} cannot be reached ({type(error).__name__})")


def explain(error: duckdb.Error, catalog: Catalog, data: str) -> EtlError:
    """The error for a failure of the lake as a whole."""
    message = str(error)
    if _FULL.search(message):
        return DestinationUnusable(
            f"{catalog} or {data} cannot grow: the disk is full, or a limit is reached",
            hint="free disk space, then start again",
        )
    if _BUSY.search(message):
        return DestinationUnavailable(f"{catalog} is being changed by another process")
    if _OTHER_DATA.search(message):
        return DestinationUnusable(
            f"the data files of the lake in {catalog} are not in {data}",
            hint="give the option data as it was when the lake was made",
        )
    if _RIGHT.search(message):
        return DestinationUnusable(
            f"{catalog} or {data} cannot be written", hint="give this user the right to write both"
        )
    if isinstance(error, (duckdb.TransactionException, duckdb.FatalException)):
        return DestinationUnavailable(f"DuckLake gave up a transaction on {catalog}: another one came before it")
    if isinstance(error, (duckdb.IOException, duckdb.HTTPException)):
        if catalog.kind == "postgres" or not data.startswith("/"):
            return DestinationUnavailable(f"{catalog} or {data} cannot be reached ({type(error).__name__})")
        return DestinationError(
            f"{catalog} or {data} cannot be read or written ({type(error).__name__})",
            hint="check that the catalog is one of DuckLake, and the disk both are on",
        )
    if isinstance(error, (duckdb.CatalogException, duckdb.BinderException)):
        return DestinationUnusable(
            f"the bookkeeping in {catalog} (schema _etl) is missing or was changed, or the catalog is not one of"
            " DuckLake",
            hint="start again: tables whose progress is not known are named then; copy them: etl resync TABLE",
        )
    return DestinationError(f"DuckLake refused the work on {catalog} ({type(error).__name__})", hint=_REPORT)


def explain_table(error: duckdb.Error, name: TableName, catalog: Catalog, data: str) -> EtlError:
    """The error for a failure while one table was worked on."""
    failure = table_failure(error, name, "DuckLake", str(catalog))
    if failure is not None:
        return failure
    if isinstance(error, (duckdb.IOException, duckdb.HTTPException)) and _LOST_FILE.search(str(error)):
        return TableError(
            f"a data file of {name} in {data} is missing",
            table=str(name),
            hint=f"somebody removed it; copy the table again: etl resync {name}",
        )
    explained = explain(error, catalog, data)
    if type(explained) is DestinationError and explained.hint == _REPORT:
        return TableError(
            f"DuckLake refused the changes of {name} ({type(error).__name__})", table=str(name), hint=_REPORT
        )
    return explained
