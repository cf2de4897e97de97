"""The catalog as the `Database` that sessions run in: attached to a DuckDB of its own, by way of the relay.

A DuckDB transaction that only writes rows and alters columns is one request to the catalog, which commits all of its
tables or none. One that makes, renames or drops a table is several, which are not undone together. So tables are made
before such a transaction and dropped after it. A table that was made and not filled, or left and not dropped, has the
property `etl.left`, which is set and taken away by the commit that decides it: it is nobody's, and is used or replaced.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field

import duckdb
from psycopg import sql

from etl_core.destination.duckdb_sql.extensions import load_extensions
from etl_core.destination.duckdb_sql.instance import Instance
from etl_core.destination.duckdb_sql.statements import text
from etl_core.destination.iceberg.dialect import IcebergDialect
from etl_core.destination.iceberg.failures import explain
from etl_core.destination.iceberg.relay import Amend, Relay
from etl_core.destination.iceberg.session import LAKE, LEFT, IcebergSession, NewTable
from etl_core.destination.sql.dialect import Query
from etl_core.destination.sql.statements import create_schema, drop
from etl_core.errors import DestinationUnavailable, TryAgain
from etl_core.identifiers import TableName

_turns: dict[tuple[str, str], threading.Lock] = {}
_turns_guard = threading.Lock()


@dataclass(frozen=True, slots=True)
class Access:
    """Where the catalog is, and what it and its storage are opened with. None is left to the catalog."""

    uri: str
    warehouse: str
    credential: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    oauth2_server_uri: str | None = None
    scope: str | None = None
    s3_endpoint: str | None = None
    s3_region: str | None = None
    s3_access_key: str | None = field(default=None, repr=False)
    s3_secret_key: str | None = field(default=None, repr=False)


class Catalog:
    """See Database. Writers of one catalog in this process take turns, as the later commit would be refused."""

    def __init__(self, access: Access, dialect: IcebergDialect) -> None:
        self._access = access
        self._dialect = dialect
        self._relay = Relay(access.uri)
        self._instance = Instance(self._attach)
        self._readers = Instance(self._attach)
        with _turns_guard:
            self._turn = _turns.setdefault((access.uri, access.warehouse), threading.Lock())

    @property
    def uri(self) -> str:
        return self._access.uri

    def exists(self) -> bool:
        return True

    @contextmanager
    def reading(self, *, wait_seconds: float | None = None) -> Iterator[IcebergSession]:
        with self._taking_turn(wait_seconds), self._cursor(self._instance) as connection:
            connection.execute("BEGIN TRANSACTION")
            yield self._session(connection)

    @contextmanager
    def reading_beside(self) -> Iterator[IcebergSession]:
        """As `reading`, while others write: in a DuckDB of its own, as its transactions share what they know."""
        with self._cursor(self._readers) as connection:
            connection.execute("BEGIN TRANSACTION")
            yield self._session(connection)

    @contextmanager
    def transaction(self, *, tables: int = 1) -> Iterator[IcebergSession]:  # noqa: ARG002
        """See Database. Raises TryAgain after it made a table that was missing: nothing of the transaction is done."""
        with self._taking_turn(None):
            try:
                with self._cursor(self._instance) as connection:
                    yield from self._run(connection)
            except NewTable as missing:
                self._make(missing)
                raise TryAgain(f"{missing.name} was made in the catalog; it is filled by the next try") from None

    @contextmanager
    def replacing(self, amend: Amend) -> Iterator[IcebergSession]:
        """As `transaction`, but the commit becomes what `amend` makes of it. Raises what `amend` raises."""
        with self._taking_turn(None), self._cursor(self._instance) as connection:
            yield from self._run(connection, amend)

    def _run(self, connection: duckdb.DuckDBPyConnection, amend: Amend | None = None) -> Iterator[IcebergSession]:
        session = self._session(connection)
        self._relay.begin(amend or session.sign)
        connection.execute("BEGIN TRANSACTION")
        try:
            yield session
            session.mark_tables()
        except BaseException:
            with suppress(duckdb.Error):  # a statement that failed may have ended the transaction
                connection.execute("ROLLBACK")
            raise
        try:
            connection.execute("COMMIT")
        except duckdb.Error:
            if self._relay.error is not None:
                raise self._relay.error from None
            raise
        if self._relay.is_unknown:
            raise DestinationUnavailable(
                f"the catalog {self.uri} did not answer whether it applied a commit",
                hint="the positions are read from it again; nothing is lost or applied twice",
            )
        for name in session.left:  # by the next one that needs the name, if not now
            with suppress(duckdb.Error):
                connection.execute(text(sql.SQL("DROP TABLE {}").format(session.identifier(name.namespace, name.name))))

    def run_alone(self, statements: Iterable[Query]) -> None:
        """Runs statements that make namespaces and tables, each in its own transaction."""
        with self._taking_turn(None):
            self._run_alone(statements)

    def _run_alone(self, statements: Iterable[Query], table: TableName | None = None) -> None:
        # DuckDB takes a namespace for one that is there once it has looked for it, also if it did not find it.
        self._instance.close()
        self._relay.begin()
        with self._cursor(self._instance) as connection:
            errors = nullcontext() if table is None else self._session(connection).table_errors(table)
            with errors:
                for statement in statements:
                    connection.execute(text(statement))

    def close(self) -> None:
        """The next use opens it again."""
        self._instance.close()
        self._readers.close()
        self._relay.stop()

    def _session(self, connection: duckdb.DuckDBPyConnection) -> IcebergSession:
        return IcebergSession(connection, self._dialect, self.uri)

    def _make(self, table: NewTable) -> None:
        name = table.name
        namespace, place = sql.Identifier(LAKE, name.namespace), sql.Identifier(LAKE, name.namespace, name.name)
        columns = sql.SQL(", ").join(
            sql.SQL("{} {}").format(sql.Identifier(column), sql.SQL(kind)) for column, kind in table.columns
        )
        create = sql.SQL("CREATE TABLE {} ({}) WITH ({} = 'true')").format(place, columns, sql.Literal(LEFT))
        before = [drop(place)] if table.replaces_left else []
        self._run_alone([create_schema(namespace), *before, create], name)

    @contextmanager
    def _taking_turn(self, wait_seconds: float | None) -> Iterator[None]:
        if not self._turn.acquire(timeout=-1 if wait_seconds is None else wait_seconds):
            raise DestinationUnavailable(f"another thread of this process writes to the catalog {self.uri}")
        try:
            yield
        finally:
            self._turn.release()

    @contextmanager
    def _cursor(self, instance: Instance) -> Iterator[duckdb.DuckDBPyConnection]:
        try:
            with instance.cursor() as connection:
                yield connection
        except duckdb.Error as error:
            raise explain(error, self.uri) from None

    def _attach(self, connection: duckdb.DuckDBPyConnection) -> None:
        access = self._access
        load_extensions(connection, "httpfs", "avro", "iceberg")
        storage = {
            "KEY_ID": access.s3_access_key,
            "SECRET": access.s3_secret_key,
            "REGION": access.s3_region,
        }
        if access.s3_endpoint is not None:
            scheme, _, host = access.s3_endpoint.rpartition("://")
            storage |= {"ENDPOINT": host, "URL_STYLE": "path", "USE_SSL": "false" if scheme == "http" else "true"}
        if any(value is not None for value in storage.values()):
            connection.execute(text(sql.SQL("CREATE SECRET etl_storage (TYPE s3, {})").format(_settings(storage))))
        user, _, password = (access.credential or "").partition(":")
        tokens = access.oauth2_server_uri or f"{access.uri.rstrip('/')}/v1/oauth/tokens"
        catalog = {
            "ENDPOINT": self._relay.start(),
            "TOKEN": access.token,
            "CLIENT_ID": user or None,
            "CLIENT_SECRET": password or None,
            "OAUTH2_SERVER_URI": tokens if user else None,
            "OAUTH2_SCOPE": access.scope,
            "AUTHORIZATION_TYPE": "none" if access.token is None and not user else None,
        }
        attach = sql.SQL("ATTACH {} AS {} (TYPE iceberg, READ_ONLY false, {})")
        connection.execute(text(attach.format(sql.Literal(access.warehouse), sql.Identifier(LAKE), _settings(catalog))))


def _settings(values: dict[str, str | None]) -> Query:
    given = [(sql.SQL(name), sql.Literal(value)) for name, value in values.items() if value is not None]
    return sql.SQL(", ").join(sql.SQL("{} {}").format(name, value) for name, value in given)
