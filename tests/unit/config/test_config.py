"""Configuration values: what is refused, what libpq is told, and that no secret is ever shown."""

from __future__ import annotations

import os
import pickle
import traceback
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from etl_core.config import (
    BatchConfig,
    CopyConfig,
    DestinationConfig,
    PipelineConfig,
    SourceConfig,
    StateConfig,
    parse_duration,
    parse_size,
    redacted,
)
from etl_core.config_secrets import run_password_command
from etl_core.errors import ConfigError, SourceUnavailable
from etl_core.identifiers import TableName

SECRET = "hunter2"


def refused(**source: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        SourceConfig(**{"publication": "p", **source})
    return caught.value


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (1048576, 2**20),
        ("1048576", 2**20),
        ("64MiB", 2**26),
        ("64MB", 64 * 10**6),
        ("1.5 kib", 1536),
        ("2GB", 2 * 10**9),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"), [(1, 1), ("0.5", 0.5), ("1s", 1), ("500ms", 0.5), ("2m", 120), ("2min", 120), ("1.5h", 5400)]
)
def test_durations(text: str | int, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "MiB", "64Mb/s", "-1", "1e3", "64 XiB", "½"])
@pytest.mark.parametrize("parse", [parse_size, parse_duration])
def test_neither_a_size_nor_a_duration(parse: type, text: str) -> None:
    with pytest.raises(ConfigError, match="is not a") as caught:
        parse(text)
    assert caught.value.hint


def test_a_url_and_keywords_reach_libpq() -> None:
    source = SourceConfig("p", dsn="postgresql://etl@db:5433/shop", keywords={"sslmode": "require"})
    assert conninfo_to_dict(source.conninfo()) == {
        "host": "db",
        "port": "5433",
        "dbname": "shop",
        "user": "etl",
        "sslmode": "require",
    }


def test_separate_fields_reach_libpq_quoted() -> None:
    source = SourceConfig("p", host="/run/a b", port=5433, database="my 'shop'", user="etl", password="x \\ '")
    assert conninfo_to_dict(source.conninfo()) == {
        "host": "/run/a b",
        "port": "5433",
        "dbname": "my 'shop'",
        "user": "etl",
        "password": "x \\ '",
    }


def test_several_hosts() -> None:
    source = SourceConfig("p", dsn="postgresql://etl@a:1,b:2/shop?target_session_attrs=read-write")
    assert conninfo_to_dict(source.conninfo())["host"] == "a,b"


def test_everything_may_come_from_the_environment() -> None:
    assert SourceConfig("p", dsn="postgresql://").conninfo() == ""


def test_a_password_file_is_read_at_each_conninfo(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("first\n")
    source = SourceConfig("p", host="db", password_file=file)
    assert conninfo_to_dict(source.conninfo())["password"] == "first"
    file.write_text(" second ")
    assert conninfo_to_dict(source.conninfo())["password"] == " second "


@pytest.mark.parametrize("content", [b"", b"\n", b"one\ntwo", b"\xff", b"a\0b"])
def test_a_password_file_holds_the_password_alone(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "password"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"^source.password_file: .*password") as caught:
        SourceConfig("p", host="db", password_file=file).conninfo()
    assert caught.value.field == "source.password_file"


def test_a_password_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        SourceConfig("p", host="db", password_file=tmp_path / "none").conninfo()


def shell(script: str) -> SourceConfig:
    return SourceConfig("p", host="db", password_command=("/bin/sh", "-c", script))


def test_a_password_command_is_run_at_each_conninfo(tmp_path: Path) -> None:
    count = tmp_path / "count"
    source = shell(f'echo >> {count}; echo " token $(wc -l < {count})"')
    assert conninfo_to_dict(source.conninfo())["password"] == " token 1"
    assert conninfo_to_dict(source.conninfo())["password"] == " token 2"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo hunter2; exit 3", "sh ended with exit status 3"),
        ("echo hunter2; kill -9 $$", "sh ended with signal 9"),
        ("echo hunter2 >&2", "sh must print the password alone"),
        ("echo hunter2; echo hunter2", "sh must print the password alone"),
        ("printf 'hunter2\\351'", "sh must print the password alone"),
    ],
)
def test_a_password_command_that_fails_may_be_tried_again(
    script: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SourceUnavailable, match=f"source.password_command: {message}") as caught:
        shell(script).conninfo()
    assert "hunter2" not in f"{caught.value}{caught.value.hint}{caught.value.__cause__}{capfd.readouterr()}"


