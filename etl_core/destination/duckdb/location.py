"""What `destination.path` may be: a file of this machine, not one of the other things DuckDB's own users connect to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from etl_core.destination.options import check_options, required_path
from etl_core.errors import ConfigError

_PREFIX = re.compile(r"(?P<prefix>[A-Za-z][A-Za-z0-9_+.-]+|):")
"""`md:`, `s3:`, `ducklake:`, `:memory:`. One letter is a drive of Windows."""
_RESERVED = frozenset(("main", "system", "temp"))


def parse_options(options: Mapping[str, object]) -> Path:
    """The one option, `path`. Raises ConfigError for others, and for what would silently become a file of that name."""
    check_options("duckdb", options, ("path",))
    path = required_path("duckdb", options, "path")
    found = _PREFIX.match(str(options["path"]))
    if found is None:
        return path
    name = str(options["path"])
    if found["prefix"] == "":
        trouble = "is no file, and a database in memory would end with the process"
    elif found["prefix"].lower() in ("md", "motherduck"):
        trouble = "names MotherDuck, and this destination writes a file of this machine"
    else:
        trouble = f"names a place behind {found['prefix']}:, and this destination writes a file of this machine"
    raise ConfigError(
        f"{name!r} {trouble}",
        field="destination.path",
        hint=f"name a file, for example warehouse.duckdb; a file that is called so is ./{name}",
    )


def database_name(path: Path) -> str:
    """What DuckDB calls the database in the file: the part before the first dot, unless that is a name of its own."""
    name = path.name.partition(".")[0]
    return f"{name}_db" if name.lower() in _RESERVED else name
