"""The resource of BigQuery as a destination."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import dagster as dg
from pydantic import ConfigDict, field_validator

from etl_core.destination.bigquery.declaration import BIGQUERY
from etl_dagster.destination_resource import DestinationResource, option_field
from etl_dagster.secrets import literal, plain

if TYPE_CHECKING:
    from etl_core.destination.bigquery.names import Place
    from etl_core.identifiers import TableName
    from etl_core.schema.table import TableSchema


class BigQueryDestinationResource(DestinationResource):
    """BigQuery: a dataset for each PostgreSQL schema, or one for all.

    Credentials are Application Default Credentials unless `credentials` names a service account's file, or is
    `dg.EnvVar` of a variable that holds its JSON.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    project: str = option_field(BIGQUERY, "project")
    dataset: str = option_field(BIGQUERY, "dataset")
    location: str | None = option_field(BIGQUERY, "location")
    credentials: str = option_field(BIGQUERY, "credentials")
    method: Literal["load_merge", "storage_write_cdc", "auto"] = option_field(BIGQUERY, "method")
    max_staleness: str | None = option_field(BIGQUERY, "max_staleness")
    labels: dict[str, str] = option_field(BIGQUERY, "labels")
    partition_by: dict[str, str] = option_field(BIGQUERY, "partition_by")
    api_endpoint: str | None = option_field(BIGQUERY, "api_endpoint")
    storage_endpoint: str | None = option_field(BIGQUERY, "storage_endpoint")

    @field_validator("credentials")
    @classmethod
    def _no_secret(cls, credentials: str) -> str:
        if not isinstance(credentials, dg.EnvVar) and credentials.lstrip().startswith("{"):
            if credentials in os.environ.values():
                return credentials
            raise ValueError(
                "credentials holds a key, which Dagster would show on its pages: name the file, or give"
                ' dg.EnvVar("…") of the variable that holds it'
            )
        return credentials

    @property
    def type(self) -> str:
        return "bigquery"

    def options(self) -> dict[str, Any]:
        given = {name: getattr(self, name) for name in type(self).model_fields}
        plain_texts = {name: plain(value) if isinstance(value, str) else value for name, value in given.items()}
        return {name: value for name, value in plain_texts.items() if value is not None}

    def table_path(self, table: "TableName") -> tuple[str, str]:
        place = self._place(table)
        return place.dataset, place.table

    def table_uri(self, table: "TableName") -> str:
        place = self._place(table)
        return (
            f"https://console.cloud.google.com/bigquery?p={place.project}&d={place.dataset}&t={place.table}&page=table"
        )

    def database_name(self) -> str | None:
        return literal(self.project)

    def column_types(self, schema: "TableSchema") -> Sequence[str]:
        from etl_core.destination.bigquery.types import bigquery_field

        return [bigquery_field(column).sql for column in schema.columns]

    def _place(self, table: "TableName") -> "Place":
        from etl_core.destination.bigquery.names import place_of

        return place_of(plain(self.project) or "", plain(self.dataset) or "", table)
