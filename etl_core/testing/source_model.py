"""A model of a source: tables in a dict, and for every change the bytes a server would send.

    source = SourceModel()
    orders = source.create("orders", {"id": "int8", "body": "text"}, key=("id",), toasted=("body",))
    source.insert(orders, id=1, body="long")
    source.update(orders, (1,), id=2)  # `body` is not named: it goes out as UNCHANGED, after a tuple with the old key
    source.commit()
    for item in source.stream():  # Begin, Relation, frame, frame, Commit
        ...

What a server puts into a message is decided as in heapam.c (ExtractReplicaIdentity) and pgoutput's proto.c
(logicalrep_write_tuple). Values are text representations; numbers are written as Python prints them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.protocol.messages import (
    UNCHANGED,
    Begin,
    Commit,
    Delete,
    Insert,
    Message,
    Relation,
    RelationColumn,
    Truncate,
    TupleData,
    Update,
)
from etl_core.schema import pg_types
from etl_core.schema.table import Column, ReplicaIdentity, TableSchema
from etl_core.testing.pgoutput import build_message, build_tuple, build_xlog_data

Key = tuple[str | None, ...]
Row = Mapping[str, str | None]

_FIRST_OID = 16384
_START = Lsn.parse("0/1000")
_COMMIT_RECORD = 48
"""Bytes from a commit's LSN to its end LSN."""
_TYPES = {pg_type.name: pg_type for pg_type in map(pg_types.builtin, range(10_000)) if pg_type is not None}


@dataclass(slots=True)
class SourceTable:
    """A table as it is now. `toasted` columns hold values that an update which does not name them leaves out."""

    schema: TableSchema
    toasted: frozenset[str]
    rows: dict[Key, Row] = field(default_factory=dict)
    inserted: int = 0
    """Rows that ever were in a table without a key."""

    @property
    def table_id(self) -> TableId:
        return self.schema.table_id

    def key_of(self, row: Row) -> Key:
        """The key of a row that is inserted; for a table without one a number of its own."""
        if not self.schema.key:
            self.inserted += 1
            return (str(self.inserted - 1),)
        return tuple(row[name] for name in self.schema.column_names if name in self.schema.key)


@dataclass(frozen=True, slots=True)
class TableContent:
    """A table as it was after a transaction."""

    schema: TableSchema
    rows: Mapping[Key, Row]


@dataclass(frozen=True, slots=True)
class Transaction:
    """A committed transaction: its changes, a row message with the table's schema of that moment or a Truncate, and
    every table's content after it."""

    commit_lsn: Lsn
    end_lsn: Lsn
    changes: tuple[tuple[TableSchema, Insert | Update | Delete] | tuple[TableSchema, Truncate], ...]
    contents: Mapping[TableId, TableContent]


