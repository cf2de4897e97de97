"""Tables whose changes are streamed out of a redo log, as their rows may lack unchanged values (TOAST).

Such a value is in the table alone. It can be looked up there only while the table is exactly where its watermark says:
rows of a try that was lost are ahead of it, and a lookup would find what the source has written later. So nothing is
streamed before it is certain to be. A batch becomes staging tables, its partial rows are completed into another one,
and the transaction that moves the watermark writes their names down in the bookkeeping (`redo`). That commits the
batch. Only then its rows are streamed (`cdc`), the note is removed, and the staging tables go.

**Whatever is lost, the batch stays what it is.** A process that finds a note streams it to the end before it looks at
the table or writes to it, and a transaction moves no watermark while there is one. A batch that was not committed has
streamed nothing, so the next one may be cut as it likes.

**Streaming it twice changes nothing**, at once or one after the other: the rows are the same, and so are their sequence
numbers: the watermark at which the batch begins, which no other batch of the table begins at, and the part. A process
that stood still and streams what others have streamed long ago is outranked, as in `cdc`, by all that was committed
since. No claim is needed.

**A lookup is a query**, and a query of a table without `max_staleness` has everything that was answered:
https://cloud.google.com/bigquery/docs/change-data-capture#manage_table_staleness. With a staleness it may have older
rows, so a table that has one is not of this kind, and one that was given one later stops at its first partial row.

Staging tables go by themselves after a week. If a note is older, the table is copied again.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from google.api_core import exceptions
from google.cloud import bigquery

from etl_core.destination.bigquery import statements
from etl_core.destination.bigquery.bookkeeping import Bookkeeping, StoredTable
from etl_core.destination.bigquery.columns import StoredColumn
from etl_core.destination.bigquery.connection import CALL_SECONDS, RETRY, Clients
from etl_core.destination.bigquery.failures import ORIGIN, translated
from etl_core.destination.bigquery.method import is_stale
from etl_core.destination.bigquery.names import Place
from etl_core.destination.bigquery.protobuf import RowEncoder
from etl_core.destination.bigquery.reading import read_columns
from etl_core.destination.bigquery.row_stream import RowStream
from etl_core.destination.bigquery.staging_tables import StagingTables
from etl_core.errors import COPIED_AGAIN, CopiedAgain, DestinationError, DestinationUnusable, EtlError, TableError
from etl_core.lsn import Lsn
from etl_core.schema.table import TableSchema

_ATTEMPT = 0
"""Of all tries: they send the same."""


@dataclass(frozen=True, slots=True)
class StagedChanges:
    """A part of a batch in its staging table. `columns` are the table's under its schema."""

    schema: TableSchema
    columns: tuple[StoredColumn, ...]
    place: Place
    unchanged: tuple[tuple[str, ...], ...]

    def with_columns(self, final: Collection[StoredColumn]) -> StagedChanges:
        """With those of its columns alone that are among `final`."""
        pairs = [pair for pair in zip(self.columns, self.schema.columns, strict=True) if pair[0] in final]
        schema = replace(self.schema, columns=tuple(column for _, column in pairs))
        return replace(self, schema=schema, columns=tuple(column for column, _ in pairs))


@dataclass(frozen=True, slots=True)
class Redo:
    """What is to be streamed to one table. `key` are names in BigQuery.

    `parts` are staging tables in their order, each with the columns of it that the table has in the end.
    """

    begins_at: Lsn
    key: tuple[str, ...]
    parts: tuple[tuple[Place, tuple[bigquery.SchemaField, ...]], ...]

    def dump(self) -> str:
        """As the bookkeeping has it; columns that parts have in common stand there once."""
        fields = list(dict.fromkeys(fields for _, fields in self.parts))
        noted = {
            "begins_at": int(self.begins_at),
            "key": self.key,
            "columns": [[field.to_api_repr() for field in each] for each in fields],
            "parts": [[place.table, fields.index(each)] for place, each in self.parts],
        }
        return json.dumps(noted)

    @classmethod
    def load(cls, noted: str, project: str, dataset: str) -> Redo:
        """The staging tables are in this dataset."""
        found: dict[str, Any] = json.loads(noted)
        columns = [tuple(map(bigquery.SchemaField.from_api_repr, each)) for each in found["columns"]]
        parts = tuple((Place(project, dataset, table), columns[number]) for table, number in found["parts"])
        return cls(Lsn(found["begins_at"]), tuple(found["key"]), parts)


