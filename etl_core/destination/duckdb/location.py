"""What DuckDB calls the database in a file, and how new files are stored."""

from __future__ import annotations

from pathlib import Path

_RESERVED = frozenset(("main", "system", "temp"))
STORAGE_VERSIONS = ("v1.0.0", "v1.2.0", "v1.4.0", "v1.5.0", "latest")
"""What DuckDB calls STORAGE_VERSION: the oldest DuckDB that reads a file. DuckDB 1.5, the oldest here, knows these."""
STORAGE_VERSION = "v1.5.0"


def database_name(path: Path) -> str:
    """The part before the first dot, unless that is a name of DuckDB's own."""
    name = path.name.partition(".")[0]
    return f"{name}_db" if name.lower() in _RESERVED else name
