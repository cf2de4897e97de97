"""The option that says where the destination's database is."""

from __future__ import annotations

import re
from typing import Any

from etl_core.config_values import config_error

_OURS = ("replication", "client_encoding", "options", "application_name")


def parameters(dsn: str) -> dict[str, str]:
    """What libpq is told. Raises ConfigError for what it does not understand, and for a string without a database."""
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        given: dict[str, Any] = conninfo_to_dict(dsn)
    except psycopg.Error:
        given = {}  # libpq's message quotes the string, and with it the password
    # An unescaped @ or / in a password moves parts of it into the address, which messages show.
    is_spilled = any("@" in str(given.get(key) or "") for key in ("host", "hostaddr", "dbname"))
    if not given or is_spilled or not re.fullmatch(r"[0-9,]*", str(given.get("port") or "")):
        raise config_error(
            "destination.dsn",
            "is not a connection string that libpq understands",
            hint="write postgresql://user@host:5432/database, with @ and / in a password as %40 and %2F",
        )
    for keyword in _OURS:
        if keyword in given:
            raise config_error("destination.dsn", f"{keyword} cannot be set", hint="remove it")
    if not given.keys() & {"dbname", "service"}:
        raise config_error("destination.dsn", "names no database", hint="write postgresql://user@host:5432/database")
    return {key: str(value) for key, value in given.items() if value is not None}
