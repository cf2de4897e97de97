"""What is particular to the state store in PostgreSQL: rights, lost connections, secrets, how values lie in it."""

from __future__ import annotations

import secrets
import socket
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from etl_core.errors import ConfigError, EtlError, PermanentError, StateStoreUnavailable
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.silence import SilentServer
from etl_core.state import sql_engine, sql_rows, sql_store
from etl_core.state.sql_errors import translate
from etl_core.state.sql_store import open_store
from etl_core.state.store import Hold, ReplicationProgress, StateStore
from etl_core.testing.database import Database
from tests.silent_proxy import SilentProxy

PASSWORD = f"hunter2-{secrets.token_hex(4)}"


@pytest.fixture
def store(database: Database) -> Iterator[StateStore]:
    with closing(open_store(database.dsn, "shop")) as store:
        store.migrate()
        yield store


@dataclass(frozen=True, slots=True)
class Role:
    """A role with no rights but to log in. `url` connects as it."""

    name: str
    url: str


@pytest.fixture
def role(database: Database) -> Iterator[Role]:
    name = f"etl role {secrets.token_hex(4)}"
    identifier = sql.Identifier(name)
    database.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(identifier, sql.Literal(PASSWORD)))
    yield Role(name, changed(database.dsn, user=name.replace(" ", "%20"), password=PASSWORD))
    database.execute(sql.SQL("DROP OWNED BY {}").format(identifier))
    database.execute(sql.SQL("DROP ROLE {}").format(identifier))


def changed(dsn: str, *, user: str = "postgres", password: str = PASSWORD, port: int | None = None) -> str:
    """The URL with another login, or another port."""
    parts = urlsplit(dsn)
    return urlunsplit(parts._replace(netloc=f"{user}:{password}@{parts.hostname}:{port or parts.port}"))


def caught_migrating(url: str) -> EtlError:
    with closing(open_store(url, "shop")) as store, pytest.raises(EtlError) as caught:
        store.migrate()
    assert_no_secret(caught.value)
    assert caught.value.hint
    return caught.value


def assert_no_secret(error: BaseException | None) -> None:
    """Neither in the error nor in anything it was raised from."""
    while error is not None:
        assert PASSWORD not in f"{error}{error!r}{vars(error).get('hint')}"
        assert PASSWORD not in "".join(traceback.format_exception(error))
        error = error.__context__


