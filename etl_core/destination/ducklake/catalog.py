"""Where a lake's catalog and its data are, as the configuration says it. Opens and connects to nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from etl_core.config_values import config_error
from etl_core.destination.options import Options

DATABASE = "lake"
"""What the lake is called where it is attached."""
Kind = Literal["duckdb", "sqlite", "postgres"]

_SQLITE = "sqlite:"
_POSTGRES = "postgres:"
_URLS = ("postgres://", "postgresql://")
_S3 = "s3://"
_VARIABLES = {
    "s3_key_id": ("AWS_ACCESS_KEY_ID",),
    "s3_secret": ("AWS_SECRET_ACCESS_KEY",),
    "s3_session_token": ("AWS_SESSION_TOKEN",),
    "s3_region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
    "s3_endpoint": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
}


@dataclass(frozen=True, slots=True)
class Catalog:
    """`address` is a file's path, or what libpq is told."""

    kind: Kind
    address: str = field(repr=False)

    @property
    def path(self) -> Path | None:
        """The file; None of a database on a server."""
        return None if self.kind == "postgres" else Path(self.address)

    @property
    def attached(self) -> str:
        """What ATTACH is given. It may hold a password."""
        prefix = "" if self.kind == "duckdb" else f"{self.kind}:"
        return f"ducklake:{prefix}{self.address}"

    def __str__(self) -> str:
        """For people, without a password."""
        if self.kind != "postgres":
            return self.address
        given = _libpq(self.address)
        return "the catalog in PostgreSQL database {} on {}".format(
            given.get("dbname", given.get("service", "")), given.get("host", given.get("hostaddr", "this machine"))
        )


@dataclass(frozen=True, slots=True)
class Storage:
    """Where the data files are; `s3` are the parameters of DuckDB's secret, empty for a directory."""

    path: str
    s3: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    @property
    def directory(self) -> Path | None:
        return None if self.path.startswith(_S3) else Path(self.path)


def read_catalog(text: str, password: str | None = None) -> Catalog:
    """What the option `catalog` says, with the password of a user of PostgreSQL. Raises ConfigError."""
    if text.startswith((_POSTGRES, *_URLS)):
        address = text if text.startswith(_URLS) else text.removeprefix(_POSTGRES)
        return Catalog("postgres", _with_password(address, password))
    if password is not None:
        raise config_error("destination.catalog_password", "belongs to a catalog in PostgreSQL", hint="remove it")
    if text.startswith(_SQLITE):
        return Catalog("sqlite", _absolute(text.removeprefix(_SQLITE)))
    return Catalog("duckdb", _absolute(text))


def read_storage(options: Options) -> Storage:
    """What `data` and the options of S3 say, and the variables of AWS where these say nothing. Raises ConfigError."""
    path: str = options["data"]
    if path.startswith(_S3):
        return Storage(path, tuple(_s3_secret(options)))
    for name in _VARIABLES:
        if options[name] is not None:
            raise config_error(f"destination.{name}", "belongs to data on s3://", hint="remove it")
    if "://" in path:
        raise config_error("destination.data", "must be a directory, or s3://bucket/prefix", hint="write one of them")
    return Storage(_absolute(path) + os.sep)


def _s3_secret(options: Options) -> list[tuple[str, str]]:
    found = {name: options[name] or _variable(names) for name, names in _VARIABLES.items()}
    if options["s3_secret"]:  # the environment's token belongs to another key
        found["s3_session_token"] = options["s3_session_token"]
    secret = [
        (parameter, str(found[name]))
        for name, parameter in (
            ("s3_key_id", "KEY_ID"),
            ("s3_secret", "SECRET"),
            ("s3_session_token", "SESSION_TOKEN"),
            ("s3_region", "REGION"),
        )
        if found[name]
    ]
    endpoint = found["s3_endpoint"]
    if endpoint:
        scheme, _, host = endpoint.rpartition("://")
        secret += [("ENDPOINT", host.rstrip("/")), ("URL_STYLE", "path"), ("USE_SSL", str(scheme != "http").lower())]
    return secret


def _variable(names: tuple[str, ...]) -> str | None:
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


def _absolute(path: str) -> str:
    return str(Path(path).absolute())


def _libpq(address: str) -> Mapping[str, Any]:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        return conninfo_to_dict(address)
    except psycopg.Error:
        return {}  # libpq's message quotes the string, and with it the password


def _with_password(address: str, password: str | None) -> str:
    from psycopg.conninfo import make_conninfo

    given = _libpq(address)
    if not given or any("@" in str(given.get(key) or "") for key in ("host", "hostaddr", "dbname")):
        raise config_error(
            "destination.catalog",
            "is not a connection string that libpq understands",
            hint="write postgresql://user@host:5432/database",
        )
    if given.get("password") is not None:
        raise config_error(
            "destination.catalog",
            "holds a password, which is shown on pages and in messages",
            hint="remove it there, and write catalog_password: ${VARIABLE}; libpq also looks into PGPASSWORD and the"
            " password file",
        )
    if not given.keys() & {"dbname", "service"}:
        raise config_error(
            "destination.catalog", "names no database", hint="write postgresql://user@host:5432/database"
        )
    return address if password is None else make_conninfo(address, password=password)
