"""Small files and files of deletes become few large ones, and snapshots expire.

DuckDB's extension merges nothing, and pyiceberg cannot leave files of deletes out. So each does a part: DuckDB reads
what is left of the chosen files and inserts it into the same table, as it does any rows; before the catalog is asked to
commit that, the list of the snapshot's files is written anew without the chosen ones (`files`). Like every commit it is
refused if anybody has changed the table since. No row is in Python.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from psycopg import sql

from etl_core.destination.compaction import Compacted
from etl_core.destination.iceberg.catalog import Access, Catalog
from etl_core.destination.iceberg.session import PROPERTY
from etl_core.errors import DestinationError, DestinationUnavailable, EtlError, TableError, TryAgain
from etl_core.identifiers import TableName

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog as RestCatalog
    from pyiceberg.table import Table

    from etl_core.destination.iceberg.files import Chosen

_log = logging.getLogger(__name__)
_TRIES = 5
"""Of a table that others write meanwhile."""
_MANY = 5
"""Files of deletes of one data file from which on a round of the cadence writes it anew."""
_SOME = 8
"""A round lets snapshots expire when one is older than is kept by this part of it: each time all lists are read."""
_COMPACTED_AT = f"{PROPERTY}compacted-at"
"""Seconds since 1970."""
_AT_A_TIME = 2.0
"""Seconds that a batch waits for the tables before one that is compacted; that one is finished."""


@dataclass(frozen=True, slots=True)
class Cadence:
    """Both in seconds; 0 for never."""

    every: float
    keep_snapshots: float


NEVER = Cadence(0.0, 0.0)


class Compaction:
    """Of the tables that are asked for. Used by one thread."""

    def __init__(self, catalog: Catalog, access: Access, cadence: Cadence) -> None:
        self._catalog = catalog
        self._access = access
        self._cadence = cadence
        self._rest: RestCatalog | None = None
        self._next_at: float | None = None
        """By the monotonic clock; None until it was looked up."""
        self._waiting: list[TableName] | None = None
        """The tables that a round which has begun has left."""

    def run(self, tables: Iterable[TableName]) -> Iterator[Compacted]:
        """Compacts one after the other as far as can be, and tells of each."""
        for name in tables:
            try:
                yield self._compact(name, 1, timedelta(0))
            except EtlError as error:
                yield Compacted(str(name), error=error)

    def step(self, tables: Callable[[], Sequence[TableName]], mark: TableName) -> None:
        """Does some of what is due, if anything is; `tables` tells which there are. What fails is left for the next.

        `mark` is compacted last, and has when that was as a property: a run of a minute does not begin anew.
        """
        if not self._cadence.every or (self._next_at is not None and time.monotonic() < self._next_at):
            return
        try:
            self._step(tables, mark)
        except EtlError as error:
            _log.info("the Iceberg tables were not compacted: %s", error)
            self._waiting = None
            self._next_at = time.monotonic() + self._cadence.every

    def _step(self, tables: Callable[[], Sequence[TableName]], mark: TableName) -> None:
        began = time.monotonic()
        if self._waiting is None:
            since = self._since(mark)
            if since < self._cadence.every:
                self._next_at = began + self._cadence.every - since
                return
            self._waiting = list(tables())
        while self._waiting and time.monotonic() - began < _AT_A_TIME:
            self._try(self._waiting.pop())
        if not self._waiting:
            self._try(mark)
            with self._catalog.transaction() as session:
                session.set_property(mark, _COMPACTED_AT, f"{time.time():.0f}")
            self._waiting = None
            self._next_at = time.monotonic() + self._cadence.every

    def _try(self, name: TableName) -> None:
        try:
            self._compact(name, _MANY, timedelta(seconds=self._cadence.keep_snapshots / _SOME))
        except EtlError as error:
            _log.info("%s in the catalog %s was not compacted: %s", name, self._access.uri, error)

    def _since(self, mark: TableName) -> float:
        """Seconds since the last round of any process; infinity if there was none."""
        with self._catalog.reading() as session:
            at = session.find_property(mark, _COMPACTED_AT)
        return math.inf if at is None else time.time() - float(at)

    def _compact(self, name: TableName, least_deletes: int, spare: timedelta) -> Compacted:
        for tries_left in reversed(range(_TRIES)):
            try:
                done = self._merge(name, least_deletes)
                break
            except DestinationUnavailable:  # somebody else has changed it, or the catalog failed
                if not tries_left:
                    raise
        if self._cadence.keep_snapshots:
            kept = timedelta(seconds=self._cadence.keep_snapshots)
            with _errors(f"the catalog {self._access.uri}"):
                self._expire(name, datetime.now(UTC) - kept, spare)
        return done

    def _merge(self, name: TableName, least_deletes: int) -> Compacted:
        from etl_core.destination.iceberg.files import choose

        with _errors(f"the catalog {self._access.uri}"):
            table = self._load(name)
            chosen = None if table is None else choose(table, least_deletes)
        if table is None:
            raise TableError(f"{name} is not in the catalog {self._access.uri}", table=str(name))
        if chosen is None:
            return Compacted(str(name))
        with self._catalog.replacing(partial(_replace, table, chosen)) as session, session.table_errors(name):
            session.execute(_insert(session.identifier(name.namespace, name.name), chosen))
        return Compacted(str(name), len(chosen.data) + len(chosen.deletes))

    def _expire(self, name: TableName, before: datetime, spare: timedelta) -> None:
        from etl_core.destination.iceberg.expiry import expire, is_due

        table = self._load(name)
        if table is not None and is_due(table, before - spare):
            expire(table, before)

    def _load(self, name: TableName) -> Table | None:
        from pyiceberg.exceptions import NoSuchTableError

        try:
            return self._opened().load_table((name.namespace, name.name))
        except NoSuchTableError:
            return None

    def _opened(self) -> RestCatalog:
        if self._rest is None:
            from pyiceberg.catalog import load_catalog

            access = self._access
            given = {
                "uri": access.uri,
                "warehouse": access.warehouse,
                "credential": access.credential,
                "token": access.token,
                "oauth2-server-uri": access.oauth2_server_uri or f"{access.uri.rstrip('/')}/v1/oauth/tokens",
                "scope": access.scope,
                "s3.endpoint": access.s3_endpoint,
                "s3.region": access.s3_region,
                "s3.access-key-id": access.s3_access_key,
                "s3.secret-access-key": access.s3_secret_key,
            }
            self._rest = load_catalog("etl", type="rest", **{name: v for name, v in given.items() if v is not None})
        return self._rest


def _insert(place: sql.Composable, chosen: Chosen) -> sql.Composable:
    from etl_core.destination.iceberg.files import FILE_NAME

    query = sql.SQL("INSERT INTO {} SELECT * FROM {}").format(place, place)
    if any(one.is_data for one in chosen.rest):
        paths = sql.SQL(", ").join(sql.Literal(one.path) for one in chosen.data)
        query += sql.SQL(" WHERE {} IN ({})").format(sql.Identifier(FILE_NAME), paths)
    return query


def _replace(table: Table, chosen: Chosen, commit: dict[str, Any]) -> None:
    """Has the commit of an insert leave the chosen files out. Raises TryAgain if it is on another state than that."""
    from etl_core.destination.iceberg.files import leave_out

    [change] = commit["table-changes"]
    [snapshot] = [update["snapshot"] for update in change["updates"] if update["action"] == "add-snapshot"]
    expected = {"type": "assert-ref-snapshot-id", "ref": "main", "snapshot-id": chosen.snapshot.snapshot_id}
    if snapshot.get("parent-snapshot-id") != chosen.snapshot.snapshot_id or expected not in change["requirements"]:
        raise TryAgain("the table was changed while its files were chosen")
    with _errors("the storage of the catalog"):
        leave_out(table, chosen, snapshot)


@contextmanager
def _errors(what: object) -> Iterator[None]:
    """Turns what pyiceberg raises, and its storage, into ours."""
    try:
        yield
    except EtlError:
        raise
    except ModuleNotFoundError as error:
        raise DestinationError(
            f"the Python package {error.name} is not installed", hint="run: pip install 'etl-dagster[iceberg]'"
        ) from None
    except Exception as error:
        _log.debug("compaction failed", exc_info=error)  # the text may hold what is secret
        raise DestinationUnavailable(f"{what} failed a compaction ({type(error).__name__})") from None
