"""`destination: {type: mine, path: …}`: every table is an Arrow file in a folder. This is its declaration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from etl_core.destination.declaration import DestinationType
from etl_core.destination.options import Option, Options
from etl_core.destination.url import DestinationUrl, after_scheme

if TYPE_CHECKING:
    from etl_mine.destination import ArrowFiles


def _build(options: Options, pipeline: str) -> ArrowFiles:
    from etl_mine.destination import ArrowFiles  # here, as a command that writes nothing needs no pyarrow

    return ArrowFiles(options["path"], pipeline, options["compression"])


MINE = DestinationType(
    build=_build,
    options=(
        Option("path", "The folder of the files; it is created.", kind="path", required=True, example="shop.tables"),
        Option(
            "compression",
            "Of files that are written from now on.",
            kind="choice",
            choices=("none", "lz4", "zstd"),
            default="lz4",
        ),
    ),
    url=DestinationUrl("mine:PATH", lambda url: {"path": after_scheme(url, "mine:PATH")}),
)
