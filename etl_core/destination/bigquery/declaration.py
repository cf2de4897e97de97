"""`destination: {type: bigquery, …}`: its options, and how it is built. Google's libraries are imported when it is."""

from __future__ import annotations

from etl_core.destination.bigquery.ranges import RANGE
from etl_core.destination.bigquery.readers import reader_names
from etl_core.destination.declaration import DestinationType
from etl_core.destination.options import Option, Options
from etl_core.destination.protocol import Destination
from etl_core.destination.url import DestinationUrl, after_scheme
from etl_core.write_mode import WriteMode

MOST_TABLES = 99
"""In a transaction, beside the bookkeeping. https://cloud.google.com/bigquery/quotas#query_jobs"""
_URL = "bigquery:PROJECT.DATASET"

OPTIONS = (
    Option("project", "The Google Cloud project.", required=True, example="my-project"),
    Option(
        "dataset",
        "The dataset of a table; {namespace} stands for its PostgreSQL schema.",
        default="{namespace}",
        example="raw_{namespace}",
    ),
    Option("location", "Where datasets are created; BigQuery's own choice without it.", example="EU"),
    Option(
        "credentials",
        "default (Application Default Credentials), the file of a service account's key, or its JSON.",
        default="default",
        secret=True,
        example="/etc/etl/key.json",
    ),
    Option(
        "method",
        "How changes get into a table, from its next copy on.",
        kind="choice",
        default="load_merge",
        choices=("load_merge", "storage_write_cdc", "auto"),
    ),
    Option(
        "max_staleness",
        "How old what readers of streamed tables see may be; not with method load_merge.",
        kind="duration",
        example="10m",
    ),
    Option("labels", "Labels of every table.", kind="mapping", example="{team: data}"),
    Option(
        "partition_by",
        "By table the date or timestamp column by whose days it is partitioned.",
        kind="mapping",
        example="{public.events: created_at}",
    ),
    Option("api_endpoint", "The URL of an emulator.", example="http://127.0.0.1:9050"),
    Option("storage_endpoint", "The host:port of an emulator, together with api_endpoint.", example="127.0.0.1:9060"),
)


def _build(options: Options, pipeline: str) -> Destination:
    from etl_core.destination.bigquery.destination import from_options

    return from_options(options, pipeline)


def _check(options: Options) -> None:
    from etl_core.destination.bigquery.options import parse_options

    parse_options(options)


def _refuses(mode: WriteMode, options: Options) -> str | None:
    from etl_core.destination.bigquery.method import refuses

    return refuses(mode, options["method"])


def _read_url(url: str) -> dict[str, object]:
    # The id of a project of a domain has a dot and a colon: example.com:project.
    domain, colon, rest = after_scheme(url, _URL).rpartition(":")
    project, dot, dataset = rest.partition(".")
    return {"project": f"{domain}{colon}{project}", **({"dataset": dataset} if dot else {})}


BIGQUERY = DestinationType(
    build=_build,
    options=OPTIONS,
    check=_check,
    reader_names=reader_names,
    refuses=_refuses,
    value_range=RANGE,
    url=DestinationUrl(_URL, _read_url),
    tables_in_commit=MOST_TABLES,
)
