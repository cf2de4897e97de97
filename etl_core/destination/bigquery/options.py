"""The options of `destination: {type: bigquery, …}`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from etl_core.destination.bigquery.layout import Layout, parse_layout
from etl_core.destination.bigquery.method import LOAD_MERGE
from etl_core.destination.options import check_options
from etl_core.errors import ConfigError

_KNOWN = (
    "project",
    "dataset",
    "location",
    "credentials",
    "method",
    "max_staleness",
    "api_endpoint",
    "storage_endpoint",
)
_MAPPINGS = ("labels", "partition_by")


@dataclass(frozen=True, slots=True)
class BigQueryOptions:
    """Where tables go, and as whom.

    `dataset` is a name, or one with `{namespace}` in it, for a dataset for each PostgreSQL schema. `credentials` is
    `default` (Application Default Credentials), the path of a service account's file, or its JSON. `api_endpoint` (a
    URL) and `storage_endpoint` (host:port) name an emulator, which is spoken to without credentials. `layout` has the
    options `method`, `max_staleness`, `labels` and `partition_by`.
    """

    project: str
    dataset: str = "{namespace}"
    location: str | None = None
    credentials: str = field(default="default", repr=False)
    api_endpoint: str | None = None
    storage_endpoint: str | None = None
    layout: Layout = field(default_factory=Layout)


def parse_options(options: Mapping[str, object]) -> BigQueryOptions:
    """Raises ConfigError with the field that is wrong."""
    check_options("bigquery", options, (*_KNOWN, *_MAPPINGS))
    for key, value in options.items():
        if key in _MAPPINGS:
            continue
        if not isinstance(value, str) or not value:
            raise ConfigError(f"destination.{key} is text", field=f"destination.{key}", hint="put it into quotes")
    texts = {key: str(value) for key, value in options.items() if key not in _MAPPINGS}
    if "project" not in texts:
        raise ConfigError(
            "destination type bigquery needs 'project', the Google Cloud project",
            field="destination.project",
            hint="write for example: destination: {type: bigquery, project: my-project, dataset: analytics}",
        )
    if ("api_endpoint" in texts) != ("storage_endpoint" in texts):
        raise ConfigError(
            "an emulator has both api_endpoint and storage_endpoint",
            field="destination.api_endpoint",
            hint="give both, or none for BigQuery itself",
        )
    _check_credentials(texts.get("credentials", ""))
    layout = parse_layout(
        texts.pop("method", LOAD_MERGE),
        texts.pop("max_staleness", None),
        *(options.get(key, {}) for key in _MAPPINGS),
    )
    return BigQueryOptions(**texts, layout=layout)


def _check_credentials(text: str) -> None:
    if not text.lstrip().startswith("{"):
        return
    try:
        json.loads(text)
    except ValueError:
        raise ConfigError(
            "destination.credentials begins like JSON and is none",
            field="destination.credentials",
            hint="give the whole file of the service account, its path, or: default",
        ) from None
