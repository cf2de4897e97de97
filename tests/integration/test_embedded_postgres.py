"""The embedded PostgreSQL: what tests, benchmarks and the demo rely on."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from etl_core.errors import ConfigError, PermanentError
from etl_core.testing.postgres import (
    Database,
    PostgresBinaries,
    PostgresServer,
    create_database,
    find_binaries,
    find_tls_binaries,
    postgres_from_environment,
    temporary_postgres,
)

ONE_ROW = "CREATE TABLE survivor (id int); INSERT INTO survivor VALUES (1)"

# What another process does: it starts a server, says where, and waits for its end. Root becomes user 65534 first when
# told to; what that user may not read has been imported by then.
OTHER_PROCESS = """
import json, os, sys
from pathlib import Path
from etl_core.testing.postgres import PostgresBinaries, PostgresServer, create_database
data_dir, bin_dir, version, user = sys.argv[1:]
import psycopg
if user:
    os.setgroups([]), os.setgid(int(user)), os.setuid(int(user))
server = PostgresServer(Path(data_dir), PostgresBinaries(Path(bin_dir), version, "wheel"))
server.start()
database = create_database(server, "other")
database.execute("CREATE TABLE survivor (id int); INSERT INTO survivor VALUES (1)")
print(json.dumps({"dsn": server.dsn("other"), "socket_dir": str(server.socket_dir), "uid": os.geteuid()}), flush=True)
sys.stdin.read()
server.crash()
print(json.dumps(database.execute("TABLE survivor")), flush=True)
"""


@pytest.fixture(scope="module")
def binaries() -> PostgresBinaries:
    return find_binaries("wheel")


@pytest.fixture(scope="module")
def server(binaries: PostgresBinaries) -> Iterator[PostgresServer]:
    with temporary_postgres(binaries) as server:
        yield server


@pytest.fixture
def own(server: PostgresServer) -> Iterator[Database]:
    server.start()
    database = create_database(server)
    yield database
    server.start()
    database.drop()


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that the server's user may enter, also when we are root: pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield directory


def run_python(program: str, environment: dict[str, str]) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


@contextmanager
def other_process(data_dir: Path, binaries: PostgresBinaries, user: str = "") -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER_PROCESS, str(data_dir), str(binaries.bin_dir), binaries.version, user],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def read_line(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def wait_for_end_of(connection: psycopg.Connection) -> None:
    """Block until the server closes the connection: the event that tells that it ends."""
    readable, _, _ = select.select([connection.fileno()], [], [], 60)
    assert readable, "the server still serves"


# The contract of every source


def test_serves_logical_replication(database: Database) -> None:
    assert database.execute("SHOW wal_level") == [("logical",)]
    assert database.execute("SELECT current_database()") == [(database.name,)]
    database.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (database.name,))
    assert database.execute("SELECT database FROM pg_replication_slots") == [(database.name,)]


def test_version_num_is_the_servers_own(postgres: PostgresServer, database: Database) -> None:
    assert database.execute("SHOW server_version_num") == [(str(postgres.version_num),)]


@pytest.mark.parametrize("how", ["restart", "SIGQUIT", "SIGKILL"])
def test_committed_data_and_address_survive(postgres: PostgresServer, database: Database, how: str) -> None:
    dsn = database.dsn
    with closing(psycopg.connect(dsn, autocommit=True)) as connection:
        connection.execute(ONE_ROW)
        if how == "restart":
            postgres.restart()
        else:
            postgres.crash(signal.Signals[how])
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    with psycopg.connect(dsn) as connection:
        assert connection.execute("TABLE survivor").fetchall() == [(1,)]


def test_a_database_is_dropped_with_a_consumer_on_its_slot(postgres: PostgresServer) -> None:
    database = create_database(postgres)
    database.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (database.name,))
    with closing(psycopg.connect(f"{database.dsn}?replication=database", autocommit=True)) as consumer:
        consumer.pgconn.exec_(
            f"START_REPLICATION SLOT {database.name} LOGICAL 0/0 (proto_version '1', publication_names 'p')".encode()
        )
        database.drop()
    everything = create_database(postgres)
    assert everything.execute("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s", (database.name,)) == []
    assert everything.execute("SELECT 1 FROM pg_database WHERE datname = %s", (database.name,)) == []
    everything.drop()


def test_execute_answers_with_the_rows_of_the_last_statement(database: Database) -> None:
    assert database.execute("SELECT 1; SELECT 2, 3") == [(2, 3)]
    assert database.execute("SELECT 1; CREATE TABLE t (id int)") == []
    assert database.execute("SELECT %s || %s", ("a", "b")) == [("ab",)]


# The embedded server


def test_tcp_asks_for_the_password_and_the_socket_does_not(server: PostgresServer, own: Database) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(server.dsn(own.name, password="wrong"))
    with psycopg.connect(server.dsn(own.name, host=str(server.socket_dir))) as connection:
        assert connection.execute("SELECT inet_server_addr()").fetchall() == [(None,)]


def test_a_dsn_carries_parameters_and_other_roles(server: PostgresServer, own: Database) -> None:
    own.execute("CREATE ROLE \"odd/role @\" LOGIN PASSWORD 'p:w/d'")
    dsn = server.dsn(own.name, user="odd/role @", password="p:w/d", application_name="a b&c")
    with psycopg.connect(dsn) as connection:
        row = connection.execute("SELECT current_user, current_setting('application_name')").fetchone()
    own.execute('DROP ROLE "odd/role @"')
    assert row == ("odd/role @", "a b&c")


def test_stop_leaves_nothing_but_the_data(server: PostgresServer, own: Database) -> None:
    own.execute(ONE_ROW)
    port, socket_dir = server.port, server.socket_dir
    server.stop()
    assert not server.is_running
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(own.dsn)
    server.start()
    assert own.execute("TABLE survivor") == [(1,)]
    assert (server.port, server.socket_dir) == (port, socket_dir)


def test_starts_again_after_it_ended_by_itself(server: PostgresServer, own: Database) -> None:
    own.execute(ONE_ROW)
    pid = int((server.data_dir / "postmaster.pid").read_text().split()[0])
    os.kill(pid, signal.SIGQUIT)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert not server.is_running
    server.start()
    assert own.execute("TABLE survivor") == [(1,)]
    server.restart()
    assert own.execute("TABLE survivor") == [(1,)]


def test_alter_system_overrides_our_settings(server: PostgresServer, own: Database) -> None:
    own.execute("ALTER SYSTEM SET wal_level = replica")
    server.restart()
    assert own.execute("SHOW wal_level") == [("replica",)]
    own.execute("ALTER SYSTEM RESET wal_level")
    server.restart()
    assert own.execute("SHOW wal_level") == [("logical",)]


def test_a_data_directory_serves_again_and_takes_new_settings(open_directory: Path, binaries: PostgresBinaries) -> None:
    with PostgresServer(open_directory / "data", binaries) as first:
        database = create_database(first)
        database.execute(ONE_ROW)
        socket_dir = first.socket_dir
    assert not socket_dir.exists()
    settings = {"work_mem": "5MB", "search_path": "it's, public"}
    with PostgresServer(open_directory / "data", binaries, settings=settings, durable=True) as second:
        again = Database(second, database.name)
        assert again.execute("TABLE public.survivor") == [(1,)]
        assert again.execute("SHOW work_mem; SHOW search_path") == [("it's, public",)]
        assert again.execute("SHOW fsync") == [("on",)]


def test_has_the_clients(binaries: PostgresBinaries) -> None:
    said = subprocess.run([binaries.path("pg_recvlogical"), "--version"], check=True, capture_output=True, text=True)
    assert binaries.version in said.stdout
    with pytest.raises(ConfigError, match="no program pg_nothing"):
        binaries.path("pg_nothing")


# Processes


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else; without root every test is this one")
def test_an_ordinary_user_can_run_it_too(open_directory: Path, binaries: PostgresBinaries) -> None:
    home = open_directory / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    with other_process(home / "data", binaries, user="65534") as process:
        assert read_line(process)["uid"] == 65534
        said, _ = process.communicate("")
    assert json.loads(said) == [[1]]
    assert process.returncode == 0


def test_an_interpreter_that_ends_takes_its_server_along(open_directory: Path, binaries: PostgresBinaries) -> None:
    with other_process(open_directory / "data", binaries) as process:
        started = read_line(process)
        process.communicate("")
    assert process.returncode == 0
    assert not (open_directory / "data" / "postmaster.pid").exists()
    assert not Path(started["socket_dir"]).exists()


def test_a_killed_interpreter_takes_its_server_along(open_directory: Path, binaries: PostgresBinaries) -> None:
    data_dir = open_directory / "data"
    with (
        other_process(data_dir, binaries) as process,
        closing(psycopg.connect(read_line(process)["dsn"])) as connection,
    ):
        process.kill()
        wait_for_end_of(connection)
    with PostgresServer(data_dir, binaries) as server:
        assert Database(server, "other").execute("TABLE survivor") == [(1,)]


def test_a_server_whose_watchdog_died_too_is_stopped_at_the_next_start(
    open_directory: Path, binaries: PostgresBinaries
) -> None:
    data_dir = open_directory / "data"
    with other_process(data_dir, binaries) as process:
        started = read_line(process)
        (watchdog,) = (child for child in psutil.Process(process.pid).children() if child.name() == "sh")
        watchdog.kill()
    with closing(psycopg.connect(started["dsn"])) as connection, PostgresServer(data_dir, binaries) as server:
        wait_for_end_of(connection)
        assert not Path(started["socket_dir"]).exists()
        assert Database(server, "other").execute("TABLE survivor") == [(1,)]


def test_two_processes_cannot_share_a_data_directory(open_directory: Path, binaries: PostgresBinaries) -> None:
    with other_process(open_directory / "data", binaries) as process:
        started = read_line(process)
        with pytest.raises(ConfigError, match="another process runs a server"):
            PostgresServer(open_directory / "data", binaries).start()
        with closing(psycopg.connect(started["dsn"])) as connection:
            assert connection.execute("TABLE survivor").fetchall() == [(1,)]
        process.communicate("")


# What cannot be had


def test_a_taken_port_is_a_clear_error(open_directory: Path, binaries: PostgresBinaries) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = PostgresServer(open_directory / "data", binaries, port=taken.getsockname()[1])
        with pytest.raises(PermanentError, match="could not bind"):
            server.start()
    assert not server.is_running


def test_a_foreign_directory_is_left_alone(open_directory: Path, binaries: PostgresBinaries) -> None:
    (open_directory / "data").mkdir()
    (open_directory / "data" / "thesis.txt").write_text("chapter 1")
    with pytest.raises(ConfigError, match="was not made by this class"):
        PostgresServer(open_directory / "data", binaries).start()
    assert [path.name for path in (open_directory / "data").iterdir()] == ["thesis.txt"]


def test_data_of_another_version_is_a_clear_error(open_directory: Path, binaries: PostgresBinaries) -> None:
    with PostgresServer(open_directory / "data", find_binaries("wheel", "16")):
        pass
    with pytest.raises(ConfigError, match="holds data of PostgreSQL 16"):
        PostgresServer(open_directory / "data", binaries).start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's server is somebody else")
def test_a_directory_closed_to_the_servers_user_is_a_clear_error(tmp_path: Path, binaries: PostgresBinaries) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(ConfigError, match="may not enter"):
        PostgresServer(closed / "data", binaries).start()
    assert list(closed.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "version", "hint"),
    [
        ("wheel", "13", "it has 18, 16"),
        ("wheel", "18.99", "it has 18."),
        ("wheel", "eighteen", "it has 18, 16"),
        ("npm", "13", "it has 18, 17, 16, 15, 14"),
        ("flatpak", "18", "use auto, wheel, npm, system"),
    ],
)
def test_an_unknown_source_or_version_says_what_there_is(source: str, version: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_binaries(source, version)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(hint)


def test_docker_without_an_engine_is_one_clear_error(tmp_path: Path) -> None:
    # In a process of its own: Docker's client leaves its socket open when nobody answers.
    program = """
