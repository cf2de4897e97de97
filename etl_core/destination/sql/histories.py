"""The views beside logs, in the transaction that changes what they show.

`_etl.logs` has a row for each log of changes: from which copy on its rows are in the order of their positions and told
apart by the key of now (`since`, NULL where they are not in order), and beside which table its views are, made of what.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from psycopg import sql

from etl_core.destination.aside import is_aside
from etl_core.destination.sql.bookkeeping import Bookkeeping, StoredLog
from etl_core.destination.sql.dialect import Dialect
from etl_core.destination.sql.session import Session
from etl_core.destination.sql.stored_tables import StoredTable
from etl_core.destination.sql.versions import current, versions
from etl_core.errors import TableError
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.schema.change_log import LSN, SEQ, current_view, history_view, keeps_log, told_by_numbers, views_of
from etl_core.schema.table import TableSchema


class Histories:
    """Of one transaction. Costs nothing where no table is a log."""

    def __init__(self, dialect: Dialect, session: Session, book: Bookkeeping) -> None:
        self._dialect = dialect
        self._session = session
        self._book = book
        self._logs: dict[tuple[str, TableId], StoredLog] | None = None
        session.on_alter(self.leave)

    def check_table(self, schema: TableSchema) -> None:
        """Raises TableError if the table's name is that of a view of ours."""
        for log in self._known():
            if log.name is None or not any(self._is_same(view, schema.name) for view in views_of(log.name)):
                continue
            if self._is_there(schema.name):
                raise TableError(
                    f"{schema.name} is the name of a view in {self._dialect.product}, which shows the versions of"
                    f" {log.name} (write_mode history)",
                    table=str(schema.name),
                    hint=f"rename one of them at the source, or give {log.name} write_mode append",
                )

    def check_views(self, schema: TableSchema, table: TableName) -> None:
        """Raises TableError if a view of the log, which is there as `table`, has a name that is not ours to take."""
        beside = [log.name for log in self._known() if log.name is not None]
        ours = any(self._is_same(name, table) for name in beside)
        replicated = [stored for stored in self._book.all_tables() if stored.lsn is not None]
        for view in views_of(table):
            longest = self._dialect.longest_name
            if longest is not None and len(view.name.encode()) > longest:
                raise TableError(
                    f"{table} with write_mode history needs a view called {view}, of whose name {self._dialect.product}"
                    f" keeps {longest} bytes",
                    table=str(schema.name),
                    hint=f"give {table} write_mode append, then: etl resync {schema.name}",
                )
            taken = next((stored for stored in replicated if self._is_same(stored.name, view)), None)
            if taken is not None:
                what = f"which is a table of pipeline {taken.pipeline}"
                hint = "rename one of them at the source"
            elif not ours and self._is_there(view):
                what = f"which exists in {self._dialect.product} and was not made for it"
                hint = "rename or drop it there"
            else:
                continue
            raise TableError(
                f"{table} with write_mode history needs a view called {view}, {what}",
                table=str(schema.name),
                hint=f"{hint}, or give {table} write_mode append; then: etl resync {schema.name}",
            )

    def copied(
        self, schema: TableSchema, before: StoredTable | None, watermark: Lsn, *, is_ordered: bool, has_keys: bool
    ) -> None:
        """A copy was published. `before` is the table whose rows stay, None where none do.

        `is_ordered` tells whether none of these is beyond the copy, `has_keys` whether they have the keys they had.
        """
        known = self._known()
        stored = {(table.pipeline, table.table_id) for table in self._book.all_tables()} if known else set()
        for other in known:
            if (other.pipeline, other.table_id) not in stored:
                self._forget(other)  # another table has its name now
        log = self._of(schema)
        if not keeps_log(schema):
            if log is not None:
                self._forget(log)
            return
        since: Lsn | None = watermark
        if before is not None and log is not None:
            numbers = told_by_numbers({column.name: column.attnum for column in schema.columns})
            if log.since is None or (has_keys and told_by_numbers(before.attnums) == numbers):
                since = log.since if log.since is None else min(log.since, watermark)
        if not is_ordered:
            since = None
        if log is not None and log.name is not None and not schema.history:
            log = self._drop_views(log)
        name = None if log is None else log.name
        self._put(StoredLog(self._book.pipeline, schema.table_id, since, name))

    def bring(self, schema: TableSchema, table: TableName) -> None:
        """Has the views show the log, which is there as `table`; they stay as they are if they do.

        Raises TableError for a log whose rows are not in the order of their positions.
        """
        log, spelled = self._of(schema), self._dialect.versions
        if not schema.history or log is None or spelled is None:
            return
        if is_aside(table):
            self._drop_views(log)
            return
        if log.since is None:
            raise TableError(
                f"the log of {table} in {self._dialect.product} has positions beyond the source's, as of another server"
                " or a backup, so its versions cannot be put in order",
                table=str(schema.name),
                hint=f"rename that table there, which keeps the log, then: etl resync {schema.name}",
            )
        query = versions(self._dialect, spelled, self._session.within_view(table), schema, log.since)
        # A view has the types that its columns had when it was made.
        types = [self._dialect.type_name(column) for column in schema.columns]
        made_of = hashlib.sha256(f"{query.as_string(None)}\n{types}".encode()).hexdigest()
        if log.name == table and log.views == made_of:
            return
        self.check_views(schema, table)
        if log.name != table or self._dialect.views_hold_columns:
            log = self._drop_views(log)
        self._session.create_view(history_view(table), query)
        shown = self._session.within_view(history_view(table))
        self._session.create_view(current_view(table), current(shown, schema))
        self._put(replace(log, name=table, views=made_of))

    def leave(self, table: TableName) -> None:
        """Drops the views beside the table, which is to have another name or other columns, or to be dropped.

        `bring` makes them again.
        """
        for log in self._known():
            if log.name is not None and self._is_same(log.name, table):
                self._drop_views(log)

    def is_ordered(self, table: TableName, watermark: Lsn) -> bool:
        """Whether no row of a log is beyond a copy with that watermark."""
        query = sql.SQL("SELECT count(*) FROM {} WHERE {} > {w} OR ({} = {w} AND {} > 0)").format(
            self._identifier(table),
            sql.Identifier(LSN.name),
            sql.Identifier(LSN.name),
            sql.Identifier(SEQ.name),
            w=sql.Literal(int(watermark)),
        )
        return not self._session.fetch(query)[0][0]

    def _known(self) -> list[StoredLog]:
        """Of every pipeline."""
        if self._logs is None:
            stored = [] if self._dialect.versions is None else self._book.logs()
            self._logs = {(log.pipeline, log.table_id): log for log in stored}
        return list(self._logs.values())

    def _of(self, schema: TableSchema) -> StoredLog | None:
        own = (self._book.pipeline, schema.table_id)
        return next((log for log in self._known() if (log.pipeline, log.table_id) == own), None)

    def _put(self, log: StoredLog) -> None:
        if self._dialect.versions is not None:
            self._book.put_log(log)
            self._logs = None

    def _forget(self, log: StoredLog) -> None:
        self._drop_views(log)
        self._book.forget_log(log)
        self._logs = None

    def _drop_views(self, log: StoredLog) -> StoredLog:
        if log.name is None:
            return log
        there = set(self._session.relations(views=True)) - set(self._session.relations(views=False))
        for view in reversed(views_of(log.name)):
            if any(self._is_same(TableName(*other), view) for other in there):
                self._session.drop_view(view)
        without = replace(log, name=None, views=None)
        self._put(without)
        return without

    def _identifier(self, name: TableName) -> sql.Composable:
        return self._session.identifier(name.namespace, name.name)

    def _is_there(self, name: TableName) -> bool:
        """Whether a table or a view is called so."""
        return any(self._is_same(TableName(*other), name) for other in self._session.relations(views=True))

    def _is_same(self, one: TableName, other: TableName) -> bool:
        fold = self._dialect.fold
        return (fold(one.namespace), fold(one.name)) == (fold(other.namespace), fold(other.name))
