"""Connections to a real server: settings no role can change, and failures in one sentence without the password."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from etl_core.errors import EtlError, SourceRefused, SourceUnavailable
from etl_core.source.connection import connect
from etl_core.source.server import current_lsn, server_info
from etl_core.testing.database import Database

HOSTILE = {
    "DateStyle": "SQL, DMY",
    "IntervalStyle": "sql_standard",
    "TimeZone": "Asia/Tokyo",
    "extra_float_digits": "-10",
    "bytea_output": "escape",
    "search_path": "public",
    "row_security": "on",
    "statement_timeout": "1ms",
    "lock_timeout": "1ms",
    "idle_in_transaction_session_timeout": "1ms",
    "idle_session_timeout": "1min",
    "client_encoding": "LATIN1",
}
PRINTED = {
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "iso_8601",
    "TimeZone": "UTC",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "search_path": "",
    "row_security": "off",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "client_encoding": "UTF8",
}


@pytest.fixture
def role(database: Database) -> Iterator[str]:
    """A role with REPLICATION, password `secret`, gone with the test."""
    name = f"role_{database.name}"
    database.execute(sql.SQL("CREATE ROLE {} LOGIN REPLICATION PASSWORD 'secret'").format(sql.Identifier(name)))
    yield name
    database.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
    database.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def dsn_of(database: Database, role: str) -> str:
    return make_conninfo(database.dsn, user=role, password="secret")


@pytest.mark.parametrize("replication", [False, True])
def test_settings_of_role_and_database_do_not_win(database: Database, role: str, replication: bool) -> None:
    settings = dict(HOSTILE)
    if database.server.version_num >= 170000:
        settings["transaction_timeout"] = "30s"
    for target in (
        sql.SQL("ROLE {}").format(sql.Identifier(role)),
        sql.SQL("ROLE {} IN DATABASE {}").format(sql.Identifier(role), sql.Identifier(database.name)),
    ):
        for name, value in settings.items():
            # Lists, such as a DateStyle, are not quoted as a whole.
            literals = sql.SQL(", ").join(map(sql.Literal, value.split(", ")))
            database.execute(sql.SQL("ALTER {} SET {} = {}").format(target, sql.SQL(name), literals))
    with connect(dsn_of(database, role), pipeline="shop", role="copy", replication=replication) as conn:
        shown = {name: conn.execute(sql.SQL("SHOW {}").format(sql.SQL(name))).fetchone() for name in PRINTED}
        assert shown == {name: (value,) for name, value in PRINTED.items()}
        if database.server.version_num >= 170000:
            assert conn.execute("SHOW transaction_timeout").fetchone() == ("0",)
        assert conn.execute("SHOW application_name").fetchone() == ("etl_shop_copy",)


def test_a_server_that_is_not_there(database: Database) -> None:
    with pytest.raises(SourceUnavailable, match=r"cannot connect to 127\.0\.0\.1:1"):
        connect(make_conninfo(database.dsn, host="127.0.0.1", port=1), pipeline="shop", role="copy")


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        ({"password": "wrong-secret"}, "password authentication failed", "password"),
        ({"user": "nobody_here", "password": "secret"}, "authentication failed|does not exist", "user"),
        ({"dbname": "no_such_database"}, 'database "no_such_database" does not exist', "name"),
        ({"sslmode": "require"}, "SSL", "sslmode"),
        ({"options": "-c no.such=1 -c no_such_setting=1"}, "unrecognized configuration parameter", "pooler"),
    ],
)
def test_refusals(database: Database, role: str, change: dict[str, str], message: str, hint: str) -> None:
    with pytest.raises(SourceRefused, match=message) as caught:
        connect(make_conninfo(dsn_of(database, role), **change), pipeline="shop", role="copy")
    assert hint in (caught.value.hint or "")
    assert "\n" not in str(caught.value)
    assert_no_secret(caught.value)


def test_a_role_that_may_not_replicate(database: Database, role: str) -> None:
    database.execute(sql.SQL("ALTER ROLE {} NOREPLICATION").format(sql.Identifier(role)))
    connect(dsn_of(database, role), pipeline="shop", role="copy").close()
    with pytest.raises(SourceRefused) as caught:
        connect(dsn_of(database, role), pipeline="shop", role="stream", replication=True)
    assert "REPLICATION" in (caught.value.hint or "")
    assert_no_secret(caught.value)


def test_a_role_without_connections_left(database: Database, role: str) -> None:
    database.execute(sql.SQL("ALTER ROLE {} CONNECTION LIMIT 0").format(sql.Identifier(role)))
    with pytest.raises(SourceUnavailable, match="too many connections"):
        connect(dsn_of(database, role), pipeline="shop", role="copy")


def assert_no_secret(error: EtlError) -> None:
    assert "secret" not in f"{error!r} {error} {error.hint} {error.__cause__}"


def test_who_the_server_is_is_what_the_walsender_says(database: Database) -> None:
    with (
        connect(database.dsn, pipeline="shop", role="test") as conn,
        connect(database.dsn, pipeline="shop", role="test", replication=True) as walsender,
    ):
        info = server_info(conn)
        identified = walsender.execute("IDENTIFY_SYSTEM").fetchone()
        assert identified is not None
        assert (info.system_identifier, info.timeline, info.database) == (
            identified[0],
            identified[1],
            identified[3],
        )
        assert server_info(walsender).system_identifier == info.system_identifier
        assert info.version_num == database.server.version_num
        assert (info.wal_level, info.in_recovery, info.server_encoding) == ("logical", False, "UTF8")
        before = current_lsn(conn)
        database.execute("CREATE TABLE t ()")
        assert current_lsn(walsender) > before >= info.flush_lsn


def test_a_connection_that_breaks_is_unavailable(database: Database) -> None:
    with connect(database.dsn, pipeline="shop", role="test") as conn:
        database.execute("SELECT pg_terminate_backend(%s)", (conn.info.backend_pid,))
        with pytest.raises(SourceUnavailable):
            current_lsn(conn)
        assert isinstance(conn, psycopg.Connection)
