"""The options of `destination: {type: bigquery, …}`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from etl_core.destination.bigquery.declaration import OPTIONS
from etl_core.destination.bigquery.layout import Layout, parse_layout
from etl_core.destination.options import read_options
from etl_core.errors import ConfigError


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
    read = read_options("bigquery", OPTIONS, options)
    if (read["api_endpoint"] is None) != (read["storage_endpoint"] is None):
        raise ConfigError(
            "an emulator has both api_endpoint and storage_endpoint",
            field="destination.api_endpoint",
            hint="give both, or none for BigQuery itself",
        )
    _check_credentials(read["credentials"])
    layout = parse_layout(*(read.pop(name) for name in ("method", "max_staleness", "labels", "partition_by")))
    return BigQueryOptions(**read, layout=layout)


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
