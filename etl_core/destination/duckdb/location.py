"""What DuckDB calls the database in a file."""

from __future__ import annotations

from pathlib import Path

_RESERVED = frozenset(("main", "system", "temp"))


def database_name(path: Path) -> str:
    """The part before the first dot, unless that is a name of DuckDB's own."""
    name = path.name.partition(".")[0]
    return f"{name}_db" if name.lower() in _RESERVED else name
