"""What the event trigger has told of tables so far, in the order of the WAL: see `source.ddl_trigger`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from etl_core.identifiers import TableId
from etl_core.protocol.messages import LogicalDecodingMessage, Relation, RelationColumn
from etl_core.schema.table import TableSchema
from etl_core.source.ddl_trigger import PREFIX, ToldTable, parse_told


class ToldTables:
    """The last message about each table. A table as it was told is what it is, until the next message.

    That holds only as long as nobody alters the trigger, which `state` shows: DDL of a time without it told nothing.
    """

    def __init__(self, state: Callable[[], str | None]) -> None:
        self._state = state
        self._tables: dict[TableId, ToldTable] = {}

    def note(self, message: LogicalDecodingMessage) -> tuple[ToldTable, ...]:
        """The tables that the message is about, if the trigger of today wrote it."""
        if message.prefix != PREFIX:
            return ()
        tables = parse_told(message.content)
        if tables is None:
            self._tables.clear()
            return ()
        state = self._state() if tables else None
        told = tuple(table for table in tables if table.trigger and table.trigger == state)
        self._tables.update((table.table_id, table) for table in told)
        return told

    def numbers(self, relation: Relation) -> list[int] | None:
        """The attribute numbers of the relation's columns; None where nothing that was told says them."""
        told = self._tables.get(relation.table_id)
        if told is None:
            return None
        by_column = {(each.column.name, each.column.type_oid): each.attnum for each in told.columns}
        numbers = [by_column.get((column.name, column.type_oid), 0) for column in relation.columns]
        # The server sends columns in the order of their numbers; another one was not told of all that happened.
        is_told = all(numbers) and numbers == sorted(numbers)
        return numbers if is_told and told.trigger == self._state() else None


def as_sent(told: ToldTable, base: TableSchema) -> Relation | None:
    """The Relation message that the server will send before the table's next row; None if it says what `base` does.

    But for the table's name: one that it has between two statements means nothing, and the next row has the last.

    `base` is the table of before, of a publication without a column list: a generated column is sent if it was before.
    """
    held = {column.attnum for column in base.columns}
    columns = tuple(each for each in told.columns if each.attnum in held or not each.is_generated)
    relation = Relation(
        None,
        told.table_id,
        base.name.namespace,
        base.name.name,
        told.replica_identity,
        tuple(each.column for each in columns),
    )
    return None if _says(relation, [each.attnum for each in columns], base) else relation


def _says(relation: Relation, attnums: Collection[int], base: TableSchema) -> bool:
    before = [(column.attnum, column.name, column.type.oid, column.type_modifier) for column in base.columns]
    return before == list(_described(attnums, relation.columns)) and _same_key(relation, base)


def _described(attnums: Collection[int], columns: Collection[RelationColumn]) -> Iterator[tuple[int, str, int, int]]:
    for attnum, column in zip(attnums, columns, strict=True):
        yield attnum, column.name, column.type_oid, column.type_modifier


def _same_key(relation: Relation, base: TableSchema) -> bool:
    if relation.replica_identity is not base.replica_identity:
        return False
    flagged = {column.name for column in relation.columns if column.key}
    return flagged in ({*base.key}, {*base.column_names})  # FULL flags all of them