from etl_core.errors import ConfigError
from etl_core.testing.postgres import postgres_from_environment
try:
    with postgres_from_environment():
        print("there is an engine")
except ConfigError as error:
    print(error.field, error, error.hint, sep="|")
"""
    environment = {"DOCKER_HOST": f"unix://{tmp_path}/nobody.sock", "ETL_PG_SOURCE": "docker", "ETL_PG_VERSION": "17"}
    said = run_python(program, environment)
    field, message, hint = said.split("|")
    assert field == "ETL_PG_SOURCE"
    assert message.startswith("Docker does not run the image postgres:17")
    assert "ETL_PG_SOURCE=wheel" in hint


def test_tls_next_to_connections_without(tls_postgres: PostgresServer) -> None:
    with temporary_postgres(tls_postgres.binaries, tls="offered") as server:
        for dsn, is_encrypted in ((server.dsn(), False), (server.tls_dsn(), True), (server.local_dsn(), False)):
            with psycopg.connect(dsn) as connection:
                assert connection.pgconn.ssl_in_use == is_encrypted
        server.restart()
        with psycopg.connect(server.tls_dsn()) as connection:
            assert connection.pgconn.ssl_in_use, "the certificates outlive a restart"


def test_the_environment_chooses_tls(tls_postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tls_postgres.binaries.has_tls  # else this machine has none
    monkeypatch.setenv("ETL_PG_TLS", "required")
    with postgres_from_environment() as server, psycopg.connect(server.dsn()) as connection:
        assert connection.pgconn.ssl_in_use
    for tls, source in (("maybe", ""), ("required", "docker")):
        monkeypatch.setenv("ETL_PG_TLS", tls)
        monkeypatch.setenv("ETL_PG_SOURCE", source)
        with pytest.raises(ConfigError, match=f"ETL_PG_TLS={tls} cannot be had here"), postgres_from_environment():
            pytest.fail("there is a server")


def test_who_has_tls(binaries: PostgresBinaries) -> None:
    assert not binaries.has_tls
    with pytest.raises(ConfigError, match="with TLS"):
        find_tls_binaries(programs=["no_such_program"])
    with temporary_postgres(binaries) as server, pytest.raises(PermanentError, match="without TLS"):
        server.tls_dsn()
