"""A double of Snowflake's connector over a PostgreSQL database: its transactions, locks and names, strictly.

PostgreSQL is READ COMMITTED and has writers of one row wait, as Snowflake is and does. On top of it are what differs:

- a statement that defines something commits the transaction of its session, cannot be rolled back and waits for nobody,
- what is defined is there for all sessions at once; CREATE OR REPLACE and CLONE are one step,
- a view is its text: it has the tables that are called so when it is read, and no named windows,
- names without quotes are upper case,
- files come by PUT to a stage, and from there by COPY INTO.

What is no Snowflake SQL to sqlglot, and what the double does not know, is refused. `lost`, `before` and
`end_transactions` make faults. Values are PostgreSQL's: whether Snowflake reads a text as the same value is not shown.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, Self

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import sqlglot
from psycopg import sql
from snowflake.connector.errors import OperationalError, ProgrammingError
from sqlglot import exp

from etl_core.destination.declaration import DestinationType
from etl_core.destination.options import Option, Options
from etl_core.destination.snowflake.declaration import SNOWFLAKE
from etl_core.destination.snowflake.destination import SnowflakeDestination

_PREPARE = """
CREATE SCHEMA catalog; CREATE SCHEMA data;
CREATE TABLE catalog."SCHEMATA" ("SCHEMA_NAME" text PRIMARY KEY, "CREATED" timestamptz DEFAULT now());
CREATE TABLE catalog."TABLES" ("TABLE_SCHEMA" text, "TABLE_NAME" text, "TABLE_TYPE" text DEFAULT 'BASE TABLE',
    "CREATED" timestamptz DEFAULT now(), physical text, definition text, PRIMARY KEY ("TABLE_SCHEMA", "TABLE_NAME"));
CREATE SEQUENCE catalog.tables_made;
CREATE VIEW catalog."COLUMNS" AS SELECT "TABLE_SCHEMA", "TABLE_NAME", a.attname AS "COLUMN_NAME",
    CASE t.typname WHEN 'numeric' THEN 'NUMBER' WHEN 'varchar' THEN 'TEXT' WHEN 'float8' THEN 'FLOAT'
        WHEN 'text' THEN 'TEXT' WHEN 'bool' THEN 'BOOLEAN' WHEN 'bytea' THEN 'BINARY' WHEN 'timestamp' THEN
        'TIMESTAMP_NTZ' WHEN 'timestamptz' THEN 'TIMESTAMP_TZ' ELSE upper(t.typname) END AS "DATA_TYPE",
    CASE t.typname WHEN 'numeric' THEN (a.atttypmod - 4) >> 16 END AS "NUMERIC_PRECISION",
    CASE t.typname WHEN 'numeric' THEN (a.atttypmod - 4) & 65535 END AS "NUMERIC_SCALE",
    CASE t.typname WHEN 'varchar' THEN nullif(a.atttypmod, -1) - 4 END AS "CHARACTER_MAXIMUM_LENGTH",
    pg_get_expr(d.adbin, d.adrelid) AS "COLUMN_DEFAULT", a.attnum::int AS "ORDINAL_POSITION"
    FROM catalog."TABLES" JOIN pg_class c ON c.relname = physical AND c.relnamespace = 'data'::regnamespace
    JOIN pg_attribute a ON a.attrelid = c.oid AND attnum > 0 AND NOT attisdropped JOIN pg_type t ON t.oid = a.atttypid
    LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum;
