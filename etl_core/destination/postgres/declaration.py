"""`destination: {type: postgres, …}`: its options, and how it is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from etl_core.destination.declaration import DestinationType
from etl_core.destination.options import Option, Options
from etl_core.destination.postgres.conninfo import parameters
from etl_core.destination.postgres.readers import reader_names
from etl_core.destination.url import DestinationUrl
from etl_core.type_options import EVERY_VALUE

if TYPE_CHECKING:
    from etl_core.destination.postgres.destination import PostgresDestination


def _build(options: Options, pipeline: str) -> PostgresDestination:
    from etl_core.destination.postgres.destination import PostgresDestination

    return PostgresDestination(options["dsn"], pipeline, options["staging"])


def _check(options: Options) -> None:
    parameters(options["dsn"])


POSTGRES = DestinationType(
    build=_build,
    check=_check,
    options=(
        Option(
            "dsn",
            "The database, as a URL or as libpq's key=value pairs. Its role needs CREATE and TEMPORARY on the database,"
            " and owns the replicated tables. Without a password libpq looks into PGPASSWORD and the password file.",
            required=True,
            secret=True,
            example="postgresql://etl@warehouse.example.com/shop",
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
    refuses=lambda mode, options: None,  # noqa: ARG005
    url=DestinationUrl("postgresql://USER@HOST/DATABASE", lambda url: {"dsn": url}),
    value_range=EVERY_VALUE,
    types={"numeric": "varchar"},  # its digits as they are: PostgreSQL has numeric itself
)
