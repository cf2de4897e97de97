"""The preflight of the state store: whether it can be reached and written. Leaves nothing behind."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import text

from etl_core.errors import EtlError, PermanentError
from etl_core.source.finding import Finding, Severity
from etl_core.state.sql_engine import begin_write, open_engine
from etl_core.state.sql_errors import translated

_RIGHTS = text("""
SELECT pg_catalog.pg_is_in_recovery(),
       EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = 'etl'),
       COALESCE((SELECT pg_catalog.has_schema_privilege(oid, 'USAGE')
                 FROM pg_catalog.pg_namespace WHERE nspname = 'etl'),
                pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE')),
       CURRENT_USER::text, pg_catalog.current_database()::text
""")


def examine_state(url: str, pipeline: str) -> Iterator[Finding]:
    """One finding about the state store at `url`, which may hold a password and is not shown."""
    try:
        told = _look(url, pipeline)
    except EtlError as error:
        yield Finding(Severity.UNSAFE, "state", f"{error} ({error.hint})" if error.hint else str(error))
    else:
        yield Finding(Severity.OK, "state", told)


def _look(url: str, pipeline: str) -> str:
    engine, place = open_engine(url, pipeline)
    try:
        if engine.dialect.name == "sqlite":
            _check_file(Path(place))
            if not Path(place).exists():
                return f"the state store {place} does not exist yet; it is created at the first start"
        with translated(place), engine.connect() as connection:
            begin_write(connection, pipeline)  # never committed
            if engine.dialect.name == "postgresql":
                in_recovery, has_schema, is_allowed, user, database = connection.execute(_RIGHTS).one()
                if in_recovery:
                    raise PermanentError(f"the state store at {place} is a standby", hint="connect to the primary")
                if not is_allowed:
                    right = "USAGE on schema etl" if has_schema else f"CREATE on database {database}"
                    raise PermanentError(f"{user} lacks {right} at the state store", hint=f"GRANT {right} TO {user}")
            connection.rollback()
        return f"the state store at {place} can be written"
    finally:
        engine.dispose()


def _check_file(path: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        is_writable = not path.exists() or os.access(path, os.W_OK)
    except OSError as error:
        raise PermanentError(
            f"the state store {path} cannot be written: {error.strerror}",
            hint="give this user the right to write the file and its directory",
        ) from None
    if not is_writable:
        raise PermanentError(
            f"the state store {path} cannot be written", hint="give this user the right to write the file"
        )