CREATE FUNCTION to_binary(text, text) RETURNS bytea LANGUAGE sql IMMUTABLE AS 'SELECT decode($1, $2)';
CREATE FUNCTION current_transaction() RETURNS text LANGUAGE sql AS 'SELECT pg_current_xact_id()::text';
CREATE FUNCTION earlier(anyelement, anyelement) RETURNS anyelement LANGUAGE sql IMMUTABLE STRICT AS 'SELECT $1';
CREATE FUNCTION later(anyelement, anyelement) RETURNS anyelement LANGUAGE sql IMMUTABLE STRICT AS 'SELECT $2';
CREATE AGGREGATE first_known(anyelement) (SFUNC = earlier, STYPE = anyelement);
CREATE AGGREGATE last_known(anyelement) (SFUNC = later, STYPE = anyelement);
CREATE FUNCTION current_warehouse() RETURNS text LANGUAGE sql AS $$SELECT 'LOADING'$$;
"""
_PUT = re.compile(r"PUT 'file://[^']+' '(@[^']+)' AUTO_COMPRESS = FALSE OVERWRITE = TRUE")
_COPY = re.compile(
    r"COPY INTO \"(?P<table>[^\"]+)\" FROM '(?P<place>@[^']+)' FILE_FORMAT = \(TYPE = PARQUET NULL_IF = \(\)"
    r" BINARY_AS_TEXT = FALSE\) MATCH_BY_COLUMN_NAME = CASE_SENSITIVE ON_ERROR = ABORT_STATEMENT PURGE = TRUE"
)
_CLONE = re.compile(r'CREATE OR REPLACE TABLE (?P<table>"\S.*") CLONE (?P<source>"_etl"\."[^"]+") COPY GRANTS')
_PARTS = re.compile(r'"((?:[^"]|"")*)"')


class SnowflakeAccount:
    """One database of an account, kept in a PostgreSQL database that has nothing else."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.stage: dict[str, list[bytes]] = {}
        self.ran: list[str] = []
        """The statements of all sessions, in order."""
        self.lost: list[str] = []
        """Beginnings of statements that are run when they come next, and whose answer is lost."""
        self.before: dict[str, Callable[[], object]] = {}
        """By the beginning of a statement, what is done once before it."""
        self.guard = threading.RLock()
        self._sessions: list[Session] = []
        with psycopg.connect(dsn) as connection:
            connection.execute("SELECT pg_advisory_xact_lock(1)")
            if not connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = 'catalog'").fetchone():
                connection.execute(_PREPARE.encode())

    def connect(self, autocommit: bool) -> Session:
        """Opens a session, as `Connect` does."""
        session = Session(self, autocommit)
        self._sessions.append(session)
        return session

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        for session in self._sessions:
            session.close()

    def end_transactions(self) -> None:
        """Rolls back what is open, as Snowflake does with a transaction that is idle while others wait for it."""
        for session in self._sessions:
            if session.in_transaction and not session.main.closed:
                session.main.execute("ROLLBACK")
                session.in_transaction = False


