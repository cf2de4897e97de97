"""Applies `TableChanges` to one table of an open transaction: the five steps, each one or two statements.

**No PRIMARY KEY is declared.** Uniqueness follows from the order of the steps: every key about to be inserted that the
destination may have is deleted first, and the watermark keeps a batch from being applied twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from etl_core.batch import PartialRows, TableChanges
from etl_core.destination.sql import statements
from etl_core.destination.sql.additions import Additions, StoredColumn, check_clash
from etl_core.destination.sql.deleted_rows import mark_deleted, mark_keys, marks_only
from etl_core.destination.sql.dialect import Dialect, Query
from etl_core.destination.sql.names import check_columns
from etl_core.destination.sql.plan import Plan
from etl_core.destination.sql.removals import remove_rows
from etl_core.destination.sql.session import Session
from etl_core.destination.sql.versions import rename_unchanged
from etl_core.errors import TableError
from etl_core.identifiers import TableName
from etl_core.schema.change_log import keeps_log
from etl_core.schema.deleted_rows import DELETED_AT
from etl_core.schema.table import Column, TableSchema
from etl_core.values import load_missing
from etl_core.values.text import fixed_width


class TableWriter:
    """One table within one transaction, which may bring several parts for it.

    `attnums` are those of the columns as they were last written; 0 or absent if unknown.
    """

    def __init__(self, dialect: Dialect, session: Session, name: TableName, attnums: Mapping[str, int]) -> None:
        self._dialect = dialect
        self._session = session
        self._table = session.identifier(name.namespace, name.name)
        self._name = name
        self._attnums = attnums
        self._schema: TableSchema | None = None
        self._foreign: tuple[StoredColumn, ...] = ()
        """A person's columns."""
        self._touched = False

    @property
    def name(self) -> TableName:
        """Where the table is."""
        return self._name

    def move(self, name: TableName, *, is_written_anew: bool) -> None:
        """The table was given another name."""
        self._table = self._session.identifier(name.namespace, name.name)
        self._name = name
        self._touched = self._touched or is_written_anew

    def apply(self, changes: TableChanges) -> int:
        """Returns the number of rows deleted and inserted. Raises TableError, or the product's exceptions."""
        schema = changes.schema
        self._bring_to(schema)
        changed = 0
        if changes.truncate:
            changed += self._session.execute(statements.delete_all(self._table))
        if changes.mark_deleted is not None:
            changed += self._session.execute(mark_deleted(self._dialect, self._table, changes.mark_deleted))
        if marks_only(changes):
            changed += self._mark(schema, changes.partials[0])
            changes = replace(changes, partials=())
        completed = [self._complete(schema, partial, at) for at, partial in enumerate(changes.partials)]
        upserts = changes.upserts
        if self._foreign and upserts.num_rows:
            completed.append(self._carry(schema, upserts))
            upserts = upserts.slice(0, 0)
        changed += self._delete(schema, _keys_to_delete(changes))
        if changes.removals is not None:
            changed += self._remove(schema, changes.removals)
        arriving = [rows for rows in (changes.inserts, upserts) if rows.num_rows]
        if arriving:
            changed += self._insert(schema, arriving)
        names = [*schema.column_names, *(column.name for column in self._foreign)]
        for temporary in completed:
            changed += self._session.execute(statements.insert_all(self._table, names, temporary))
            self._session.drop_temporary(temporary)
        self._touched = self._touched or changed > 0
        return changed

    def _bring_to(self, schema: TableSchema) -> None:
        """Alters the table until it has the columns of `schema`, in any order, and a person's own."""
        if schema == self._schema:
            return
        described = self._session.columns(self._name)
        present = {column.name: column.type for column in described}
        self._check_ours(schema.name, present)
        self._foreign = tuple(column for column in described if column.name not in self._attnums)
        plan = Plan(self._dialect, schema, self._attnums, present)
        if plan:
            check_columns(self._dialect, schema)
            check_clash(self._dialect, schema, [column.name for column in self._foreign], plan.new_names())
            self._alter(schema, plan)
            self._rename_unchanged(schema, plan)
        self._session.settle_key(replace(schema, name=self._name))
        self._attnums = {c.name: c.attnum or self._attnums.get(c.name, 0) for c in schema.columns}
        self._schema = schema

    def _check_ours(self, name: TableName, present: Mapping[str, str]) -> None:
        """Raises TableError if a column of ours is gone: a new one in its place would be empty.

        `name` is what the pipeline calls the table, which may not have come to that name here.
        """
        gone = [name for name in self._attnums if name not in present]
        if gone:
            raise TableError(
                f"{self._name} has no column {', '.join(gone)} in {self._dialect.product} any more: it was dropped or "
                "renamed there",
                table=str(name),
                hint=f"copy the table again, which makes the column anew: etl resync {name}",
            )

    @property
    def schema(self) -> TableSchema | None:
        """By which the last part was written."""
        return self._schema

    @property
    def attnums(self) -> Mapping[str, int]:
        """Of the columns the table has now."""
        return self._attnums

    def _alter(self, schema: TableSchema, plan: Plan) -> None:
        dialect, session, table = self._dialect, self._session, self._table
        if plan.renamed or plan.retyped or plan.dropped:
            session.will_alter(self._name)
        additions = session.additions(self._name, self._attnums)
        is_held = not dialect.alters_in_place or (self._touched and not dialect.alters_changed_tables)
        if is_held or plan.meets_itself or additions.hold_columns:
            session.will_rewrite(table, plan.stored())
            self._rebuild(additions, schema, plan)
            self._touched = True
            return
        for before, name in plan.renamed:
            session.execute(statements.rename_column(table, before, name))
        for column in plan.retyped:
            session.execute(statements.change_type(dialect, table, column))
        for column in plan.added:
            session.execute(statements.add_column(dialect, table, column))
        for name in plan.dropped:
            session.execute(statements.drop_column(table, name))
        filled = [column for column in plan.added if column.missing_value is not None]
        if filled:
            query = statements.fill(dialect, table, filled)
            changed = session.execute_with(query, _held_by_old_rows(dialect, schema, filled))
            self._touched = self._touched or changed > 0

    def _rename_unchanged(self, schema: TableSchema, plan: Plan) -> None:
        """Older rows of a log name the columns that they leave unchanged."""
        now = {**dict(plan.renamed), **dict.fromkeys(plan.dropped)}
        query = rename_unchanged(self._dialect, self._table, now) if keeps_log(schema) else None
        if query is not None:
            self._touched = self._session.execute(query) > 0 or self._touched

    def _rebuild(self, additions: Additions, schema: TableSchema, plan: Plan) -> None:
        """The table anew with the columns of `schema` and what people added."""
        dialect, session = self._dialect, self._session
        held = _held_by_old_rows(dialect, schema, plan.added)
        if dialect.replaces_by_select and not additions:  # which does not bring them
            session.execute_with(
                statements.rebuild(dialect, self._table, schema.columns, plan.origins, plan.added), held
            )
            return
        names = [(before, name) for name, before in plan.origins.items()]
        names += [(column.name, column.name) for column in additions.columns]
        result = dialect.temporary("etl$rebuilt")
        session.put_aside(result, statements.keep(self._table, names))
        with session.made_anew(replace(schema, name=self._name), additions.renamed(dict(plan.renamed))) as table:
            stay = [name for _, name in names]
            session.execute_with(statements.insert_rebuilt(dialect, table, stay, plan.added, result), held)
        session.drop_temporary(result)
        self._table = session.identifier(self._name.namespace, self._name.name)

    def _carry(self, schema: TableSchema, rows: pa.Table) -> Query:
        """Puts rows that may be there, with a person's values of them, into a temporary table; returns its name."""
        result = self._dialect.temporary("etl$carried")
        self._session.will_store(rows)
        query = statements.carry(self._dialect, schema.columns, _key_columns(schema), self._foreign, self._table)
        self._session.put_aside(result, query, _ordered(self._dialect, rows, schema.columns, schema.name))
        return result

    def _complete(self, schema: TableSchema, partial: PartialRows, number: int) -> Query:
        """Joins the partial rows with the rows they came from; returns the temporary table that holds the result."""
        dialect, key = self._dialect, _key_columns(schema)
        prefix = "origin$"
        while any(dialect.fold(column.name).startswith(dialect.fold(prefix)) for column in schema.columns):
            prefix += "$"
        origins = [prefix + str(at) for at in range(len(key))]
        known = [column for column in schema.columns if column.name not in partial.unchanged]
        unchanged = [column for column in schema.columns if column.name in partial.unchanged]
        rows = _ordered(dialect, partial.rows, known, schema.name)
        for name, column in zip(origins, key, strict=True):
            values = dialect.arrow_values(partial.origin_keys[column.name], column, schema.name)
            rows = rows.append_column(dialect.arrow_field(column).with_name(name), values)
        result = dialect.temporary(f"etl$completed{number}")
        kept = [*(column.name for column in unchanged), *(column.name for column in self._foreign)]
        query = statements.complete(dialect, self._table, known, kept, key, origins)
        found = self._session.put_aside(result, query, rows)
        _check_found(schema, rows.num_rows, found)
        self._session.will_store(partial.rows)
        self._session.will_rewrite(result, unchanged)
        return result

    def _mark(self, schema: TableSchema, partial: PartialRows) -> int:
        """Rows of which nothing changed but that they are deleted: see `marks_only`."""
        key = _key_columns(schema)
        rows = _ordered(self._dialect, partial.rows, [*key, DELETED_AT], schema.name)
        found = self._session.execute_with(mark_keys(self._dialect, self._table, key), rows)
        _check_found(schema, rows.num_rows, found)
        return found

    def _delete(self, schema: TableSchema, keys: Sequence[pa.Table]) -> int:
        if not keys:
            return 0
        key = _key_columns(schema)
        together = pa.concat_tables([_ordered(self._dialect, rows, key, schema.name) for rows in keys])
        query = statements.delete_keys(self._dialect, self._table, key)
        return self._session.execute_with(query, together)

    def _remove(self, schema: TableSchema, removals: pa.Table) -> int:
        if self._foreign:
            raise TableError(
                f"{schema.name} has no key, so an update or delete of its rows would lose values of column "
                f"{', '.join(column.name for column in self._foreign)}, which this pipeline did not create",
                table=str(schema.name),
                hint="save them in a table of your own, drop the columns with ALTER TABLE … DROP COLUMN, "
                f"then: etl resync {schema.name}",
            )
        rows = _ordered(self._dialect, removals, schema.columns, schema.name)
        return remove_rows(self._dialect, self._session, self._table, schema, rows)

    def _insert(self, schema: TableSchema, arriving: Sequence[pa.Table]) -> int:
        rows = pa.concat_tables([_ordered(self._dialect, each, schema.columns, schema.name) for each in arriving])
        self._session.will_store(rows)
        return self._session.insert(self._dialect, self._table, schema.columns, rows)


