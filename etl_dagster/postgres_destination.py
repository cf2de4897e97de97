"""The resource of PostgreSQL as a destination."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, field_validator

from etl_core.destination.postgres.declaration import POSTGRES
from etl_core.destination.registry import find_type
from etl_dagster.addresses import parse_address
from etl_dagster.destination_resource import DestinationResource, option_field
from etl_dagster.secrets import literal, plain, refuse_literal_secret

if TYPE_CHECKING:
    from etl_core.identifiers import TableName
    from etl_core.schema.table import TableSchema


class PostgresDestinationResource(DestinationResource):
    """A PostgreSQL database, in which the tables are called as at the source.

    `dsn` with a password is `dg.EnvVar("…")` of the variable that holds it.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    dsn: str = option_field(POSTGRES, "dsn")
    staging: str = option_field(POSTGRES, "staging")

    @field_validator("dsn")
    @classmethod
    def _no_secret(cls, dsn: str) -> str:
        return refuse_literal_secret("dsn", dsn)

    @property
    def type(self) -> str:
        return "postgres"

    def options(self) -> dict[str, Any]:
        return {"dsn": plain(self.dsn), "staging": plain(self.staging)}

    def check(self) -> None:
        variables = {name for name in type(self).model_fields if literal(getattr(self, name)) is None}
        given = {name: getattr(self, name) for name in type(self).model_fields if name not in variables}
        find_type(self.type).read_options(given, elsewhere=variables)

    def table_uri(self, table: "TableName") -> str:
        """Without the server where that is not known until libpq has read its own variables."""
        address = parse_address(plain(self.dsn) or "")
        return "/".join((address.uri or "postgresql:/", table.namespace, table.name))

    def database_name(self) -> str | None:
        dsn = literal(self.dsn)
        return None if dsn is None else parse_address(dsn).database

    def column_types(self, schema: "TableSchema") -> Sequence[str]:
        from etl_core.destination.postgres.readers import PostgresReaderNames

        return [column.type for column in PostgresReaderNames("").columns(schema)]
