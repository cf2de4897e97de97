"""`destination` of the component's YAML: a URL, or a type with its options, as the resource that they describe."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union

import dagster as dg
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, create_model

from etl_core.destination.registry import check_type_name, destination_types, find_type
from etl_core.errors import ConfigError
from etl_dagster.any_destination import AnyDestinationResource
from etl_dagster.bigquery_destination import BigQueryDestinationResource
from etl_dagster.declared_destinations import (
    DeclaredDestinationResource,
    DuckLakeDestinationResource,
    IcebergDestinationResource,
    SnowflakeDestinationResource,
)
from etl_dagster.destination_resource import DestinationResource
from etl_dagster.duckdb_destination import DuckDBDestinationResource
from etl_dagster.load_checks import checked, sentence
from etl_dagster.postgres_destination import PostgresDestinationResource
from etl_dagster.secrets import refuse_key

_DESTINATIONS: Mapping[str, type[DestinationResource]] = {
    "duckdb": DuckDBDestinationResource,
    "bigquery": BigQueryDestinationResource,
    "postgres": PostgresDestinationResource,
    "ducklake": DuckLakeDestinationResource,
    "iceberg": IcebergDestinationResource,
    "snowflake": SnowflakeDestinationResource,
}
"""`destination.type` and the resource whose fields are the rest of `destination`."""

_VARIABLES = {
    "credentials": "The environment variable that holds a service account's key, as JSON.",
    "dsn": "The environment variable that holds the whole address.",
}
"""By option that is a secret what `<option>_env` names."""


def _variables(resource: type[DestinationResource]) -> Mapping[str, str]:
    """By option what `<option>_env` names. Of a type whose fields are its options, each has one."""
    if issubclass(resource, DeclaredDestinationResource):
        return {name: f"The environment variable that holds {name}." for name in resource.model_fields}
    return {name: told for name, told in _VARIABLES.items() if name in resource.model_fields}


def _other_types() -> str:
    """The regular expression of the types without a resource class, for `dg check yaml`."""
    return f"^({'|'.join(re.escape(name) for name in destination_types() if name not in _DESTINATIONS)}|[^:]+:[^:]+)$"


class OtherDestination(dg.Model):
    """`destination` of a type that has no resource class: whatever options it declares, each also as `<option>_env`.

    Which types are installed is known without importing their packages.
    """

    model_config = ConfigDict(extra="allow")

    type: Annotated[str, checked(check_type_name)] = Field(json_schema_extra={"pattern": _other_types()})


def destination_models() -> Any:
    """`destination` as YAML has it: a URL, or `type` and, where the type has a resource class, its fields."""
    models: list[Any] = [
        Annotated[OtherDestination, Tag("other")],
        Annotated[str, checked(_check_url), Field(description="A URL, such as duckdb:shop.duckdb."), Tag("url")],
    ]
    for type_name, resource in _DESTINATIONS.items():
        options: dict[str, Any] = {name: (field.annotation, field) for name, field in resource.model_fields.items()}
        options["type"] = (Literal[type_name], ...)
        for name, told in _variables(resource).items():
            annotation, field = options[name]
            options[name] = (annotation | None, Field(default=None, description=field.description))
            options[f"{name}_env"] = (str | None, Field(default=None, description=told))
        models.append(Annotated[create_model(resource.__name__, __base__=dg.Model, **options), Tag(type_name)])
    return Annotated[Union[*models], Discriminator(_destination_tag)]


def _destination_tag(destination: Any) -> str:
    if isinstance(destination, str):
        return "url"
    name = destination.get("type") if isinstance(destination, Mapping) else getattr(destination, "type", None)
    return str(name) if name in _DESTINATIONS else "other"


def _check_url(url: str) -> None:
    """Imports no type. Raises ConfigError."""
    from etl_core.config import DestinationConfig

    check_type_name(DestinationConfig.from_url(url).type)


def resolve_destination(context: dg.ResolutionContext, model: BaseModel | str) -> DestinationResource:
    if isinstance(model, str):
        return _of_url(str(context.resolve_value(model)))
    options = dict(context.resolve_value(model.model_dump(exclude_unset=True)))
    # Also a key that `{{ env.… }}` has put there: pydantic's error would show it to whoever loads the code location.
    refuse_key("destination.credentials", options.get("credentials"))
    return _resource(options.pop("type"), options)


def _of_url(url: str) -> DestinationResource:
    from etl_core.config import DestinationConfig

    try:
        config = DestinationConfig.from_url(url)
        options = find_type(config.type).spelled_out(config.options)
    except ConfigError as error:
        raise dg.DagsterInvalidDefinitionError(f"destination: {sentence(error)}") from None
    return _resource(config.type, dict(options))


def _resource(type_name: str, options: dict[str, Any]) -> DestinationResource:
    if type_name not in _DESTINATIONS:
        return _other_destination(type_name, options)
    resource = _DESTINATIONS[type_name]
    for name in _variables(resource):
        variable = options.pop(f"{name}_env", None)
        if variable is not None:
            if name in options:
                raise dg.DagsterInvalidDefinitionError(
                    f"destination: {name} and {name}_env exclude each other; leave one of them out"
                )
            options[name] = dg.EnvVar(variable)
        elif options.get(name) is None and resource.model_fields[name].is_required():
            raise dg.DagsterInvalidDefinitionError(f"destination: give either {name} or {name}_env")
    return resource(**options)


def _other_destination(type_name: str, options: Mapping[str, Any]) -> DestinationResource:
    try:
        found = find_type(type_name)
    except ConfigError as error:
        raise dg.DagsterInvalidDefinitionError(f"{error.field}: {sentence(error)}") from None
    declared = {option.name for option in found.type.options or ()}
    variables = {name for name in options if name.endswith("_env") and name not in declared}
    return AnyDestinationResource(
        destination_type=type_name,
        settings={name: value for name, value in options.items() if name not in variables},
        settings_env={name.removesuffix("_env"): options[name] for name in variables},
    )