class Session:
    """One session."""

    def __init__(self, account: SnowflakeAccount, autocommit: bool) -> None:
        self.account = account
        self.autocommit = autocommit
        self.schema = "PUBLIC"
        self.in_transaction = False
        self.main = psycopg.connect(account.dsn, autocommit=True)
        self.catalog = psycopg.connect(account.dsn, autocommit=True)
        for connection in (self.main, self.catalog):
            connection.execute("SET timezone = 'UTC'")

    def cursor(self) -> _Cursor:
        return _Cursor(self)

    def close(self) -> None:
        self.main.close()
        self.catalog.close()

    def rows(self, statement: str) -> list[Any]:
        """What a query finds."""
        return self.cursor().execute(statement).fetchall()

    # Names.

    def physical(self, schema: str, name: str) -> str:
        query = 'SELECT physical FROM catalog."TABLES" WHERE "TABLE_SCHEMA" = %s AND "TABLE_NAME" = %s'
        found = self.catalog.execute(query, (schema or self.schema, name)).fetchone()
        if found is None or found[0] is None:
            raise ProgrammingError(msg=f"Object '{schema}.{name}' does not exist or not authorized.", errno=2003)
        return str(found[0])

    def translated(self, statement: str) -> str:
        """As PostgreSQL has it, with the tables in which the data are."""
        try:
            tree = sqlglot.parse_one(statement, read="snowflake")
        except sqlglot.errors.ParseError as error:
            raise ProgrammingError(msg=f"SQL compilation error: {error}", errno=1003, sqlstate="42000") from None
        if isinstance(tree, exp.Command):
            raise ProgrammingError(msg=f"the double does not know: {statement}", errno=1003, sqlstate="42000")
        return self._resolved(tree).sql(dialect="postgres")

    def _resolved(self, tree: exp.Expr) -> exp.Expr:
        for name in tree.find_all(exp.Identifier):
            if not name.quoted:
                name.set("this", name.this.upper())
            name.set("quoted", True)
        if any(select.args.get("windows") for select in tree.find_all(exp.Select)):
            raise ProgrammingError(msg="the double knows no named windows", errno=1003, sqlstate="42000")
        for known in list(tree.find_all(exp.IgnoreNulls)):
            function = "first_known" if isinstance(known.this, exp.FirstValue) else "last_known"
            known.replace(exp.Anonymous(this=function, expressions=[known.this.this]))
        expressions = {expression.alias for expression in tree.find_all(exp.CTE)}
        for table in list(tree.find_all(exp.Table)):
            if table.db == "INFORMATION_SCHEMA":
                table.set("db", exp.to_identifier("catalog", quoted=True))
            elif table.db or table.name not in expressions:
                self._resolve(table)
        return tree

    def _resolve(self, table: exp.Table) -> None:
        query = 'SELECT definition FROM catalog."TABLES" WHERE "TABLE_SCHEMA" = %s AND "TABLE_NAME" = %s'
        found = self.catalog.execute(query, (table.db or self.schema, table.name)).fetchone()
        if found is not None and found[0] is not None:
            shown = self._resolved(sqlglot.parse_one(found[0], read="snowflake"))
            name = table.args.get("alias") or exp.TableAlias(this=exp.to_identifier(table.name, quoted=True))
            table.replace(exp.Subquery(this=shown, alias=name))
            return
        table.set("this", exp.to_identifier(self.physical(table.db, table.name), quoted=True))
        table.set("db", exp.to_identifier("data", quoted=True))

    # What is defined.

    def define(self, statement: str) -> None:
        if self.in_transaction:
            self.main.execute("COMMIT")
            self.in_transaction = False
        with self.account.guard:
            clone = _CLONE.fullmatch(statement)
            if clone is not None:
                schema, name = _names(clone["source"])
                source = self.physical(schema, name)
                self._make(*_names(clone["table"]), f"(LIKE data.{source} INCLUDING ALL)", source, replaces=True)
                return
            tree = sqlglot.parse_one(statement, read="snowflake")
            table = tree.find(exp.Table)
            assert table is not None, statement
            match tree, str(tree.args.get("kind")):
                case exp.Use(), _:
                    self.schema = table.name
                case exp.Create(), "SCHEMA":
                    name = table.db
                    made = self.catalog.execute(
                        'INSERT INTO catalog."SCHEMATA" VALUES (%s) ON CONFLICT DO NOTHING', (name,)
                    )
                    if not made.rowcount and not tree.args.get("exists"):
                        raise ProgrammingError(msg=f"Object '{name}' already exists.", errno=2002)
                case exp.Create(), "STAGE":
                    pass
                case exp.Create(), "TABLE":
                    self._create(tree)
                case exp.Create(), "VIEW":
                    self._create_view(tree, table)
                case exp.Drop(), "VIEW":
                    self._drop_view(tree, table)
                case exp.Drop(), "SCHEMA":
                    self.catalog.execute('DELETE FROM catalog."SCHEMATA" WHERE "SCHEMA_NAME" = %s', (table.db,))
                    self.catalog.execute('DELETE FROM catalog."TABLES" WHERE "TABLE_SCHEMA" = %s', (table.db,))
                case exp.Drop(), "TABLE":
                    self._check_kind(table.db, table.name, "BASE TABLE")
                    gone = self.catalog.execute(
                        'DELETE FROM catalog."TABLES" WHERE "TABLE_SCHEMA" = %s AND "TABLE_NAME" = %s',
                        (table.db or self.schema, table.name),
                    )
                    if not gone.rowcount and not tree.args.get("exists"):
                        raise ProgrammingError(msg=f"Table '{table.name}' does not exist.", errno=2003)
                case exp.Alter(), "TABLE":
                    self.catalog.execute(self.translated(statement).encode())
                case _:
                    raise ProgrammingError(msg=f"the double does not know: {statement}", errno=1003)

    def _kind(self, schema: str, name: str) -> str | None:
        query = 'SELECT "TABLE_TYPE" FROM catalog."TABLES" WHERE "TABLE_SCHEMA" = %s AND "TABLE_NAME" = %s'
        found = self.catalog.execute(query, (schema or self.schema, name)).fetchone()
        return None if found is None else str(found[0])

    def _check_kind(self, schema: str, name: str, kind: str) -> None:
        """Raises ProgrammingError if there is something of another kind."""
        if self._kind(schema, name) not in (kind, None):
            raise ProgrammingError(msg=f"Object '{name}' already exists as another kind.", errno=2203)

    def _create_view(self, tree: exp.Create, view: exp.Table) -> None:
        """Its query must be one that can be run."""
        self._check_kind(view.db, view.name, "VIEW")
        assert tree.args.get("replace")
        definition = tree.expression.sql(dialect="snowflake")
        try:
            self.catalog.execute(b"SELECT * FROM (%s) AS shown LIMIT 0" % self.translated(definition).encode())
        except psycopg.Error as error:
            raise _explained(error) from None
        self.catalog.execute(
            'INSERT INTO catalog."TABLES" ("TABLE_SCHEMA", "TABLE_NAME", "TABLE_TYPE", definition)'
            " VALUES (%s, %s, 'VIEW', %s)"
            ' ON CONFLICT ("TABLE_SCHEMA", "TABLE_NAME") DO UPDATE SET definition = excluded.definition',
            (view.db, view.name, definition),
        )

    def _drop_view(self, tree: exp.Drop, view: exp.Table) -> None:
        self._check_kind(view.db, view.name, "VIEW")
        gone = self.catalog.execute(
            'DELETE FROM catalog."TABLES" WHERE "TABLE_SCHEMA" = %s AND "TABLE_NAME" = %s', (view.db, view.name)
        )
        if not gone.rowcount and not tree.args.get("exists"):
            raise ProgrammingError(msg=f"View '{view.name}' does not exist.", errno=2003)

    def _create(self, tree: exp.Create) -> None:
        table = tree.find(exp.Table)
        assert table is not None
        schema, name = table.db or self.schema, table.name
        query = 'SELECT 1 FROM catalog."TABLES" WHERE "TABLE_SCHEMA" = %s AND "TABLE_NAME" = %s'
        is_there = bool(self.catalog.execute(query, (schema, name)).fetchone())
        if is_there and tree.args.get("exists"):
            return
        if is_there and not tree.args.get("replace"):
            raise ProgrammingError(msg=f"Object '{name}' already exists.", errno=2002)
        if not self.catalog.execute('SELECT 1 FROM catalog."SCHEMATA" WHERE "SCHEMA_NAME" = %s', (schema,)).fetchone():
            raise ProgrammingError(msg=f"Schema '{schema}' does not exist or not authorized.", errno=2003)
        like = tree.find(exp.LikeProperty)
        if like is not None:
            source = self.physical(like.this.db, like.this.name)
            self._make(schema, name, f"(LIKE data.{source} INCLUDING ALL)", None, replaces=is_there)
        elif tree.expression is not None:
            selected = self.translated(tree.expression.sql(dialect="snowflake"))
            self._make(schema, name, f"AS {selected}", None, replaces=is_there)
        else:
            self._make(schema, name, _columns(tree), None, replaces=is_there)

    def _make(self, schema: str, name: str, definition: str, source: str | None, *, replaces: bool) -> None:
        self._check_kind(schema, name, "BASE TABLE")
        number = self.catalog.execute("SELECT nextval('catalog.tables_made')").fetchone()
        assert number is not None
        physical = f"t{number[0]}"
        try:
            with self.catalog.transaction():
                self.catalog.execute(f"CREATE TABLE data.{physical} {definition}".encode())
                if source is not None:
                    self.catalog.execute(f"INSERT INTO data.{physical} TABLE data.{source}".encode())
                if replaces:
                    self.catalog.execute(
                        'DELETE FROM catalog."TABLES" WHERE "TABLE_SCHEMA" = %s AND "TABLE_NAME" = %s', (schema, name)
                    )
                self.catalog.execute(
                    'INSERT INTO catalog."TABLES" ("TABLE_SCHEMA", "TABLE_NAME", physical) VALUES (%s, %s, %s)',
                    (schema, name, physical),
                )
        except psycopg.Error as error:
            raise _explained(error) from None


