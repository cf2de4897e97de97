"""`destination: {type: duckdb, …}`: its option, and how it is built. DuckDB is imported when it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from etl_core.destination.declaration import DestinationType
from etl_core.destination.duckdb.readers import reader_names
from etl_core.destination.options import Option, Options
from etl_core.destination.url import DestinationUrl, after_scheme

if TYPE_CHECKING:
    from etl_core.destination.duckdb.destination import DuckDBDestination


def _build(options: Options, pipeline: str) -> DuckDBDestination:
    from etl_core.destination.duckdb.destination import DuckDBDestination

    return DuckDBDestination(options["path"], pipeline)


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
    ),
    reader_names=reader_names,
    refuses=lambda mode, options: None,  # noqa: ARG005
    has_enums=True,
    url=DestinationUrl(_URL, lambda url: {"path": after_scheme(url, _URL)}),
)
