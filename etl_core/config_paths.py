"""Relative paths inside connection strings: they belong to the configuration file's folder, as every other one does."""

from __future__ import annotations

from pathlib import Path

from psycopg.conninfo import conninfo_to_dict, make_conninfo

_PATHS = frozenset({"passfile", "servicefile", "sslcert", "sslcrl", "sslcrldir", "sslkey", "sslrootcert"})
"""Connection keywords of libpq whose values are paths."""


def absolute_keyword(key: str, value: str, folder: Path) -> str:
    """The value of a libpq keyword with a relative path made absolute; any other as it is.

    `sslrootcert=system` names the system's certificates, and `sslkey=engine:key` a key that is in no file.
    """
    if key not in _PATHS or not value or ":" in value or (key, value) == ("sslrootcert", "system"):
        return value
    return str(folder / value)


def absolute_dsn(dsn: str, folder: Path) -> str:
    """A connection string that libpq understands, with its relative paths made absolute."""
    given = {key: str(value) for key, value in conninfo_to_dict(dsn).items()}
    changed = _changed(given, folder)
    return make_conninfo(dsn, **changed) if changed else dsn


def absolute_url(text: str, folder: Path) -> str:
    """An SQLAlchemy URL with its relative paths, a SQLite file or certificates, made absolute; a wrong one as it is."""
    from sqlalchemy import make_url  # slow to import, and not needed where no URL is written
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        return text
    if url.drivername != "sqlite":
        changed = _changed({key: value for key, value in url.query.items() if isinstance(value, str)}, folder)
        return url.update_query_dict(changed).render_as_string(hide_password=False) if changed else text
    if not url.database or url.database.startswith((":", "file:")):
        return text
    return url.set(database=str(folder / url.database)).render_as_string(hide_password=False)


def _changed(values: dict[str, str], folder: Path) -> dict[str, str]:
    absolute = {key: absolute_keyword(key, value, folder) for key, value in values.items()}
    return {key: value for key, value in absolute.items() if value != values[key]}
