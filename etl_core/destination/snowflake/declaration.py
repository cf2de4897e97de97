"""`destination: {type: snowflake, …}`: its options, and how it is built."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from etl_core.config_values import config_error
from etl_core.destination.declaration import DestinationType
from etl_core.destination.options import Option, Options
from etl_core.destination.snowflake.readers import reader_names
from etl_core.destination.snowflake.value_range import RANGE

if TYPE_CHECKING:
    from etl_core.destination.snowflake.connection import Connect
    from etl_core.destination.snowflake.destination import SnowflakeDestination


def connector(options: Options) -> Connect:
    """What opens a session with these options."""
    import snowflake.connector

    from etl_core.destination.snowflake.connection import PARAMETERS, Connection

    def connect(autocommit: bool) -> Connection:
        connection: Connection = snowflake.connector.connect(
            account=options["account"],
            user=options["user"],
            authenticator="SNOWFLAKE_JWT",
            private_key_file=str(options["private_key_file"]),
            private_key_file_pwd=options["private_key_passphrase"],
            role=options["role"],
            warehouse=options["warehouse"],
            database=options["database"],
            application="etl",
            autocommit=autocommit,
            paramstyle="qmark",
            session_parameters=dict(PARAMETERS),
        )
        return connection

    return connect


def _build(options: Options, pipeline: str) -> SnowflakeDestination:
    from etl_core.destination.snowflake.destination import SnowflakeDestination

    place = f"{options['account']}/{options['database']}"
    return SnowflakeDestination(connector(options), place, pipeline, options["staging"])


def _check(options: Options) -> None:  # noqa: ARG001
    # A folder of that name is a package too.
    if importlib.util.find_spec("snowflake") is None or importlib.util.find_spec("snowflake.connector") is None:
        raise config_error(
            "destination.type",
            "snowflake needs a package that is not installed",
            hint="pip install 'etl-dagster[snowflake]'",
        )


SNOWFLAKE = DestinationType(
    build=_build,
    check=_check,
    options=(
        Option("account", "The account's identifier.", required=True, example="myorg-myaccount"),
        Option("user", "The user, of type SERVICE.", required=True, example="ETL"),
        Option(
            "private_key_file",
            "The file with the user's private key, in PEM.",
            kind="path",
            required=True,
            example="snowflake.p8",
        ),
        Option("private_key_passphrase", "The passphrase of that file, if it is encrypted.", secret=True),
        Option("role", "The role that owns the replicated tables. Without it the user's default role.", example="ETL"),
        Option(
            "warehouse",
            "The warehouse that runs the statements. Without it the user's default warehouse.",
            example="LOADING",
        ),
        Option(
            "database",
            "The database. Its role needs USAGE and CREATE SCHEMA on it. Without quotes the name is in upper case.",
            required=True,
            example="SHOP",
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
    value_range=RANGE,
)