def test_a_password_command_that_hangs_ends_with_what_it_started(tmp_path: Path) -> None:
    # Whoever has the FIFO open for writing is alive: reading it ends when nobody is.
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(SourceUnavailable, match=r"sh printed no password within 0\.5 s"):
        run_password_command(("/bin/sh", "-c", f"exec 3> {fifo}; sleep 600 & sleep 600"), timeout=0.5)
    os.set_blocking(reading, True)
    assert os.read(reading, 1) == b""
    os.close(reading)


def test_a_password_command_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"source\.password_command: none cannot be run: No such file"):
        SourceConfig("p", host="db", password_command=(str(tmp_path / "none"), "hunter2")).conninfo()


@pytest.mark.parametrize(
    ("source", "field"),
    [
        ({"host": "db", "password_command": ()}, "source.password_command"),
        ({"host": "db", "password": "x", "password_command": ("a",)}, "source.password_command"),
        ({"host": "db", "password_file": Path("x"), "password_command": ("a",)}, "source.password_command"),
        ({"host": "db", "silence_timeout": 0.0}, "source.silence_timeout"),
        ({"publication": "", "host": "db"}, "source.publication"),
        ({"publication": "ü" * 32, "host": "db"}, "source.publication"),
        ({}, "source"),
        ({"keywords": {"sslmode": "require"}}, "source"),
        ({"dsn": ""}, "source.dsn"),
        ({"dsn": "shop"}, "source.dsn"),
        ({"dsn": "postgresql+psycopg://db/shop"}, "source.dsn"),
        ({"dsn": "postgresql://db/shop?replication=database"}, "source.dsn"),
        ({"dsn": "host=db client_encoding=latin1"}, "source.dsn"),
        ({"dsn": "host=db", "host": "db"}, "source.host"),
        ({"dsn": "host=db dbname=shop", "database": "shop"}, "source.database"),
        ({"dsn": "host=db sslmode=disable", "keywords": {"sslmode": "require"}}, "source.sslmode"),
        ({"dsn": "postgresql://u:pw@db", "password_file": Path("f")}, "source.password_file"),
        ({"host": "db", "password": "pw", "password_file": Path("f")}, "source.password_file"),
        ({"host": "db", "port": 0}, "source.port"),
        ({"host": "db", "port": 65536}, "source.port"),
        ({"host": "db", "keywords": {"dbname": "shop"}}, "source.dbname"),
        ({"host": "db", "keywords": {"password": "pw"}}, "source.password"),
        ({"host": "db", "keywords": {"replication": "true"}}, "source.replication"),
        ({"host": "db", "tables": ()}, "source.tables"),
        ({"host": "db", "tables": (TableName("a", "b"), TableName("a", "c"), TableName("a", "b"))}, "source.tables[2]"),
    ],
)
def test_a_source_is_refused_with_the_field(source: dict[str, object], field: str) -> None:
    error = refused(**source)
    assert error.field == field
    assert str(error).startswith(f"{field}: ")


def test_a_misspelt_keyword_gets_a_suggestion() -> None:
    assert refused(host="db", keywords={"sslmod": "require"}).hint == "did you mean sslmode?"
    assert refused(host="db", keywords={"databse": "shop"}).hint == "did you mean database?"


