"""What a person decides about a pipeline, checked once, as frozen values. Nothing here connects.

Wrong values raise ConfigError with the dotted field (`source.publication`). Neither `repr` nor an error ever
holds a password; `SourceConfig.conninfo()` and `StateConfig.url` do. `etl_core.config_file` reads it all from YAML.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from etl_core.config_secrets import read_password, run_password_command
from etl_core.config_tables import TableSettings as TableSettings
from etl_core.config_tables import check_hash_key
from etl_core.config_telemetry import TelemetryConfig
from etl_core.config_values import WHOLE_URL, check_tables, unknown_key
from etl_core.config_values import BatchConfig as BatchConfig
from etl_core.config_values import CopyConfig as CopyConfig
from etl_core.config_values import config_error as config_error
from etl_core.config_values import parse_duration as parse_duration
from etl_core.config_values import parse_size as parse_size
from etl_core.identifiers import TableName, check_pipeline_name
from etl_core.policies import PolicySettings, TablePolicy
from etl_core.table_pattern import TablePattern, TableSelection
from etl_core.type_options import ENUM, read_types
from etl_core.write_mode import WriteMode

if TYPE_CHECKING:
    from sqlalchemy import URL
from etl_core.silence import SILENCE

_Conninfo: TypeAlias = dict[str, str]

_HIDDEN = "***"
_SECRET = "password|secret|token|_key"  # noqa: S105 - parts of names, not a secret
_URL_SECRET = re.compile(rf"([?&][^=&]*(?:{_SECRET})[^=&]*=)[^&#]*", re.IGNORECASE)
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_URL_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+_-]*):")
_URL_TYPES = {"postgresql": "postgres"}
"""Schemes that are not the name of their destination type."""
_NAME_BYTES = 63  # NAMEDATALEN - 1


def is_secret(keyword: str) -> bool:
    """Whether the value of a connection keyword is not to be shown."""
    return re.search(_SECRET, keyword) is not None


def redacted(dsn_or_url: str) -> str:
    """A connection URL or libpq keyword string with its secrets as `***`, to be shown.

    What cannot be told from a secret is hidden too: everything from the first colon to the last `@`, and a
    keyword string that libpq cannot read.
    """
    if _URL.match(dsn_or_url):
        scheme, _, rest = _URL_SECRET.sub(rf"\1{_HIDDEN}", dsn_or_url).partition("://")
        head, at, tail = rest.rpartition("@")
        user, colon, _ = head.partition(":")
        return f"{scheme}://{user}{':' + _HIDDEN if colon else ''}{at}{tail}"
    parsed = _parse_dsn(dsn_or_url)
    return _HIDDEN if parsed is None else _redacted_conninfo(parsed)


def _redacted_conninfo(parameters: _Conninfo) -> str:
    shown = {key: _HIDDEN if is_secret(key) else value for key, value in parameters.items()}
    return make_conninfo("", **shown)


def _parse_dsn(dsn: str) -> _Conninfo | None:
    # libpq's own words quote pieces of the string, a password's among them: they are dropped.
    try:
        return {key: str(value) for key, value in conninfo_to_dict(dsn).items()}
    except (psycopg.Error, UnicodeError):
        return None


@dataclass(frozen=True, slots=True, repr=False)
class SourceConfig:
    """The database to replicate: `dsn` (a URL or a libpq keyword string) or host, port, database and user.

    `keywords` are other connection keywords as libpq knows them (`sslmode`, `connect_timeout` …). `password_file`
    holds the password alone, `password_command` (arguments, no shell) prints it; they are read and run at each
    `conninfo()`. Without a password libpq looks into PGPASSWORD and the password file of its own. A connection that is
    silent for `silence_timeout` seconds is given up. `tables` None replicates what the publication publishes.
    """

    publication: str
    dsn: str | None = None
    host: str | None = None
    port: int | None = None
    database: str | None = None
    user: str | None = None
    password: str | None = None
    password_file: Path | None = None
    password_command: tuple[str, ...] | None = None
    silence_timeout: float = SILENCE
    tables: tuple[TableName | TablePattern, ...] | None = None
    keywords: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_publication(self.publication)
        if self.tables is not None:
            check_tables("source.tables", self.tables)
        if self.password_command is not None and not self.password_command:
            raise config_error("source.password_command", "must name a program")
        if not self.silence_timeout > 0:
            raise config_error("source.silence_timeout", "must be longer than 0 s")
        _check_keywords(self.keywords)
        _check_address(self._parameters(), self.dsn)

    @property
    def selection(self) -> TableSelection | None:
        """Which tables are replicated; None for all that the publication publishes."""
        return None if self.tables is None else TableSelection.of(self.tables)

    def conninfo(self) -> str:
        """The libpq connection string, password included; to be asked for at each connection.

        Raises ConfigError if `password_file` cannot be read or `password_command` cannot be run, SourceUnavailable if
        the command fails.
        """
        parameters = self._parameters()
        if self.password_file is not None:
            parameters["password"] = read_password(self.password_file)
        elif self.password_command is not None:
            parameters["password"] = run_password_command(self.password_command)
        return make_conninfo("", **parameters)

    def _parameters(self) -> _Conninfo:
        """What libpq is told, but for the password of a file or command. Raises ConfigError for what is said twice."""
        parameters: _Conninfo = {}
        if self.dsn is not None:
            parsed = _parse_dsn(self.dsn) if self.dsn.strip() else None
            if parsed is None:
                raise config_error(
                    "source.dsn",
                    "is not a connection string that libpq understands",
                    hint="write postgresql://user@host:5432/database (special characters percent-encoded)"
                    " or host=… dbname=… user=…",
                )
            parameters = parsed
        own = {
            "host": ("host", self.host),
            "port": ("port", None if self.port is None else str(self.port)),
            "database": ("dbname", self.database),
            "user": ("user", self.user),
            "password": ("password", self.password),
            **{key: (key, value) for key, value in self.keywords.items()},
        }
        for name, (keyword, value) in own.items():
            if value is None:
                continue
            if keyword in parameters:
                raise config_error(f"source.{name}", "is in source.dsn too", hint="say it in one of the two places")
            parameters[keyword] = value
        sources = {"password_file": self.password_file, "password_command": self.password_command}
        given = [name for name, value in sources.items() if value is not None]
        if len(given) + ("password" in parameters) > 1:
            raise config_error(
                f"source.{given[-1]}", "there is another password beside it", hint="say it in one of the two places"
            )
        return parameters

    def __repr__(self) -> str:
        conninfo = _redacted_conninfo(self._parameters())
        return f"SourceConfig({conninfo!r}, publication={self.publication!r}, tables={str(self.selection)!r})"


def _check_publication(name: str) -> None:
    if not name or "\0" in name or len(name.encode()) > _NAME_BYTES:
        raise config_error("source.publication", f"must be a name of 1 to {_NAME_BYTES} bytes")


_OWN_NAMES = (
    "publication",
    "dsn",
    "host",
    "port",
    "database",
    "user",
    "password",
    "password_file",
    "password_command",
    "silence_timeout",
    "tables",
)
_INSTEAD = {"dbname": "write source.database", "replication": "etl decides it", "client_encoding": "it is always UTF8"}
NOT_KEYWORDS = frozenset(_INSTEAD)
"""Connection keywords of libpq that cannot be set."""


def _check_keywords(keywords: Mapping[str, str]) -> None:
    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()} - _INSTEAD.keys()
    for keyword in keywords:
        where = f"source.{keyword}"
        if keyword in _INSTEAD:
            raise config_error(where, "cannot be set", hint=_INSTEAD[keyword])
        if keyword not in known or keyword in _OWN_NAMES:
            raise unknown_key(
                where,
                known.union(_OWN_NAMES),
                what="is unknown: neither an option of source nor a connection keyword of libpq",
            )


def _check_address(parameters: _Conninfo, dsn: str | None) -> None:
    for keyword in ("replication", "client_encoding"):
        if keyword in parameters:
            raise config_error("source.dsn", f"{keyword} cannot be set", hint=_INSTEAD[keyword])
    if dsn is None and not parameters.keys() & {"host", "hostaddr", "service", "dbname"}:
        raise config_error(
            "source",
            "says neither dsn nor host",
            hint="add dsn: postgresql://user@host:5432/database, or host, database and user",
        )
    # An @ or / in a password that is not percent-encoded makes the rest of the password a host, a port or a
    # database, and these stand in the messages of a connection that fails. It stops here, unseen.
    port = parameters.get("port", "")
    if _spilled_password(dsn or "") or not re.fullmatch(r"[\d,]*", port):
        raise config_error(
            "source.dsn",
            "has no valid host and port",
            hint="percent-encode special characters of user and password, or write the password as source.password",
        )
    if any(not 1 <= int(number) <= 65535 for number in port.split(",") if number):
        raise config_error("source" if dsn else "source.port", "the port must lie between 1 and 65535")


def _spilled_password(dsn: str) -> bool:
    """Whether a URL has an @ behind the one at which libpq ends user and password: the first, if before any /."""
    if not _URL.match(dsn):
        return False
    rest = dsn.partition("://")[2]
    address = rest.partition("@")[2] if "@" in rest.partition("/")[0] else rest
    # In the brackets of an IPv6 address a ? does not begin the parameters.
    address = re.sub(r"\[[^\]]*\]", lambda host: host[0].replace("?", ""), address)
    return "@" in address.partition("?")[0]


@dataclass(frozen=True, slots=True, repr=False)
class DestinationConfig:
    """Where to replicate to. `options` belong to the destination `type`, which checks them; any may be a secret.

    Relative paths in them are in `folder`; None is the current folder of the process.
    """

    type: str
    options: Mapping[str, object] = field(default_factory=dict)
    folder: Path | None = None

    def __post_init__(self) -> None:
        if not self.type:
            raise config_error("destination.type", "must name a destination")

    @classmethod
    def from_url(cls, url: str, folder: Path | None = None) -> DestinationConfig:
        """Of `duckdb:shop.duckdb`, `postgresql://…` and the like; the type reads the rest when it is asked for."""
        match = _URL_SCHEME.match(url)
        if match is None:
            raise config_error("destination", "must be a mapping or a URL", hint="write for example duckdb:shop.duckdb")
        return cls(_URL_TYPES.get(match[1], match[1]), {WHOLE_URL: url}, folder)

    def __repr__(self) -> str:
        return f"DestinationConfig({self.type!r}, options: {', '.join(self.options) or 'none'})"


@dataclass(frozen=True, slots=True, repr=False)
class StateConfig:
    """The state store, as an SQLAlchemy URL: `sqlite:///shop.state.db` or `postgresql+psycopg://…`.

    `postgresql://` becomes `postgresql+psycopg://`, the only driver we install.
    """

    url: str

    def __post_init__(self) -> None:
        url = _parse_url(self.url)
        if (
            url is None
            or url.drivername not in ("sqlite", "postgresql", "postgresql+psycopg")
            or "@" in (url.host or "")  # a password that is not percent-encoded
        ):
            raise config_error(
                "state.url",
                "is not the URL of a state store",
                hint="write sqlite:///shop.state.db or postgresql+psycopg://user@host/database",
            )
        if url.drivername == "sqlite" and url.database in (None, "", ":memory:"):
            raise config_error("state.url", "keeps the state in memory only", hint="write sqlite:///shop.state.db")
        if url.drivername == "postgresql":
            object.__setattr__(self, "url", "postgresql+psycopg" + self.url.removeprefix("postgresql"))

    def __repr__(self) -> str:
        return f"StateConfig({redacted(self.url)!r})"


def _parse_url(url: str) -> URL | None:
    # Imported here: half of what importing this module would take.
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url)
    except (ArgumentError, ValueError):
        return None


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """One pipeline.

    With `allow_append_only` tables without a replica identity may be published, with their inserts alone. `tables` are
    settings by table or pattern; of two that match one, the later decides. `write_mode` is that of tables for which
    they have none, and so are `policy` and the words of `types`, the options of types. `hash_key` is a secret.
    """

    pipeline: str
    source: SourceConfig
    destination: DestinationConfig
    state: StateConfig
    batch: BatchConfig = field(default_factory=BatchConfig)
    copy: CopyConfig = field(default_factory=CopyConfig)
    allow_append_only: bool = False
    tables: tuple[TableSettings, ...] = ()
    hash_key: str | None = field(default=None, repr=False)
    write_mode: WriteMode = WriteMode.MIRROR
    policy: TablePolicy = field(default_factory=TablePolicy)
    types: Mapping[str, str] = field(default_factory=dict)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)

    @property
    def write_modes(self) -> list[tuple[str, WriteMode]]:
        """Each that some table may have, with the dotted field that says so."""
        settings = [(f"{one.where}.write_mode", one.write_mode) for one in self.tables if one.write_mode is not None]
        return [("write_mode", self.write_mode), *settings]

    @property
    def enum_fields(self) -> list[str]:
        """The dotted fields by which enums of some table are enums at the destination, too."""
        said = [("types", self.types)]
        for one in self.tables:
            said += [(f"{one.where}.types", one.types)]
            said += [(f"{one.where}.columns.{ENUM}", one.columns.types.get(ENUM, {}))]
        return [f"{where}.{key}" for where, words in said for key, word in words.items() if word == ENUM]

    def write_mode_of(self, table: TableName) -> WriteMode:
        """As the settings say it; the last entry that matches the table and has one decides."""
        said = [one.write_mode for one in self.tables if one.write_mode is not None and one.matches(table)]
        return said[-1] if said else self.write_mode

    def says_policy(self, table: TableName) -> bool:
        """Whether an entry of `tables` that matches the table says a policy."""
        return any(one.matches(table) and one.policy != PolicySettings() for one in self.tables)

    def policy_of(self, table: TableName) -> TablePolicy:
        """As the settings say it; of two entries that match the table and say the same, the later decides."""
        policy = self.policy
        for one in self.tables:
            if one.matches(table):
                policy = one.policy.over(policy)
        return policy

    def __post_init__(self) -> None:
        check_pipeline_name(self.pipeline)
        check_hash_key("hash_key", self.hash_key)
        object.__setattr__(self, "types", read_types("types", self.types))
