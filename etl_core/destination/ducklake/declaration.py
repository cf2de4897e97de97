"""`destination: {type: ducklake, …}`: its options, and how it is built. DuckDB is imported when it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from etl_core.destination.declaration import DestinationType
from etl_core.destination.ducklake.catalog import read_catalog, read_storage
from etl_core.destination.ducklake.readers import reader_names
from etl_core.destination.options import Option, Options
from etl_core.type_options import ValueRange

if TYPE_CHECKING:
    from etl_core.destination.ducklake.destination import DuckLakeDestination


def _build(options: Options, pipeline: str) -> DuckLakeDestination:
    from etl_core.destination.ducklake.compaction import Cadence
    from etl_core.destination.ducklake.destination import DuckLakeDestination

    return DuckLakeDestination(
        read_catalog(options["catalog"], options["catalog_password"]),
        read_storage(options),
        pipeline,
        options["staging"],
        Cadence(options["compact_every"], options["keep_snapshots"]),
    )


def _check(options: Options) -> None:
    read_catalog(options["catalog"], options["catalog_password"])
    read_storage(options)


DUCKLAKE = DestinationType(
    build=_build,
    check=_check,
    options=(
        Option(
            "catalog",
            "The catalog: a DuckDB file, sqlite:FILE, or a PostgreSQL database as a URL or as postgres: before libpq's"
            " key=value pairs. A file is created when it does not exist. One process at a time has a DuckDB file open;"
            " with the others everybody can read and write at once.",
            kind="place",
            required=True,
            example="lake.ducklake",
        ),
        Option(
            "catalog_password",
            "The password for a catalog in PostgreSQL; without it libpq looks into PGPASSWORD and the password file.",
            secret=True,
        ),
        Option(
            "data",
            "Where the data files are: a directory, or s3://bucket/prefix. It must not be changed later.",
            kind="place",
            required=True,
            example="lake-files",
        ),
        Option("s3_key_id", "The access key of S3; without it AWS_ACCESS_KEY_ID of the environment."),
        Option("s3_secret", "The secret of that key; without it AWS_SECRET_ACCESS_KEY.", secret=True),
        Option(
            "s3_session_token",
            "A session's token; without it AWS_SESSION_TOKEN, unless s3_secret is set: the variable belongs to another"
            " key.",
            secret=True,
        ),
        Option("s3_region", "The region of the bucket; without it AWS_REGION.", example="eu-central-1"),
        Option(
            "s3_endpoint",
            "Another server that speaks S3; without it AWS_ENDPOINT_URL_S3, or Amazon.",
            example="http://127.0.0.1:9000",
        ),
        Option(
            "compact_every",
            "How often small files are merged and files with many deleted rows are written anew, between two batches;"
            " 0s for never.",
            kind="duration",
            default="1h",
        ),
        Option(
            "keep_snapshots",
            "How long older states of the whole lake can be queried; files that only those have are removed a day"
            " later. 0s for always. It needs compact_every.",
            kind="duration",
            default="168h",
        ),
        Option(
            "staging",
            "The directory of this machine in which the rows of a copy wait until it is published. It needs room for"
            " the largest tables that are copied at once.",
            kind="path",
            default="etl-staging",
        ),
    ),
    reader_names=reader_names,
    value_range=ValueRange(negative_zero=False),
    refuses=lambda mode, options: None,  # noqa: ARG005
)