class _Cursor:
    def __init__(self, session: Session) -> None:
        self._session = session
        self._cursor: psycopg.Cursor[Any] | None = None

    @property
    def rowcount(self) -> int | None:
        return None if self._cursor is None else self._cursor.rowcount

    def execute(
        self, operation: str, parameters: Sequence[object] | None = None, *, file_stream: BinaryIO | None = None
    ) -> _Cursor:
        account = self._session.account
        account.ran.append(operation)
        for start in [start for start in account.before if operation.startswith(start)]:
            account.before.pop(start)()
        try:
            self._execute(operation, parameters, file_stream)
        except psycopg.Error as error:
            raise _explained(error) from None
        for start in [start for start in account.lost if operation.startswith(start)]:
            account.lost.remove(start)
            self._session.close()
            raise OperationalError(msg="the connection was lost", errno=250003)
        return self

    def _execute(self, operation: str, parameters: Sequence[object] | None, stream: BinaryIO | None) -> None:
        session, word = self._session, operation.split(maxsplit=1)[0].upper()
        if word in ("BEGIN", "COMMIT", "ROLLBACK"):
            if word == "BEGIN" or session.in_transaction:
                session.main.execute(word.encode())
            session.in_transaction = word == "BEGIN"
        elif word == "PUT":
            put = _PUT.fullmatch(operation)
            if put is None or stream is None:
                raise ProgrammingError(msg="the double does not know this PUT", errno=1003)
            session.account.stage.setdefault(put[1], []).append(stream.read())
        elif word == "COPY":
            self._copy(operation)
        elif word in ("CREATE", "DROP", "ALTER", "USE"):
            session.define(operation)
        else:
            translated = session.translated(operation)
            if word != "SELECT" and not session.autocommit and not session.in_transaction:
                session.main.execute("BEGIN")
                session.in_transaction = True
            self._cursor = session.main.execute(translated.encode(), parameters)

    def _copy(self, operation: str) -> None:
        copy = _COPY.fullmatch(operation)
        if copy is None:
            raise ProgrammingError(msg="the double does not know this COPY", errno=1003)
        table = self._session.physical("", copy["table"])
        for content in self._session.account.stage.pop(copy["place"], []):
            rows = pq.read_table(io.BytesIO(content))
            names = sql.SQL(", ").join(map(sql.Identifier, rows.column_names))
            query = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier("data", table), names)
            with self._session.main.cursor() as cursor, cursor.copy(query) as target:
                for row in rows.to_pylist():
                    target.write_row([row[name] for name in rows.column_names])

    def fetchall(self) -> list[Any]:
        return [] if self._cursor is None else self._cursor.fetchall()

    def fetch_arrow_batches(self) -> Iterator[pa.Table]:
        assert self._cursor is not None
        described = self._cursor.description or []
        kinds = {16: pa.bool_(), 17: pa.binary(), 701: pa.float64()}
        fields = [pa.field(str(at), kinds.get(column.type_code, pa.string())) for at, column in enumerate(described)]
        while rows := self._cursor.fetchmany(5000):
            columns = zip(*rows, strict=True)
            arrays = [pa.array(list(values), field.type) for values, field in zip(columns, fields, strict=True)]
            yield pa.Table.from_arrays(arrays, schema=pa.schema(fields))

    def close(self) -> None:
        """Nothing is held."""


