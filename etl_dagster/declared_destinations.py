"""Resources of destinations that are nothing but what their type declares: DuckLake, Iceberg, Snowflake."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from dagster import EnvVar
from pydantic import ConfigDict, ValidationInfo, field_validator

from etl_core.destination.declaration import DestinationType
from etl_core.destination.ducklake.declaration import DUCKLAKE
from etl_core.destination.iceberg.declaration import ICEBERG
from etl_core.destination.registry import find_type
from etl_core.destination.snowflake.declaration import SNOWFLAKE
from etl_dagster.destination_resource import DestinationResource, option_field
from etl_dagster.secrets import literal, plain, refuse_literal_secret

if TYPE_CHECKING:
    from etl_core.destination.reader_names import ReaderNames
    from etl_core.identifiers import TableName
    from etl_core.schema.table import TableSchema


class DeclaredDestinationResource(DestinationResource):
    """The fields are the options. What holds a secret is `dg.EnvVar("…")` of the variable that has it."""

    model_config = ConfigDict(hide_input_in_errors=True)

    declared: ClassVar[DestinationType]
    type_name: ClassVar[str]

    @field_validator("*", mode="before")
    @classmethod
    def _no_secret(cls, value: Any, info: ValidationInfo) -> Any:
        # At run time Dagster builds the resource once more with what its variables hold; that is on no page.
        if not isinstance(value, str) or isinstance(value, EnvVar) or value in os.environ.values():
            return value
        name = str(info.field_name)
        if any(option.secret and option.name == name for option in cls.declared.options or ()):
            raise ValueError(
                f'{name} is a secret, which Dagster would show on its pages: give dg.EnvVar("…") of the variable that'
                " holds it"
            )
        return refuse_literal_secret(name, value)

    @property
    def type(self) -> str:
        return self.type_name

    def options(self) -> dict[str, Any]:
        return {name: value for name, value in self._each(plain) if value is not None}

    def check(self) -> None:
        self._known()

    def table_uri(self, table: "TableName") -> str:
        return "/".join((f"{self.type}:/", *filter(None, (self.database_name(), *self.table_path(table)))))

    def database_name(self) -> str | None:
        readers = self._readers()
        return None if readers is None else readers.database

    def column_types(self, schema: "TableSchema") -> Sequence[str]:
        readers = self._readers()
        return super().column_types(schema) if readers is None else [column.type for column in readers.columns(schema)]

    def _readers(self) -> "ReaderNames | None":
        return find_type(self.type).reader_names(self._known())

    def _known(self) -> Mapping[str, Any]:
        """The options but for those that variables hold, which are None. Raises ConfigError."""
        variables = {name for name in type(self).model_fields if isinstance(getattr(self, name), EnvVar)}
        given = {name: value for name, value in self._each(literal) if value is not None}
        return find_type(self.type).read_options(given, elsewhere=variables)

    def _each(self, read: Callable[[str | None], str | None]) -> Iterator[tuple[str, Any]]:
        for name in type(self).model_fields:
            value = getattr(self, name)
            yield name, read(value) if isinstance(value, str) else value


class DuckLakeDestinationResource(DeclaredDestinationResource):
    """A lake of Parquet files with its catalog in a DuckDB file, SQLite or PostgreSQL."""

    declared = DUCKLAKE
    type_name = "ducklake"

    catalog: str = option_field(DUCKLAKE, "catalog")
    catalog_password: str | None = option_field(DUCKLAKE, "catalog_password")
    data: str = option_field(DUCKLAKE, "data")
    s3_key_id: str | None = option_field(DUCKLAKE, "s3_key_id")
    s3_secret: str | None = option_field(DUCKLAKE, "s3_secret")
    s3_session_token: str | None = option_field(DUCKLAKE, "s3_session_token")
    s3_region: str | None = option_field(DUCKLAKE, "s3_region")
    s3_endpoint: str | None = option_field(DUCKLAKE, "s3_endpoint")
    compact_every: str = option_field(DUCKLAKE, "compact_every")
    keep_snapshots: str = option_field(DUCKLAKE, "keep_snapshots")
    staging: str = option_field(DUCKLAKE, "staging")


class IcebergDestinationResource(DeclaredDestinationResource):
    """Tables of an Iceberg REST catalog."""

    declared = ICEBERG
    type_name = "iceberg"

    uri: str = option_field(ICEBERG, "uri")
    warehouse: str = option_field(ICEBERG, "warehouse")
    credential: str | None = option_field(ICEBERG, "credential")
    token: str | None = option_field(ICEBERG, "token")
    oauth2_server_uri: str | None = option_field(ICEBERG, "oauth2_server_uri")
    scope: str | None = option_field(ICEBERG, "scope")
    s3_endpoint: str | None = option_field(ICEBERG, "s3_endpoint")
    s3_region: str | None = option_field(ICEBERG, "s3_region")
    s3_access_key: str | None = option_field(ICEBERG, "s3_access_key")
    s3_secret_key: str | None = option_field(ICEBERG, "s3_secret_key")
    compact_every: str = option_field(ICEBERG, "compact_every")
    keep_snapshots: str = option_field(ICEBERG, "keep_snapshots")
    staging: str = option_field(ICEBERG, "staging")


class SnowflakeDestinationResource(DeclaredDestinationResource):
    """A database in Snowflake."""

    declared = SNOWFLAKE
    type_name = "snowflake"

    account: str = option_field(SNOWFLAKE, "account")
    user: str = option_field(SNOWFLAKE, "user")
    private_key_file: str = option_field(SNOWFLAKE, "private_key_file")
    private_key_passphrase: str | None = option_field(SNOWFLAKE, "private_key_passphrase")
    role: str | None = option_field(SNOWFLAKE, "role")
    warehouse: str | None = option_field(SNOWFLAKE, "warehouse")
    database: str = option_field(SNOWFLAKE, "database")
    staging: str = option_field(SNOWFLAKE, "staging")
