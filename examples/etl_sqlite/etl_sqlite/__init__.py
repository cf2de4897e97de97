"""`destination: sqlite:shop.db`: the source's table `public.orders` is table "public.orders" of one SQLite file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from etl_core.destination.declaration import DestinationType
from etl_core.destination.options import Option, Options
from etl_core.destination.url import DestinationUrl, after_scheme
from etl_core.write_mode import WriteMode

if TYPE_CHECKING:
    from etl_sqlite.destination import SqliteDestination


def _build(options: Options, pipeline: str) -> SqliteDestination:
    from etl_sqlite.destination import SqliteDestination  # here, as a command that writes nothing needs no pyarrow

    return SqliteDestination(options["path"], pipeline, options["wait"])


def _refuses(mode: WriteMode, options: Options) -> str | None:  # noqa: ARG001
    return "SQLite's dialect does not spell the views of versions" if mode is WriteMode.HISTORY else None


SQLITE = DestinationType(
    build=_build,
    options=(
        Option("path", "The file; it is created.", kind="path", required=True, example="shop.db"),
        Option("wait", "How long a batch waits while another program writes.", kind="duration", default="60s"),
    ),
    refuses=_refuses,
    url=DestinationUrl("sqlite:PATH", lambda url: {"path": after_scheme(url, "sqlite:PATH")}),
)