def test_a_hold_expires_by_the_servers_clock_whatever_the_hosts_say(
    database: Database, store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, hour, minute = sql_store.utc_now, timedelta(hours=1), timedelta(minutes=1)
    with monkeypatch.context() as other_host:
        other_host.setattr(sql_store, "utc_now", lambda: real() + hour)
        ahead = open_store(database.dsn, "shop")
    with closing(ahead):
        store.request_hold(Hold("verify", real() + minute))
        held = ahead.hold()
        assert held is not None
        assert held.owner == "verify"
        store.release_hold("verify")
        ahead.request_hold(Hold("verify there", real() + hour + minute))
        held = store.hold()
        assert held is not None
        assert held.expires_at < real() + hour / 2


def test_lsns_are_postgresqls(database: Database, store: StateStore) -> None:
    store.save_progress(ReplicationProgress(Lsn.parse("FFFFFFFF/B374D848")))
    assert database.execute("SELECT flushed_lsn, flushed_lsn::pg_lsn::text FROM etl.progress") == [
        ("FFFFFFFF/B374D848", "FFFFFFFF/B374D848")
    ]
    ((collation,),) = database.execute(
        "SELECT collation_name FROM information_schema.columns"
        " WHERE table_name = 'progress' AND column_name = 'flushed_lsn'"
    )
    assert collation == "C"


def test_sessions_say_whose_they_are(database: Database, store: StateStore) -> None:
    assert store.progress() is None
    assert database.execute(
        "SELECT DISTINCT application_name FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    ) == [("etl shop state",)]


# Rights


def test_a_role_that_may_not_create_the_schema_is_told_what_to_run(database: Database, role: Role) -> None:
    error = caught_migrating(role.url)
    assert isinstance(error, PermanentError)
    assert f'role "{role.name}" may not create the schema etl' in str(error)
    assert error.hint is not None
    database.execute(error.hint.split("run: ")[1])
    assert_usable(role.url)


def test_a_role_that_may_not_create_tables_is_told_what_to_run(database: Database, role: Role) -> None:
    database.execute("CREATE SCHEMA etl")
    error = caught_migrating(role.url)
    assert isinstance(error, PermanentError)
    assert "may not create tables in the schema etl" in str(error)
    assert error.hint is not None
    database.execute(error.hint.split("run: ")[1])
    assert_usable(role.url)


def test_a_role_that_may_not_read_is_told_what_to_run(database: Database, store: StateStore, role: Role) -> None:
    store.save_progress(ReplicationProgress(Lsn(1)))
    error = caught_migrating(role.url)
    assert isinstance(error, PermanentError)
    assert "permission denied for schema etl" in str(error)
    assert error.hint is not None
    for grant in error.hint.split("run: ")[1].split("; "):
        database.execute(sql.SQL(grant.replace("the role", "{}")).format(sql.Identifier(role.name)))
    assert_usable(role.url)


def assert_usable(url: str) -> None:
    with closing(open_store(url, "shop")) as store:
        store.migrate()
        store.save_progress(ReplicationProgress(Lsn(9)))
        assert store.progress() is not None


# Connections


def test_a_server_that_does_not_listen_is_unavailable(database: Database) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets the port, and it refuses
        port = taken.getsockname()[1]
        error = caught_migrating(changed(database.dsn, port=port))
        assert isinstance(error, StateStoreUnavailable)
        assert f"127.0.0.1:{port}/{database.name} refuses connections" in str(error)
        # A host's name is not mistaken for a reason.
        unknown = caught_migrating(f"postgresql://etl:{PASSWORD}@certificate.invalid/shop")
        assert isinstance(unknown, StateStoreUnavailable)
        by_parameter = caught_migrating(f"postgresql://postgres@127.0.0.1:{port}/shop?password={PASSWORD}")
        assert isinstance(by_parameter, StateStoreUnavailable)


def test_a_database_that_does_not_exist_is_permanent(database: Database) -> None:
    error = caught_migrating(f"{database.dsn}_not")
    assert isinstance(error, PermanentError)
    assert f"{database.name}_not does not exist" in str(error)


def test_a_wrong_password_is_permanent(role: Role) -> None:
    try:
        psycopg.connect(role.url.replace(PASSWORD, "wrong")).close()
    except psycopg.OperationalError:
        pass
    else:
        pytest.skip("this server trusts everybody")
    error = caught_migrating(role.url.replace(PASSWORD, f"not-{PASSWORD}"))
    assert isinstance(error, PermanentError)
    assert "refuses the user or password" in str(error)


def test_a_role_at_its_limit_is_unavailable(database: Database, role: Role) -> None:
    database.execute(sql.SQL("ALTER ROLE {} CONNECTION LIMIT 0").format(sql.Identifier(role.name)))
    error = caught_migrating(role.url)
    assert isinstance(error, StateStoreUnavailable)
    assert "no connection left" in str(error)


def test_a_role_that_may_not_connect_is_permanent(database: Database, role: Role) -> None:
    database.execute(sql.SQL("REVOKE CONNECT ON DATABASE {} FROM PUBLIC").format(sql.Identifier(database.name)))
    error = caught_migrating(role.url)
    assert isinstance(error, PermanentError)
    assert "GRANT CONNECT" in str(error.hint)


def test_a_parameter_libpq_does_not_know_is_a_wrong_configuration(database: Database) -> None:
    error = caught_migrating(f"{database.dsn}?sslmod={PASSWORD}")
    assert isinstance(error, ConfigError)
    assert error.field == "state.url"


def test_a_store_that_was_not_migrated_says_so(database: Database) -> None:
    with closing(open_store(database.dsn, "shop")) as store, pytest.raises(PermanentError, match="lacks a table"):
        store.progress()


def test_a_connection_lost_while_idle_is_not_noticed(database: Database, store: StateStore) -> None:
    store.save_progress(ReplicationProgress(Lsn(1)))
    assert end_sessions(database) == 1
    store.save_progress(ReplicationProgress(Lsn(2)))
    assert end_sessions(database) == 1
    progress = store.progress()
    assert progress is not None
    assert progress.flushed_lsn == 2


def test_a_connection_lost_in_a_call_is_unavailable(database: Database, store: StateStore) -> None:
    store.save_progress(ReplicationProgress(Lsn(1)))
    with psycopg.connect(database.dsn) as other, ThreadPoolExecutor(1) as executor:
        other.execute("LOCK TABLE etl.progress")
        saving = executor.submit(store.save_progress, ReplicationProgress(Lsn(2)))
        while not end_sessions(database, "wait_event_type = 'Lock'"):
            assert not saving.done()
        error = saving.exception()
    assert isinstance(error, StateStoreUnavailable)
    assert_no_secret(error)
    store.save_progress(ReplicationProgress(Lsn(3)))


def test_another_sessions_lock_is_waited_for_only_so_long(
    database: Database, store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_engine, "LOCK_TIMEOUT", 0.05)
    with psycopg.connect(database.dsn) as other:
        other.execute("LOCK TABLE etl.progress")
        with pytest.raises(StateStoreUnavailable, match="locked"):
            store.save_progress(ReplicationProgress(Lsn(1)))
        store.set_publication_owned(True)
    store.save_progress(ReplicationProgress(Lsn(1)))


def test_a_writer_that_hangs_is_waited_for_only_so_long(
    database: Database, store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_engine, "LOCK_TIMEOUT", 0.05)
    engine, _ = sql_engine.open_engine(database.dsn, "shop")
    with engine.begin() as connection:
        sql_engine.begin_write(connection, "shop")
        with pytest.raises(StateStoreUnavailable, match="locked"):
            store.save_progress(ReplicationProgress(Lsn(1)))
        with closing(open_store(database.dsn, "other")) as other:
            other.save_progress(ReplicationProgress(Lsn(1)))
    engine.dispose()
    store.save_progress(ReplicationProgress(Lsn(1)))


@pytest.mark.parametrize("sqlstate", [psycopg.errors.ReadOnlySqlTransaction, psycopg.errors.FeatureNotSupported])
def test_a_standby_is_unavailable_with_a_hint(sqlstate: type[psycopg.Error]) -> None:
    # What a standby answers to a write, and to BEGIN READ WRITE.
    error = translate(DBAPIError("", None, sqlstate("refused")), "db:5432/shop")
    assert isinstance(error, StateStoreUnavailable)
    assert "read-only" in str(error)
    assert "primary" in (error.hint or "")


HOSTILE = {
    "DateStyle": "German, DMY",
    "TimeZone": "Asia/Kathmandu",
    "client_encoding": "LATIN1",
    "default_transaction_read_only": "on",
    "search_path": "nowhere",
    "bytea_output": "escape",
    "standard_conforming_strings": "off",
}


def test_settings_of_the_database_do_not_win(database: Database) -> None:
    identifier = sql.Identifier(database.name)
    alter = [
        # Lists, such as a DateStyle, are not quoted as a whole.
        sql.SQL("ALTER DATABASE {} SET {} = {}").format(
            identifier, sql.SQL(name), sql.SQL(", ").join(map(sql.Literal, value.split(", ")))
        )
        for name, value in HOSTILE.items()
    ]
    database.execute(sql.SQL("; ").join(alter))
    table, name = TableId(7), TableName("a\\b", "h\u00e9llo \u4e16")
    with closing(open_store(database.dsn, "shop")) as store:
        store.migrate()
        store.add_table(table, name)
        saved = store.save_progress(ReplicationProgress(Lsn(5), datetime(2026, 2, 1, 12, tzinfo=UTC)))
        assert store.progress() == saved
        assert store.tables()[0].name == name


# Silence


@pytest.fixture
def proxy(database: Database) -> Iterator[SilentProxy]:
    with SilentProxy(int(urlsplit(database.dsn).port or 0)) as proxy:
        yield proxy


@pytest.fixture
def distant(database: Database, proxy: SilentProxy) -> Iterator[StateStore]:
    """A store behind a hop that can fall silent."""
    parts = urlsplit(database.dsn)
    login = parts.netloc.rpartition("@")[0]
    url = urlunsplit(parts._replace(netloc=f"{login}@127.0.0.1:{proxy.port}"))
    with closing(open_store(url, "shop")) as store:
        store.migrate()
        yield store


def fall_silent(proxy: SilentProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy.fall_silent()
    monkeypatch.setattr(sql_engine.StoreConnection, "silence", 0.3)


def recover(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql_engine.StoreConnection, "silence", sql_engine.SILENCE)


def test_an_idle_connection_that_fell_silent_is_replaced_and_said(
    distant: StateStore, proxy: SilentProxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    distant.save_progress(ReplicationProgress(Lsn(1)))
    fall_silent(proxy, monkeypatch)
    given_up, give_up = [], sql_engine.StoreConnection.give_up

    def noted(connection: sql_engine.StoreConnection, silent: SilentServer) -> None:
        recover(monkeypatch)  # the next connection works, however long it takes
        given_up.append(silent)
        give_up(connection, silent)

    monkeypatch.setattr(sql_engine.StoreConnection, "give_up", noted)
    assert distant.progress() is not None
    assert len(given_up) == 1
    assert "the state store does not answer: nothing was heard from the server for 0.3 s" in caplog.text


def test_a_call_during_which_the_store_falls_silent_is_unavailable(
    distant: StateStore, proxy: SilentProxy, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin_and_fall_silent(connection: Connection, pipeline: str) -> None:
        sql_engine.begin_write(connection, pipeline)
        fall_silent(proxy, monkeypatch)

    with monkeypatch.context() as patched:
        patched.setattr(sql_rows, "begin_write", begin_and_fall_silent)
        with pytest.raises(StateStoreUnavailable, match="does not answer: nothing was heard") as caught:
            distant.save_progress(ReplicationProgress(Lsn(2)))
    assert "tunnel" in (caught.value.hint or "")
    recover(monkeypatch)
    assert distant.progress() is None
    # The lost session has the pipeline's lock. In truth we are silent for longer than the server lets it idle.
    end_sessions(database, "state = 'idle in transaction'")
    distant.save_progress(ReplicationProgress(Lsn(3)))


def end_sessions(database: Database, condition: str = "state = 'idle'") -> int:
    """Ends the store's sessions that meet the condition; returns how many there were."""
    query = sql.SQL(
        "SELECT count(pg_terminate_backend(pid, 300000)) FROM pg_stat_activity"
        " WHERE application_name = 'etl shop state' AND datname = current_database() AND {}"
    ).format(sql.SQL(condition))
    ((count,),) = database.execute(query)
    assert isinstance(count, int)
    return count