@pytest.mark.parametrize(
    "dsn",
    [
        f"postgresql://u:{SECRET}/x@db/shop",
        f"postgresql://u:12/{SECRET}@db/shop",
        f"postgresql://u:a@{SECRET}@db/shop",
        f"postgresql://u:%{SECRET}@db/shop",
        f"postgresql://u:%a1{SECRET}@db/shop",
        f"postgresql://u:12?{SECRET}/@db/shop",
        f"postgresql://u:1 2/{SECRET}@db/shop",
        f"host=db password=a {SECRET}",
        f"host=db password='{SECRET}",
        f"host=db port={SECRET}",
        f"{SECRET}",
        f"{SECRET}=x",
    ],
)
def test_a_dsn_that_libpq_misreads_is_refused_without_showing_it(dsn: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SourceConfig("p", dsn=dsn)
    assert SECRET not in "".join(traceback.format_exception(caught.value)) + str(caught.value.hint)
    assert caught.value.__context__ is None


GOOD_DSNS = [
    f"postgresql://u:{SECRET}@db:1/shop?sslmode=require",
    f"postgres://u:{quote('@/:?#' + SECRET, safe='')}@db/shop",
    f"postgresql://db/shop?user=u&password={SECRET}&sslpassword={SECRET}",
    f"postgresql://u:x?{SECRET}@db/shop",
    f"host=db password={SECRET} user=u dbname=shop",
    f"host=db password='a://{SECRET}@x \\' y' sslpassword={SECRET} oauth_client_secret={SECRET}",
]


@pytest.mark.parametrize("dsn", GOOD_DSNS)
def test_a_password_in_a_dsn_is_not_shown(dsn: str) -> None:
    source = SourceConfig("p", dsn=dsn)
    assert SECRET in source.conninfo()
    assert SECRET not in repr(source) + redacted(dsn)
    assert "db" in repr(source)
    assert "db" in redacted(dsn)


@settings(max_examples=300)
@example("@[", "?]/")  # an IPv6 address to libpq
@example("@a,[", "?@]/")
@given(
    st.text(st.sampled_from("a1:@/?#&=%' \\[]"), max_size=6), st.text(st.sampled_from("a1:@/?#&=%' \\[]"), max_size=6)
)
def test_no_password_gets_out_however_it_is_written(before: str, after: str) -> None:
    password = before + SECRET + after
    for dsn in (f"postgresql://u:{password}@db/shop", f"host=db password={password}", f"host=db password='{password}'"):
        try:
            shown = repr(SourceConfig("p", dsn=dsn))
        except ConfigError as error:
            shown = f"{error} {error.hint}"
        assert SECRET not in shown + redacted(dsn)


def test_secrets_are_in_no_repr() -> None:
    config = PipelineConfig(
        "shop",
        SourceConfig("p", host="db", password=SECRET, keywords={"sslpassword": SECRET}),
        DestinationConfig("bigquery", {"credentials": SECRET, "path": f"md:?motherduck_token={SECRET}"}),
        StateConfig(f"postgresql+psycopg://u:{SECRET}@db/state?password={SECRET}"),
    )
    assert SECRET not in repr(config)
    assert "DestinationConfig('bigquery', options: credentials, path)" in repr(config)
    assert "postgresql+psycopg://u:***@db/state" in repr(config)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("sqlite:////srv/shop.state.db", "sqlite:////srv/shop.state.db"),
        ("postgresql://db:5432/shop?sslmode=require", "postgresql://db:5432/shop?sslmode=require"),
        ("postgresql://u@db/shop", "postgresql://u@db/shop"),
        ("postgresql://u:pw@db/shop?token=a&x=1", "postgresql://u:***@db/shop?token=***&x=1"),
        ("user=u host=db", "user=u host=db"),
        ("host=db password=pw", "password=*** host=db"),
        ("not a dsn", "***"),
    ],
)
def test_what_is_no_secret_stays_readable(text: str, shown: str) -> None:
    assert redacted(text) == shown


@pytest.mark.parametrize("url", ["", "shop.db", "mysql://db/x", "postgresql://u:a@b@db/x", "postgresql://db:port/x"])
def test_a_state_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigError, match="is not the URL of a state store") as caught:
        StateConfig(url)
    assert caught.value.field == "state.url"
    assert not url or url not in str(caught.value)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_state_in_memory_is_no_state(url: str) -> None:
    with pytest.raises(ConfigError, match="in memory"):
        StateConfig(url)


def test_a_postgres_state_url_gets_the_driver_we_install() -> None:
    assert StateConfig("postgresql://u:pw@db/x").url == "postgresql+psycopg://u:pw@db/x"


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: BatchConfig(max_rows=0), "batch.max_rows"),
        (lambda: BatchConfig(max_bytes=-1), "batch.max_bytes"),
        (lambda: BatchConfig(max_age=float("nan")), "batch.max_age"),
        (lambda: BatchConfig(max_age=float("inf")), "batch.max_age"),
        (lambda: CopyConfig(workers=0), "copy.workers"),
        (lambda: CopyConfig(connections_per_table=0), "copy.connections_per_table"),
        (lambda: DestinationConfig(""), "destination.type"),
    ],
)
def test_limits(make: type, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.field == field


def test_a_configuration_travels_to_another_process() -> None:
    config = PipelineConfig(
        "shop",
        SourceConfig("p", host="db", tables=(TableName("public", "orders"),)),
        DestinationConfig("duckdb", {"path": "x"}),
        StateConfig("sqlite:///x.db"),
    )
    assert pickle.loads(pickle.dumps(config)) == config  # noqa: S301 - our own bytes
