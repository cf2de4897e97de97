"""`destination: {type: duckdb, …}`: its options, and how it is built. DuckDB is imported when it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from etl_core.destination.declaration import DestinationType
from etl_core.destination.duckdb.location import STORAGE_VERSION, STORAGE_VERSIONS
from etl_core.destination.duckdb.readers import reader_names
from etl_core.destination.options import Option, Options
from etl_core.destination.url import DestinationUrl, after_scheme

if TYPE_CHECKING:
    from etl_core.destination.duckdb.destination import DuckDBDestination


def _build(options: Options, pipeline: str) -> DuckDBDestination:
    from etl_core.destination.duckdb.destination import DuckDBDestination

    return DuckDBDestination(options["path"], pipeline, storage_version=options["storage_version"])


_URL = "duckdb:PATH"

DUCKDB = DestinationType(
    build=_build,
    options=(
        Option(
            "path",
            "The file; it is created when it does not exist. It is open only while a batch is written, so that others"
            " can read between.",
            kind="path",
            required=True,
            example="warehouse.duckdb",
        ),
        Option(
            "storage_version",
            "The oldest DuckDB that can read a file that is created; `latest` is the DuckDB that is installed here. An"
            " existing file keeps its own.",
            kind="choice",
            default=STORAGE_VERSION,
            choices=STORAGE_VERSIONS,
        ),
    ),
    reader_names=reader_names,
    refuses=lambda mode, options: None,  # noqa: ARG005
    has_enums=True,
    url=DestinationUrl(_URL, lambda url: {"path": after_scheme(url, _URL)}),
)