class SourceModel:
    """A database of one session: one transaction at a time, begun by the first change or by `commit`."""

    def __init__(self) -> None:
        self.tables: list[SourceTable] = []
        self.transactions: list[Transaction] = []
        self._changes: list[tuple[TableSchema, Insert | Update | Delete] | tuple[TableSchema, Truncate]] = []
        self._end_lsn = _START

    def create(
        self,
        name: str,
        columns: Mapping[str, str],
        *,
        key: Sequence[str] = (),
        toasted: Sequence[str] = (),
        identity: ReplicaIdentity = ReplicaIdentity.DEFAULT,
    ) -> SourceTable:
        """An empty table in `public`; `columns` are names and built-in types."""
        table_id = TableId(_FIRST_OID + len(self.tables))
        schema = TableSchema(
            table_id,
            TableName("public", name),
            tuple(Column(column, _TYPES[type_name]) for column, type_name in columns.items()),
            tuple(column for column in columns if column in key),
            identity,
        )
        table = SourceTable(schema, frozenset(toasted))
        self.tables.append(table)
        return table

    def add_column(self, table: SourceTable, name: str, type_name: str) -> None:
        """ALTER TABLE … ADD COLUMN without a default; sent with the table's next change."""
        columns = (*table.schema.columns, Column(name, _TYPES[type_name]))
        table.schema = replace(table.schema, columns=columns)
        table.rows = {key: {**row, name: None} for key, row in table.rows.items()}

    def insert(self, table: SourceTable, **values: object) -> None:
        """A new row; columns that are not named are NULL. ValueError if its key exists."""
        row = {name: _text(values.get(name)) for name in table.schema.column_names}
        key = table.key_of(row)
        if key in table.rows:
            raise ValueError(f"{table.schema.name} has a row with the key {key}")
        table.rows[key] = row
        self._changes.append((table.schema, Insert(None, table.table_id, build_tuple(*row.values()))))

    def update(self, table: SourceTable, key: Sequence[object], **values: object) -> None:
        """Sets the named columns of the row with `key`; KeyError if there is none, ValueError if the new key exists."""
        old_key = tuple(map(_text, key))
        old = table.rows[old_key]
        row = {**old, **{name: _text(value) for name, value in values.items()}}
        new_key = table.key_of(row) if table.schema.key else old_key
        if new_key != old_key and new_key in table.rows:
            raise ValueError(f"{table.schema.name} has a row with the key {new_key}")
        del table.rows[old_key]
        table.rows[new_key] = row
        unchanged = {name for name in table.toasted if name not in values and row[name] is not None}
        sent = build_tuple(*(UNCHANGED if name in unchanged else value for name, value in row.items()))
        old_is_sent = new_key != old_key or bool(table.toasted.intersection(table.schema.key))
        key_tuple, old_tuple = self._identity(table, old, key_is_sent=old_is_sent)
        self._changes.append((table.schema, Update(None, table.table_id, key_tuple, old_tuple, sent)))

    def delete(self, table: SourceTable, key: Sequence[object]) -> None:
        """KeyError if there is no such row."""
        row = table.rows.pop(tuple(map(_text, key)))
        self._changes.append((table.schema, Delete(None, table.table_id, *self._identity(table, row))))

    def _identity(
        self, table: SourceTable, row: Row, *, key_is_sent: bool = True
    ) -> tuple[TupleData | None, TupleData | None]:
        if table.schema.replica_identity is ReplicaIdentity.FULL:
            return None, build_tuple(*row.values())
        if not key_is_sent:
            return None, None
        return build_tuple(*(value if name in table.schema.key else None for name, value in row.items())), None

    def truncate(self, *tables: SourceTable) -> None:
        """One TRUNCATE of several tables."""
        message = Truncate(None, False, False, tuple(table.table_id for table in tables))
        for table in tables:
            table.rows = {}
            self._changes.append((table.schema, message))

    def commit(self) -> Transaction:
        """Ends the transaction, also an empty one, which servers before 15 send too."""
        # As close as transactions that ran at the same time can commit: the next record begins where this one ends.
        commit_lsn = self._end_lsn
        self._end_lsn = Lsn(commit_lsn + _COMMIT_RECORD)
        contents = {table.table_id: TableContent(table.schema, dict(table.rows)) for table in self.tables}
        transaction = Transaction(commit_lsn, self._end_lsn, tuple(self._changes), contents)
        self._changes = []
        self.transactions.append(transaction)
        return transaction

    def stream(self, first: int = 0) -> Iterator[Message | bytes]:
        """What a server sends from the transaction numbered `first` on.

        Row messages are frames (an XLogData around the message), all others messages; a Relation comes before a table's
        first change and after each change of its columns.
        """
        sent: dict[TableId, TableSchema] = {}
        for xid, transaction in enumerate(self.transactions[first:], start=700 + first):
            yield Begin(transaction.commit_lsn, 0, xid)
            for schema, message in transaction.changes:
                if sent.get(schema.table_id) != schema:
                    sent[schema.table_id] = schema
                    yield build_relation(schema)
                if not isinstance(message, Truncate):
                    yield build_frame(message)
                elif schema.table_id == message.table_ids[-1]:
                    yield message
            yield Commit(transaction.commit_lsn, transaction.end_lsn, 0)


def build_relation(schema: TableSchema) -> Relation:
    """The Relation message of a table."""
    is_full = schema.replica_identity is ReplicaIdentity.FULL
    columns = tuple(
        RelationColumn(is_full or column.name in schema.key, column.name, column.type.oid, column.type_modifier)
        for column in schema.columns
    )
    name = schema.name
    return Relation(None, schema.table_id, name.namespace, name.name, schema.replica_identity, columns)


def build_frame(message: Message) -> bytes:
    """A message as the content of CopyData."""
    return build_xlog_data(build_message(message))


def _text(value: object) -> str | None:
    return None if value is None else str(value)