def _build(options: Options, pipeline: str) -> SnowflakeDestination:
    return SnowflakeDestination(SnowflakeAccount(options["dsn"]).connect, "double", pipeline, options["staging"])


DOUBLE = DestinationType(
    build=_build,
    options=(
        Option("dsn", "The PostgreSQL database.", required=True, secret=True),
        Option("staging", "As of snowflake.", kind="path", default="etl-staging"),
    ),
    value_range=SNOWFLAKE.value_range,
    refuses=SNOWFLAKE.refuses,
)
"""For `type: etl_core.testing.servers.snowflake_double:DOUBLE`."""


def _columns(tree: exp.Create) -> str:
    """The columns of a table, as PostgreSQL defines them."""
    defined = []
    for column in tree.this.expressions:
        name = column.this.name if column.this.quoted else column.this.name.upper()
        quoted = sql.Identifier(name).as_string(None)
        rest = exp.ColumnDef(
            this=exp.to_identifier("x"), kind=column.args.get("kind"), constraints=column.args.get("constraints")
        ).sql(dialect="postgres")
        defined.append(quoted + rest.removeprefix("x"))
    return f"({', '.join(defined)})"


def _names(quoted: str) -> tuple[str, str]:
    schema, name = (part.replace('""', '"') for part in _PARTS.findall(quoted))
    return schema, name


def _explained(error: psycopg.Error) -> Exception:
    state = error.sqlstate or ""
    if state == "42703":
        return ProgrammingError(msg="invalid identifier", errno=904, sqlstate="42000")
    if state[:2] == "22":
        return ProgrammingError(msg="a value is not recognized", errno=100038, sqlstate="22018")
    if not state or isinstance(error, psycopg.OperationalError):
        return OperationalError(msg="the connection was lost", errno=250003)
    return ProgrammingError(msg=f"SQL compilation error: {error}", errno=1003, sqlstate="42000")
