"""The resource of a destination of any type: one that another package brings needs no resource class of its own."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import ConfigDict, Field, field_validator

from etl_core.config_values import config_error
from etl_core.destination.registry import FoundType, find_type, type_label
from etl_dagster.destination_resource import DestinationResource
from etl_dagster.secrets import is_secret_name, plain

if TYPE_CHECKING:
    from etl_core.destination.reader_names import ReaderNames
    from etl_core.identifiers import TableName
    from etl_core.schema.table import TableSchema


class AnyDestinationResource(DestinationResource):
    """A destination of any type that is installed, with the options that the type declares.

    What environment variables hold is named in `settings_env`: Dagster shows `settings` on a page. A variable is read
    when something runs.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    destination_type: str = Field(
        description="As destination.type in the YAML of etl: an installed type, or module:name."
    )
    settings: dict[str, Any] = Field(default={}, description="Its options by name. No secrets.")
    settings_env: dict[str, str] = Field(
        default={}, description="By option the environment variable that holds its value."
    )

    @field_validator("settings", mode="before")
    @classmethod
    def _no_variable(cls, settings: Any) -> Any:
        for name, value in settings.items() if isinstance(settings, Mapping) else ():
            if isinstance(value, dg.EnvVar):
                raise ValueError(
                    f'settings: {name} is a dg.EnvVar; write settings_env={{"{name}": "{value.env_var_name}"}}'
                )
        return settings

    @property
    def type(self) -> str:
        return self.destination_type

    def options(self) -> dict[str, Any]:
        return {**self.settings, **{name: plain(dg.EnvVar(variable)) for name, variable in self.settings_env.items()}}

    def check(self) -> None:
        self._read(find_type(self.type))

    def table_uri(self, table: "TableName") -> str:
        return "/".join((f"{type_label(self.type)}:/", *filter(None, (self.database_name(), *self.table_path(table)))))

    def table_path(self, table: "TableName") -> tuple[str, str]:
        readers = self._readers()
        return super().table_path(table) if readers is None else readers.path(table)

    def database_name(self) -> str | None:
        readers = self._readers()
        return None if readers is None else readers.database

    def column_types(self, schema: "TableSchema") -> Sequence[str]:
        readers = self._readers()
        return super().column_types(schema) if readers is None else [column.type for column in readers.columns(schema)]

    def _readers(self) -> "ReaderNames | None":
        """What queries call the tables, as far as that is known without a variable. The same at every time."""
        found = find_type(self.type)
        secrets = {option.name for option in found.type.options or () if option.secret}
        if not secrets.issuperset(self.settings_env):
            return None
        return found.reader_names(self._read(found))

    def _read(self, found: FoundType) -> Mapping[str, Any]:
        """The options but for those that variables hold, which are None. Raises ConfigError."""
        for name in self.settings_env.keys() & self.settings.keys():
            raise config_error(f"destination.{name}", "stands in settings and in settings_env", hint="leave one out")
        declared = found.type.options
        for name in self.settings:
            # What is not declared is told by its name.
            if is_secret_name(name) if declared is None else any(one.secret and one.name == name for one in declared):
                raise config_error(
                    f"destination.{name}",
                    "is a secret, which Dagster would show on its pages",
                    hint="leave it out and name the environment variable that holds it: settings_env in Python,"
                    f" {name}_env in YAML",
                )
        return found.read_options(self.settings, elsewhere=self.settings_env)