class RedoLog:
    """Of one destination. Used by several threads, but for one table by one at a time."""

    def __init__(self, clients: Clients, book: Bookkeeping) -> None:
        self._clients = clients
        self._book = book

    def complete(
        self,
        table: StoredTable,
        begins_at: Lsn,
        parts: Sequence[StagedChanges],
        final: Sequence[StoredColumn],
        staging: StagingTables,
    ) -> Redo:
        """What a batch of these parts, all of it staged, has for the table, which is at `begins_at`; rows made whole.

        Parts with partial rows get another table of `staging`. `final` are the columns that the table has in the end,
        all of which are there already: values of others are not streamed, not even of one whose name another column
        has taken. Raises TableError if rows cannot be completed.
        """
        done: list[StagedChanges] = []
        for part in (part.with_columns(final) for part in parts):
            done.append(replace(part, place=self._completed(table, part, done, staging)) if part.unchanged else part)
        key = {column.name: column.column for column in final}
        fields = [tuple(statements.fields(part.columns, part.schema)) for part in done]
        redo = tuple((part.place, each) for part, each in zip(done, fields, strict=True))
        return Redo(begins_at, tuple(key[name] for name in parts[-1].schema.key), redo)

    def finish(self, tables: Collection[StoredTable]) -> None:
        """Streams what the tables have in `redo`, and takes note of it.

        Raises DestinationUnavailable, DestinationUnusable, or the first TableError when the other tables are finished.
        """
        redone, parts, failed = {}, [], None
        for table in tables:
            if table.redo is None:
                continue
            redo = Redo.load(table.redo, self._clients.project, self._book.dataset)
            try:
                self._stream(table, redo)
            except DestinationUnusable:
                raise
            except (TableError, DestinationError) as error:  # such as a right on this table that is gone
                if not self._is_done(table):
                    failed = failed or _of_table(table, error)
                    continue
            redone[table.table_id] = table.redo
            parts += [place for place, _ in redo.parts]
        if redone:
            self._book.has_redone(redone)
        self.drop(parts)
        if failed is not None:
            raise failed

    def drop(self, places: Collection[Place]) -> None:
        """Drops staging tables; those that cannot be dropped now go by themselves."""
        for place in places:
            try:
                self._book.drop(place)
            except EtlError:
                return

    def _completed(
        self, table: StoredTable, part: StagedChanges, earlier: Sequence[StagedChanges], staging: StagingTables
    ) -> Place:
        """The staging table with the part's rows, all of them whole."""
        with translated("looking at a table", table.name):
            found = self._clients.rest().get_table(str(table.place), retry=RETRY, timeout=CALL_SECONDS)
        if is_stale(found.max_staleness):
            raise TableError(
                f"rows of {table.name} lack unchanged TOAST values, and the table was given a max_staleness, with which"
                " a query may find older ones",
                table=str(table.name),
                hint=f"ALTER TABLE {table.place.sql} SET OPTIONS (max_staleness = NULL); then: etl resync {table.name}",
            )
        fields = statements.staged_fields(part.columns, part.schema, with_origins=False)
        target = staging.create(f"redo_{table.table_id}", fields)
        held = table.place.sql
        if earlier:
            changed = [(before.place, before.columns) for before in earlier]
            held = statements.held_after(table.place, changed, part.place, part.columns, part.schema)
        script = statements.complete(target, part.place, part.columns, part.schema, part.unchanged, held)
        self._clients.run(
            statements.script(script),
            "completing rows",
            table=table.name,
            explain=lambda message: _missing_rows(table) if ORIGIN in message else None,
        )
        return target

    def _stream(self, table: StoredTable, redo: Redo) -> None:
        stream: RowStream | None = None
        before: tuple[bigquery.SchemaField, ...] = ()
        try:
            for number, (place, fields) in enumerate(redo.parts):
                if stream is None or fields != before:
                    if stream is not None:
                        stream.close()
                    types = {field.name: statements.kind_of(field) for field in fields}
                    encoder = RowEncoder(types, list(types))
                    stream = RowStream(self._clients.write(), table.place.path, str(table.name), encoder)
                    before = fields
                for deletes, rows in self._read(table, redo, place, fields):
                    stream.send(deletes, rows, redo.begins_at, _ATTEMPT, number)
        finally:
            if stream is not None:
                stream.close()

    def _read(
        self, table: StoredTable, redo: Redo, place: Place, fields: tuple[bigquery.SchemaField, ...]
    ) -> Iterator[tuple[pa.Table, pa.Table]]:
        """The keys to delete and the rows of a part, some at a time."""
        schema = pa.schema([pa.field(field.name, statements.kind_of(field).arrow) for field in fields])
        names = [statements.FINAL, *schema.names]
        with translated("reading the redo log", table.name):
            try:
                batches = read_columns(self._clients, place, names, table.name)
            except exceptions.NotFound:
                raise _gone(table) from None
        for batch in batches:
            rows = pa.Table.from_arrays(
                [values.cast(field.type) for values, field in zip(batch.columns[1:], schema, strict=True)],
                schema=schema,
            )
            is_final: Any = batch.column(0)
            yield rows.filter(pc.invert(is_final)).select(list(redo.key)), rows.filter(is_final)

    def _is_done(self, table: StoredTable) -> bool:
        """Whether another process has streamed it meanwhile, or the table was copied again."""
        now = self._book.tables().get(table.table_id)
        return now is None or now.redo != table.redo


def _missing_rows(table: StoredTable) -> TableError:
    return TableError(
        f"{table.name}: rows whose unchanged values are needed are not there",
        table=str(table.name),
        hint=f"the table was changed from outside; copy it again: etl resync {table.name}",
    )


def _gone(table: StoredTable) -> CopiedAgain:
    return CopiedAgain(
        f"{table.name}: a batch that is committed was not streamed within a week, and its staging table is gone",
        table=str(table.name),
        hint=COPIED_AGAIN,
    )


def _of_table(table: StoredTable, error: TableError | DestinationError) -> TableError:
    if isinstance(error, TableError):
        return error
    return TableError(str(error), table=str(table.name), hint=error.hint)
