"""The preflight of destination and state store: it finds what the first start would meet, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import duckdb
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from etl_core.destination.doctor import examine_destination
from etl_core.destination.duckdb.destination import DuckDBDestination
from etl_core.source.finding import Severity
from etl_core.state.doctor import examine_state
from etl_core.state.sql_store import open_store
from etl_core.testing.database import Database


def destination(path: Path) -> tuple[Severity, str]:
    (finding,) = examine_destination(DuckDBDestination(path, "shop"), "duckdb")
    return finding.severity, finding.message


def state(url: str) -> tuple[Severity, str]:
    (finding,) = examine_state(url, "shop")
    return finding.severity, finding.message


def test_a_duckdb_file(tmp_path: Path) -> None:
    file = tmp_path / "shop.duckdb"
    assert destination(file)[0] is Severity.OK
    assert not list(tmp_path.iterdir()), "nothing is left behind"
    severity, message = destination(tmp_path / "missing" / "shop.duckdb")
    assert (severity, "mkdir -p" in message) == (Severity.UNSAFE, True)
    file.write_text("this is not a database")
    assert destination(file)[0] is Severity.UNSAFE
    file.unlink()
    duckdb.connect(file).close()
    assert destination(file) == (Severity.OK, f"{file} can be written")


def test_a_sqlite_file(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'state.db'}"
    assert state(url)[0] is Severity.OK
    assert not list(tmp_path.iterdir()), "nothing is left behind"
    assert state(f"sqlite:///{tmp_path / 'missing' / 'state.db'}")[0] is Severity.UNSAFE
    (tmp_path / "state.db").write_text("this is not a database, and long enough to be taken for one by its length" * 20)
    assert state(url)[0] is Severity.UNSAFE


def test_postgresql(database: Database) -> None:
    where = conninfo_to_dict(database.dsn)
    password = f":{where['password']}" if "password" in where else ""
    address = f"{where['host']}:{where['port']}/{where['dbname']}"
    url = f"postgresql://{where['user']}{password}@{address}"
    assert state(f"postgresql://{where['user']}@{where['host']}:1/nowhere")[0] is Severity.UNSAFE
    role = f"role_{database.name}"
    database.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'secret'").format(sql.Identifier(role)))
    try:
        severity, message = state(f"postgresql://{role}:secret@{address}")
        assert (severity, "CREATE on database" in message) == (Severity.UNSAFE, True)
    finally:
        database.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))
    database.execute(
        sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(sql.Identifier(database.name))
    )
    assert state(url)[0] is Severity.OK
    store = open_store(url, "shop")
    store.migrate()  # does not depend on the setting
    store.set_publication_owned(True)
    store.close()
    assert state(url)[0] is Severity.OK
