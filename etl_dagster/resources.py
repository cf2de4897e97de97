"""Dagster resources: the source with its replication connection, and the state store.

`PostgresReplicationResource` puts them together with a destination and opens the pipeline; use it in your own ops and
assets as the assets, the stream and the checks of this package do. Nothing connects before `pipeline()` or `connect()`
is called.

A password never stands in a resource: Dagster shows the configuration of resources on a page. Name the environment
variable that holds it (`password_env`), or give the whole address as `dg.EnvVar("…")`.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import ConfigDict, Field, field_validator

from etl_dagster.addresses import Address, parse_address
from etl_dagster.destination_resource import DestinationResource
from etl_dagster.secrets import is_secret_name, literal, plain, refuse_literal_secret

if TYPE_CHECKING:
    from etl_core.config import PipelineConfig
    from etl_core.control import PipelineControl
    from etl_core.pipeline import Pipeline
    from etl_core.replication.observer import Observer
    from etl_core.shape.shapes import Shapes
    from etl_core.source.connection import Connection
    from etl_core.state.store import StateStore
    from etl_core.table_pattern import TableSelection
    from etl_dagster.tables import ReplicatedTable


_HIDE = ConfigDict(hide_input_in_errors=True)
"""A refused value is not repeated in the error."""


class StateStoreResource(dg.ConfigurableResource):
    """Where positions, table states and schemas are kept: SQLite for one machine, PostgreSQL for several."""

    model_config = _HIDE

    url: str = Field(
        description="SQLAlchemy URL: sqlite:///path, or postgresql://user@host/database. With a password: dg.EnvVar."
    )

    @field_validator("url")
    @classmethod
    def _no_secret(cls, url: str) -> str:
        return refuse_literal_secret("url", url)

    def open(self, pipeline: str) -> "StateStore":
        """The store of one pipeline; the caller closes it. Raises ConfigError."""
        from etl_core.config import StateConfig
        from etl_core.state.sql_store import open_store

        return open_store(StateConfig(plain(self.url) or "").url, pipeline)


class PostgresReplicationResource(dg.ConfigurableResource):
    """One pipeline: a publication of a PostgreSQL database, replicated into a destination.

    Give `dsn`, or `host`, `database` and the rest. `name` names the replication slot (`etl_<name>`), the rows in the
    state store and the runs; two pipelines must not share it.
    """

    model_config = _HIDE

    name: str = Field(description="The pipeline's name: the slot is etl_<name>.")
    publication: str = Field(description="Created for `tables` when it does not exist and rights allow.")
    dsn: str | None = Field(
        default=None, description="postgresql://user@host:5432/database, or libpq keywords. With a password: dg.EnvVar."
    )
    host: str | None = None
    port: int | None = None
    database: str | None = None
    user: str | None = None
    password_env: str | None = Field(
        default=None, description="The environment variable that holds the password (default: libpq's PGPASSWORD)."
    )
    keywords: dict[str, str] = Field(default={}, description="Other libpq keywords: sslmode, connect_timeout …")
    tables: list[str] | None = Field(
        default=None, description="namespace.table, quoted as in SQL; default: what the publication publishes."
    )
    batch_max_rows: int = 100_000
    batch_max_bytes: str = "16MiB"
    batch_max_age: str = "1s"
    copy_connections: int = Field(default=4, description="Connections that copy one table at a time.")
    allow_append_only: bool = Field(
        default=False, description="Whether tables without a replica identity may be replicated, their inserts alone."
    )
    table_settings: dict[str, Any] = Field(
        default={}, description="By table or pattern, as `tables` in the YAML of etl: {columns: {exclude: [note]}}."
    )
    hash_key_env: str | None = Field(
        default=None, description="The environment variable that holds the key for columns that are hashed."
    )
    write_mode: str = Field(
        default="mirror",
        description="mirror; soft_delete: deleted rows stay, with _etl_deleted_at; append: a row for every change;"
        " history: that, and views of the versions of each row; per table in table_settings.",
    )
    schema_changes: str = Field(
        default="apply",
        description="apply, add_only, approve or ignore: which changes of columns are applied; per table in"
        " table_settings.",
    )
    recopy: str = Field(default="auto", description="auto, or ask: a table that needs a new copy waits for a person.")
    recopy_max_bytes: str | None = Field(
        default=None, description="A size such as 50GiB: a larger table that needs a new copy waits for a person."
    )
    types: dict[str, Any] = Field(
        default={}, description="Options of types: {numeric: decimal(38,10)}; per table or column in table_settings."
    )
    state: dg.ResourceDependency[StateStoreResource]
    destination: dg.ResourceDependency[DestinationResource]

    @field_validator("dsn")
    @classmethod
    def _no_secret(cls, dsn: str | None) -> str | None:
        return None if dsn is None else refuse_literal_secret("dsn", dsn)

    @field_validator("keywords")
    @classmethod
    def _no_secret_keyword(cls, keywords: dict[str, str]) -> dict[str, str]:
        for name in filter(is_secret_name, keywords):
            raise ValueError(
                f"keywords holds {name}, which Dagster would show on its pages: leave it out and name the environment"
                " variable that holds the password (password_env)"
            )
        return keywords

    @field_validator("types", mode="before")
    @classmethod
    def _null_as_a_word(cls, types: Any) -> Any:
        """YAML's null is a word of out_of_range, and Dagster takes none for a value of a mapping."""
        if not isinstance(types, dict):
            return types
        return {option: "null" if word is None else word for option, word in types.items()}

    def config(self) -> "PipelineConfig":
        """What `etl_core` is told, secrets included. Raises ConfigError."""
        from etl_core.config import (
            BatchConfig,
            CopyConfig,
            PipelineConfig,
            SourceConfig,
            StateConfig,
            parse_duration,
            parse_size,
        )
        from etl_core.config_tables import read_tables, read_write_mode
        from etl_core.policies import TablePolicy, read_policy
        from etl_core.type_options import read_types

        source = SourceConfig(
            publication=self.publication,
            dsn=plain(self.dsn),
            host=plain(self.host),
            port=self.port,
            database=plain(self.database),
            user=plain(self.user),
            password=None if self.password_env is None else plain(dg.EnvVar(self.password_env)),
            tables=self.selection().entries or None,
            keywords=self.keywords,
        )
        return PipelineConfig(
            self.name,
            source,
            self.destination.config(),
            StateConfig(plain(self.state.url) or ""),
            BatchConfig(self.batch_max_rows, parse_size(self.batch_max_bytes), parse_duration(self.batch_max_age)),
            CopyConfig(connections_per_table=self.copy_connections),
            allow_append_only=self.allow_append_only,
            tables=read_tables("table_settings", self.table_settings),
            hash_key=None if self.hash_key_env is None else plain(dg.EnvVar(self.hash_key_env)),
            write_mode=read_write_mode("write_mode", self.write_mode),
            policy=read_policy("", self.policies()).over(TablePolicy()),
            types=read_types("types", self.types),
        )

    def policies(self) -> dict[str, object]:
        """The policies as the configuration has them."""
        return {
            "schema_changes": self.schema_changes,
            "recopy": self.recopy,
            "recopy_max_bytes": self.recopy_max_bytes,
        }

    def shapes(self) -> "Shapes":
        """What the tables are at the destination, for whoever moves no rows: no secret is asked for."""
        from etl_core.config_tables import read_tables, read_write_mode
        from etl_core.policies import TablePolicy, read_policy
        from etl_core.shape.shapes import Shapes
        from etl_core.type_options import read_types

        settings = read_tables("table_settings", self.table_settings)
        mode, types = read_write_mode("write_mode", self.write_mode), read_types("types", self.types)
        changes = read_policy("", self.policies()).over(TablePolicy()).schema_changes
        return Shapes(settings, write_mode=mode, types=types, schema_changes=changes)

    def source_address(self) -> Address:
        """Where the source is, as far as the configuration says it without a variable."""
        dsn = literal(self.dsn)
        if dsn is not None:
            return parse_address(dsn)
        return Address(literal(self.host), str(self.port or 5432), literal(self.database))

    def selection(self) -> "TableSelection":
        """What `tables` selects. Raises ConfigError for what is no name or pattern."""
        from etl_core.config_values import ALL_PUBLISHED
        from etl_core.table_pattern import TableSelection, read_selection

        return TableSelection() if self.tables is None else read_selection("tables", self.tables, instead=ALL_PUBLISHED)

    @contextlib.contextmanager
    def pipeline(
        self, *, observer: "Observer | None" = None, stop: threading.Event | None = None
    ) -> "Iterator[Pipeline]":
        """The pipeline, closed at the end of the block. Connects to the source when it is used, not before."""
        from etl_core.pipeline import Pipeline

        with Pipeline(self.config(), observer=observer, stop=stop) as pipeline:
            yield pipeline

    @contextlib.contextmanager
    def control(self) -> "Iterator[PipelineControl]":
        """The pipeline without what moves rows, its state store migrated, closed at the end of the block."""
        from etl_core.control import PipelineControl

        with PipelineControl(self.config()) as control:
            control.store.migrate()
            yield control

    @contextlib.contextmanager
    def connect(
        self, role: str = "user", *, replication: bool = False, timeout: int | None = None
    ) -> "Iterator[Connection]":
        """A connection to the source with the settings replication needs, closed at the end of the block.

        It is called `etl_<name>_<role>` on the server. `timeout` bounds the connecting, and how long the server may be
        silent, in seconds.
        """
        from psycopg.conninfo import make_conninfo

        from etl_core.silence import SILENCE
        from etl_core.source.connection import connect

        conninfo = self.config().source.conninfo()
        if timeout is not None:
            conninfo = make_conninfo(conninfo, connect_timeout=timeout)
        with contextlib.closing(
            connect(conninfo, pipeline=self.name, role=role, replication=replication, silence=timeout or SILENCE)
        ) as connection:
            yield connection

    def table(self, name: str) -> "ReplicatedTable":
        """A replicated table, to be read without an IO manager."""
        from etl_core.destination.registry import build_destination
        from etl_core.identifiers import TableName
        from etl_dagster.tables import ReplicatedTable

        return ReplicatedTable(
            self.name,
            TableName.parse(name),
            lambda: self.state.open(self.name),
            lambda: build_destination(self.destination.config(), self.name),
            self.shapes,
        )