def _held_by_old_rows(dialect: Dialect, schema: TableSchema, columns: Sequence[Column]) -> pa.Table:
    """One row: what rows older than `columns` hold in them."""
    row = pa.Table.from_arrays([fixed_width(pa.int64(), np.zeros(1, np.int64), None)], names=["etl$"])
    for column in columns:
        value: Any = load_missing(column, schema.name)
        values = dialect.arrow_values(pa.repeat(value, 1), column, schema.name)
        row = row.append_column(dialect.arrow_field(column), values)
    return row


def _check_found(schema: TableSchema, wanted: int, found: int) -> None:
    if found != wanted:
        what = f"{wanted - found} rows whose unchanged values are needed are not there"
        if found > wanted:
            what = f"keys are there more than once: {found} rows have {wanted} of them"
        raise TableError(
            f"{schema.name}: {what}",
            table=str(schema.name),
            hint=f"the table was changed from outside; copy it again: etl resync {schema.name}",
        )


def _key_columns(schema: TableSchema) -> list[Column]:
    return [column for column in schema.columns if column.name in schema.key]


def _keys_to_delete(changes: TableChanges) -> list[pa.Table]:
    tables = [changes.deletes, changes.upserts]
    for partial in changes.partials:
        tables += [partial.origin_keys, partial.rows]
    return [table for table in tables if table.num_rows]


def _ordered(dialect: Dialect, rows: pa.Table, columns: Sequence[Column], table: TableName) -> pa.Table:
    """The `columns` of `rows`, as they are handed over."""
    values = [dialect.arrow_values(rows.column(column.name), column, table) for column in columns]
    return pa.Table.from_arrays(values, schema=dialect.arrow_schema(columns))
