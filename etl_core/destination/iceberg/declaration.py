"""`destination: {type: iceberg, …}`: its options, and how it is built. DuckDB is imported when it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from etl_core.config_values import config_error
from etl_core.destination.declaration import DestinationType
from etl_core.destination.iceberg.ranges import RANGE
from etl_core.destination.iceberg.readers import reader_names
from etl_core.destination.options import Option, Options
from etl_core.write_mode import WriteMode

if TYPE_CHECKING:
    from etl_core.destination.iceberg.destination import IcebergDestination

_ACCESS = (
    Option(
        "uri",
        "The REST catalog, which commits several tables at once (POST …/transactions/commit).",
        required=True,
        example="https://catalog.example.com",
    ),
    Option("warehouse", "The warehouse, as the catalog calls it.", required=True, example="s3://analytics"),
    Option(
        "credential",
        "What the catalog gives tokens for: client id and secret, with a colon between.",
        secret=True,
        example="etl:secret",
    ),
    Option("token", "A bearer token of the catalog, in place of credential.", secret=True),
    Option("oauth2_server_uri", "Where tokens are asked for; without it, under the catalog's own address."),
    Option("scope", "The scope of the tokens, where the catalog has scopes."),
    Option(
        "s3_endpoint",
        "The storage, where it is not Amazon's. Without any s3_… option the catalog hands out what opens it.",
        example="https://s3.example.com",
    ),
    Option("s3_region", "The region of the storage."),
    Option("s3_access_key", "The access key of the storage.", secret=True),
    Option("s3_secret_key", "Its secret.", secret=True),
)


def _build(options: Options, pipeline: str) -> IcebergDestination:
    from etl_core.destination.iceberg.catalog import Access
    from etl_core.destination.iceberg.compaction import Cadence
    from etl_core.destination.iceberg.destination import IcebergDestination

    access = Access(**{option.name: options[option.name] for option in _ACCESS})
    cadence = Cadence(options["compact_every"], options["keep_snapshots"])
    return IcebergDestination(access, pipeline, options["staging"], cadence)


def _check(options: Options) -> None:
    if options["credential"] and options["token"]:
        raise config_error("destination.token", "credential is set too; set one of the two")
    if options["credential"] and ":" not in options["credential"]:
        raise config_error("destination.credential", "has no colon between client id and secret")


def _refuses(mode: WriteMode, options: Options) -> str | None:  # noqa: ARG001
    is_kept = mode in (WriteMode.MIRROR, WriteMode.SOFT_DELETE, WriteMode.APPEND)
    return None if is_kept else "its views of versions are not made there; append has the log that they would show"


ICEBERG = DestinationType(
    build=_build,
    check=_check,
    options=(
        *_ACCESS,
        Option(
            "compact_every",
            "How often small files, and data files with many files of deletes, are written anew as few large ones,"
            " between two batches; 0s for never.",
            kind="duration",
            default="15m",
        ),
        Option(
            "keep_snapshots",
            "How long a table's state can be queried after the next one replaced it; then it is forgotten, and files"
            " that no other one needs are removed. 0s for always. It is done with a compaction.",
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
    refuses=_refuses,
    value_range=RANGE,
)
