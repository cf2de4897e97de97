"""DuckDB's extensions, from the Python packages that bring them as files: no download while a pipeline runs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import duckdb

from etl_core.errors import DestinationError

_SETTINGS = (
    # What is not loaded here is missing, and is said to be, in place of being fetched in the middle of a batch.
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
)


def load_extensions(connection: duckdb.DuckDBPyConnection, *names: str) -> None:
    """Loads DuckDB's extensions of these names into an instance, each after those that it needs.

    Raises DestinationError for one that is neither a package, nor installed in DuckDB, nor to be had from its servers.
    """
    for setting in _SETTINGS:
        connection.execute(setting)
    for name in names:
        path = _packaged(name)
        if path is not None:
            try:
                connection.load_extension(str(path))
            except duckdb.Error:
                raise _missing(name) from None
        else:
            _load_installed(connection, name)


def _packaged(name: str) -> Path | None:
    """The file of the extension in its package; None if that is not there, or is for another version."""
    spec = find_spec(f"duckdb_extension_{name}")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).with_name("extensions") / f"v{duckdb.__version__}" / f"{name}.duckdb_extension"
    return path if path.is_file() else None


def _load_installed(connection: duckdb.DuckDBPyConnection, name: str) -> None:
    try:
        connection.load_extension(name)
    except duckdb.Error:
        try:
            connection.install_extension(name)
            connection.load_extension(name)
        except duckdb.Error:
            raise _missing(name) from None


def _missing(name: str) -> DestinationError:
    version = duckdb.__version__
    package = f"duckdb-extension-{name.replace('_', '-')}"
    return DestinationError(
        f"DuckDB {version} has no extension {name}: no package {package} brings one for this version, and it could not"
        " be downloaded",
        hint=f"pip install {package}=={version}; if there is none of that version, install DuckDB in the newest one"
        " that has it",
    )
