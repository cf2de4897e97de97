"""What the resources of all destinations have in common."""

import abc
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from etl_core.destination.declaration import DestinationType

if TYPE_CHECKING:
    from etl_core.config import DestinationConfig
    from etl_core.identifiers import TableName
    from etl_core.schema.table import TableSchema


def option_field(declared: DestinationType, name: str) -> Any:
    """The field of an option, as the destination declares it."""
    [option] = [option for option in declared.options or () if option.name == name]
    default: Any = {} if option.kind == "mapping" else option.default
    return Field(default=... if option.required else default, description=option.help)


class DestinationResource(dg.ConfigurableResource, abc.ABC):
    """A destination: its registered type, its options, and how its tables are called in Dagster."""

    @property
    @abc.abstractmethod
    def type(self) -> str:
        """As `destination.type` in the YAML of `etl`."""

    @abc.abstractmethod
    def options(self) -> dict[str, Any]:
        """As the rest of `destination` there."""

    @abc.abstractmethod
    def table_uri(self, table: "TableName") -> str:
        """Where a reader finds the table."""

    def config(self) -> "DestinationConfig":
        """As `etl_core` is told, secrets included. Raises ConfigError."""
        from etl_core.config import DestinationConfig

        return DestinationConfig(self.type, self.options())

    def check(self) -> None:
        """Raises ConfigError for what is known to be wrong when a code location loads, which reads no variable."""

    def table_path(self, table: "TableName") -> tuple[str, str]:
        """What the IO managers of the destination call schema, or dataset, and table."""
        return table.namespace, table.name

    def database_name(self) -> str | None:
        """What a query calls the database, or project, of the tables; None as long as only a variable says it."""
        return None

    def table_name(self, table: "TableName") -> str | None:
        """`database.schema.table` as a query has it, by which Dagster tells tables apart; None as `database_name`."""
        database = self.database_name()
        return None if database is None else ".".join((database, *self.table_path(table)))

    def column_types(self, schema: "TableSchema") -> Sequence[str]:
        """The types of the columns as the destination spells them, in the order of `schema`; here PostgreSQL's."""
        from etl_core.schema.pg_types import format_type

        return [format_type(column) for column in schema.columns]
