"""A lake in a folder, for the tests."""

from __future__ import annotations

from pathlib import Path

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from etl_core.destination.ducklake.catalog import Catalog, Storage, read_catalog
from etl_core.destination.ducklake.compaction import Cadence
from etl_core.destination.ducklake.destination import DuckLakeDestination

HOUR = Cadence(3600.0, 3600.0)


def lake(folder: Path, pipeline: str, catalog: str | None = None, cadence: Cadence = HOUR) -> DuckLakeDestination:
    """Its catalog is a DuckDB file unless `catalog` names another."""
    place = read_catalog(str(folder / "catalog.ducklake")) if catalog is None else _catalog(catalog)
    return DuckLakeDestination(place, Storage(f"{folder / 'files'}/"), pipeline, folder / "staging", cadence)


def _catalog(text: str) -> Catalog:
    """The servers of the tests have a password in their address."""
    if not text.startswith("postgres:"):
        return read_catalog(text)
    given = conninfo_to_dict(text.removeprefix("postgres:"))
    password = given.pop("password", None)
    return read_catalog(f"postgres:{make_conninfo('', **given)}", None if password is None else str(password))
