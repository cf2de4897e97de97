"""A connection of our own to a catalog in PostgreSQL, beside those of DuckLake."""

from __future__ import annotations

import psycopg

from etl_core.destination.ducklake.catalog import Catalog
from etl_core.destination.ducklake.failures import unavailable
from etl_core.errors import ConfigError, DestinationError, SourceRefused, SourceUnavailable
from etl_core.source.connection import Connection, connect

_MADE = "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_class WHERE relname = 'ducklake_metadata')"


def connect_catalog(catalog: Catalog, pipeline: str) -> Connection:
    """A connection, not in autocommit. Raises DestinationUnavailable, DestinationError, ConfigError."""
    try:
        return connect(catalog.address, pipeline=pipeline, role="destination", autocommit=False)
    except SourceUnavailable as error:
        raise unavailable(catalog, error) from None
    except SourceRefused as error:
        raise DestinationError(f"{catalog}: {error}", hint=error.hint) from None
    except ConfigError as error:
        raise ConfigError(
            str(error).replace("source.dsn", "destination.catalog"), field="destination.catalog", hint=error.hint
        ) from None


def is_made(catalog: Catalog, pipeline: str) -> bool:
    """Whether the database has a lake. Raises as `connect_catalog`."""
    connection = connect_catalog(catalog, pipeline)
    try:
        return bool(connection.execute(_MADE).fetchall()[0][0])
    except psycopg.Error as error:
        raise unavailable(catalog, error) from None
    finally:
        connection.close()
