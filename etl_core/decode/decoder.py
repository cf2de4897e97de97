"""Frames to changes: selects, splits, collapses and types the rows of every table in them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from etl_core.batch import ChangeCounts, PartialRows, TableChanges
from etl_core.decode.collapse import Chains, Events, Final, collapse
from etl_core.decode.keys import key_texts, number_keys
from etl_core.decode.loading import Wanted, load_cells
from etl_core.decode.log import Logged, log_changes
from etl_core.decode.multiset import count_rows
from etl_core.decode.past import LIVES, Past, commit_times, deleted_at
from etl_core.decode.split import Cells, RowChanges, split
from etl_core.errors import CopyNeeded, EtlError, MalformedMessage, TableError, where
from etl_core.identifiers import TableId
from etl_core.lsn import Lsn
from etl_core.protocol.segment import DELETE, INSERT, UPDATE, Frames, Indices, relations_of, row_numbers, tags_of
from etl_core.protocol.timestamp import to_datetime
from etl_core.schema.change_log import keeps_log, sent_columns
from etl_core.schema.deleted_rows import DELETED_AT, keeps_deleted
from etl_core.schema.table import Column, TableSchema
from etl_core.values.arrow import arrow_schema, key_schema
from etl_core.values.text import Array, fixed_width

_log = logging.getLogger(__name__)


def decode_frames(
    frames: Frames,
    schemas: Mapping[TableId, TableSchema],
    watermarks: Mapping[TableId, Lsn],
    on_table_error: Callable[[TableId, TableError], None] | None = None,
) -> Iterator[TableChanges]:
    """The changes of each table in `watermarks`, in no particular order of tables.

    A change is taken if and only if its transaction's commit record begins at or beyond the table's watermark, which is
    the same as: its commit end LSN is beyond it, for a watermark never lies inside a record. Tables not in
    `watermarks` are passed over. `schemas` are as the Relation messages before these frames described them.

    A TableError is raised, or, if `on_table_error` is given, handed to it and the other tables go on. Raises
    MalformedMessage for frames that are not row messages of the tables in `schemas`.
    """
    first, commit_lsn = frames.transactions()
    plans: list[_Plan] = []
    if not first.size:
        raise MalformedMessage("a change outside of a transaction", offset=0)
    for table_id, selected in _by_relation(frames):
        schema = schemas.get(table_id)
        if schema is None:
            raise MalformedMessage(f"a change of relation {table_id}, which no message has described,", offset=1)
        watermark = watermarks.get(table_id)
        if watermark is None:
            continue
        begins = commit_lsn[0] >= watermark
        truncated = begins and table_id in frames.truncated
        if selected.size and commit_lsn[0] < watermark:
            begun = int(np.searchsorted(commit_lsn, np.uint64(watermark)))
            selected = selected[selected >= (first[begun] if begun < first.size else frames.bounds.size)]
        if not (selected.size or truncated or (begins and table_id in frames.altered)):
            continue
        with _alone(schema, on_table_error):
            plans.append(_plan_table(frames, selected, schema, truncated=truncated))
    wanted = [one for plan in plans for one in plan.wanted()]
    try:
        arrays = iter(load_cells(frames.data, wanted))
    except Exception:
        yield from _load_each(frames.data, plans, on_table_error)
    else:
        for plan in plans:
            yield plan.changes(arrays)


def _load_each(
    data: NDArray[np.uint8], plans: Sequence[_Plan], on_table_error: Callable[[TableId, TableError], None] | None
) -> Iterator[TableChanges]:
    for plan in plans:
        changes: TableChanges | None = None
        with _alone(plan.schema, on_table_error):
            changes = plan.changes(iter(load_cells(data, plan.wanted())))
        if changes is not None:
            yield changes


@contextmanager
def _alone(schema: TableSchema, on_table_error: Callable[[TableId, TableError], None] | None) -> Iterator[None]:
    """Hands the errors of one table to `on_table_error`, if given."""
    try:
        with _as_table_error(schema):
            yield
    except TableError as error:
        if on_table_error is None:
            raise
        on_table_error(schema.table_id, error)


@contextmanager
def _as_table_error(schema: TableSchema) -> Iterator[None]:
    """Whatever goes wrong with the rows of one table is a TableError of that table, but for frames that are damaged."""
    try:
        yield
    except (TableError, MalformedMessage):
        raise
    except EtlError as error:
        raise TableError(f"{schema.name}: {error}", table=str(schema.name), hint=error.hint) from None
    except Exception as error:
        # Its text is left out: it may quote a row.
        _log.error("decoding changes of %s ended with %s\n%s", schema.name, type(error).__name__, where(error))
        raise TableError(
            f"internal error while decoding changes of {schema.name}: {type(error).__name__}",
            table=str(schema.name),
            hint="the log says where; report it",
        ) from None


def _by_relation(frames: Frames) -> Iterator[tuple[TableId, Indices]]:
    """Every relation with the numbers of its frames, ascending; also those that are only truncated or altered."""
    seen = set()
    rows = row_numbers(tags_of(frames.heads))
    if rows.size:
        relation = relations_of(frames.heads[rows])
        if (relation == relation[0]).all():
            seen.add(TableId(int(relation[0])))
            yield TableId(int(relation[0])), rows
        else:
            order = np.argsort(relation, kind="stable")
            sorted_relation = relation[order]
            starts = np.flatnonzero(np.append(True, sorted_relation[1:] != sorted_relation[:-1]))
            for start, stop in zip(starts, np.append(starts[1:], order.size), strict=True):
                table_id = TableId(int(sorted_relation[start]))
                seen.add(table_id)
                yield table_id, rows[order[start:stop]]
    for table_id in (frames.truncated | frames.altered) - seen:
        yield table_id, np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class _Plan:
    """The changes of one table, whose values are yet to be loaded: one Wanted per column, or none where no row is."""

    schema: TableSchema
    inserts: Sequence[Wanted]
    upserts: Sequence[Wanted]
    deletes: Sequence[Wanted]
    partials: tuple[PartialRows, ...]
    truncate: bool
    counts: ChangeCounts
    more: Past | Logged | None = None
    removals: Sequence[Wanted] = ()

    def wanted(self) -> list[Wanted]:
        return [*self.inserts, *self.upserts, *self.deletes, *self.removals]

    def changes(self, arrays: Iterator[Array]) -> TableChanges:
        """Takes the array of each of `wanted()`."""
        empty_rows, empty_keys = _empty_tables(self.schema)
        more = self.more
        changes = TableChanges(
            self.schema,
            inserts=_filled(empty_rows, self.inserts, arrays, more.ours if isinstance(more, Logged) else ()),
            upserts=_filled(empty_rows, self.upserts, arrays, (more.of_upserts,) if isinstance(more, Past) else ()),
            deletes=_filled(empty_keys, self.deletes, arrays),
            partials=self.partials,
            truncate=self.truncate,
            counts=self.counts,
            removals=_filled(empty_rows, self.removals, arrays) if self.removals else None,
        )
        return changes if more is None else more.mark(changes)


def _filled(empty: pa.Table, wanted: Sequence[Wanted], arrays: Iterator[Array], ours: Sequence[Array] = ()) -> pa.Table:
    if not wanted:
        return empty
    return pa.Table.from_arrays([*(next(arrays) for _ in wanted), *ours], schema=empty.schema)


@lru_cache(maxsize=1 << 10)
def _empty_tables(schema: TableSchema) -> tuple[pa.Table, pa.Table]:
    """No rows and no keys; to make them takes as long as to decode some hundred values."""
    # Not by empty_table(), for which pyarrow imports pandas (see values/text.py).
    rows, keys = (
        pa.Table.from_arrays([pa.nulls(0, field.type) for field in fields], schema=fields)
        for fields in (arrow_schema(schema), key_schema(schema))
    )
    return rows, keys


def _plan_table(frames: Frames, selected: Indices, schema: TableSchema, *, truncated: bool = False) -> _Plan:
    """The changes in the frames numbered `selected`, all of the table `schema`, collapsed unless it is a log."""
    keeps, columns = keeps_deleted(schema), sent_columns(schema)
    changes = split(frames, selected, len(columns))
    by_tag = np.bincount(changes.tag, minlength=max(INSERT, UPDATE, DELETE) + 1)
    counts = ChangeCounts(int(by_tag[INSERT]), int(by_tag[UPDATE]), int(by_tag[DELETE]), int(truncated))
    table = _Table(frames.data, schema, columns, changes)
    if keeps_log(schema):
        if not schema.key and not schema.is_multiset:
            _refuse_untold(schema, counts)
        if table.has_unchanged and table.has_unchanged_insert():
            raise table.inserted_without_value()
        wanted, logged = log_changes(frames, selected, schema, columns, changes, truncated=truncated)
        counts = replace(counts, logged=counts.rows + counts.truncated)
        return _Plan(schema, wanted, (), (), (), False, counts, logged)
    if schema.is_multiset:
        return _count(table, counts, truncated=truncated)
    if not schema.key:
        return _Plan(schema, _appended(table, counts), (), (), (), truncated, counts)
    new_key, old_key = number_keys(table.key_texts())
    events = Events(changes.tag, changes.new.rows, new_key, changes.old.rows, old_key, changes.old_of_new())
    final, chains = collapse(events, with_chains=table.has_unchanged, with_last=keeps)
    if keeps:
        return _keep_deleted(frames, selected, table, final, chains, counts)
    complete, partials = _complete(table, (final.inserted, final.upserted), chains)
    return _Plan(
        schema,
        inserts=table.rows(final.inserted[complete[final.inserted]], chains),
        upserts=table.rows(final.upserted[complete[final.upserted]], chains),
        deletes=table.old_keys(final.deleted),
        partials=partials,
        truncate=truncated,
        counts=counts,
    )


def _keep_deleted(
    frames: Frames, selected: Indices, table: _Table, final: Final, chains: Chains | None, counts: ChangeCounts
) -> _Plan:
    """Every key's last row, whether it lives or not. The destination may have a deleted row under any key."""
    assert final.last is not None  # noqa: S101 - it was asked for
    times = commit_times(frames, selected[table.changes.old.rows[final.deleted]])
    here = final.last >= 0
    moments = np.full(table.changes.new.rows.size, LIVES)
    moments[final.last[here]] = times[here]
    rows = np.sort(np.concatenate([final.inserted, final.upserted, final.last[here]]))
    complete, partials = _complete(table, (rows,), chains, moments)
    rows = rows[complete[rows]]
    whole: pa.Table | None = None
    if not here.all():
        keys = table.key_rows(final.deleted[~here])
        gone = keys.append_column(DELETED_AT.name, deleted_at(times[~here]))
        unchanged = tuple(name for name in table.schema.column_names[:-1] if name not in table.schema.key)
        if unchanged:
            partials = (*partials, PartialRows(unchanged, keys, gone))
        else:
            whole = gone
    truncated_at = to_datetime(int(frames.commit_times()[0])) if counts.truncated else None
    past = Past(deleted_at(moments[rows]), whole, truncated_at)
    return _Plan(table.schema, (), table.rows(rows, chains), (), partials, False, counts, past)


def _count(table: _Table, counts: ChangeCounts, *, truncated: bool) -> _Plan:
    """How often every row is there more, or less, than before."""
    old = table.changes.old
    if old.rows.size != counts.updated + counts.deleted or any(cells.unchanged is not None for cells in old.columns):
        name = table.schema.name
        raise CopyNeeded(
            f"{name} has no key, and the source sent an update or delete of it without the whole old row",
            table=str(name),
            hint=f"each of its partitions needs REPLICA IDENTITY FULL, too; then: etl resync {name}",
        )
    if table.has_unchanged:
        raise table.inserted_without_value()
    come, gone = count_rows(table.data, table.changes)
    removals = table.old_rows(gone)
    return _Plan(table.schema, table.rows(come, None), (), (), (), truncated, counts, removals=removals)


def _refuse_untold(schema: TableSchema, counts: ChangeCounts) -> None:
    """Raises CopyNeeded for changes of rows that nothing tells apart."""
    if counts.updated or counts.deleted:
        name = schema.name
        raise CopyNeeded(
            f"{name} is published without a key, so an update or delete cannot be applied to it",
            table=str(name),
            hint=f"if it has no primary key: ALTER TABLE {name} ADD PRIMARY KEY (…), or ALTER TABLE {name} REPLICA"
            " IDENTITY FULL (of a partitioned table for itself and for each partition); if a generated column is in it:"
            f" publish_generated_columns = stored (PostgreSQL 18); then: etl resync {name}",
        )


def _appended(table: _Table, counts: ChangeCounts) -> list[Wanted]:
    _refuse_untold(table.schema, counts)
    if table.has_unchanged:
        raise table.inserted_without_value()
    return table.rows(np.arange(table.changes.new.rows.size), None)


def _complete(
    table: _Table, survived: Sequence[Indices], chains: Chains | None, moments: Indices | None = None
) -> tuple[NDArray[np.bool_], tuple[PartialRows, ...]]:
    """Which new tuples have all their values known, and the other survivors, one PartialRows per set of columns.

    The survivors are all that are in `survived`. With `moments`, when each new tuple's row was deleted, they have that
    as a column.
    """
    columns = table.changes.new.columns
    complete = np.ones(table.changes.new.rows.size, np.bool_)
    if not table.has_unchanged:
        return complete, ()
    survivors = np.sort(np.concatenate(survived))
    unknown: dict[int, NDArray[np.bool_]] = {}
    origin = survivors
    for number, cells in enumerate(columns):
        if cells.unchanged is None:
            continue
        source = survivors if chains is None else chains.resolve(cells.unchanged)[survivors]
        still = cells.unchanged[source]
        if still.any():
            if bool((table.changes.tag[table.changes.new.rows[source[still]]] == INSERT).any()):
                raise table.inserted_without_value()
            unknown[number] = still
            origin = np.where(still, source, origin)
    if not unknown:
        return complete, ()
    numbers = list(unknown)
    pattern = np.stack(list(unknown.values()), axis=1)
    lacking = np.flatnonzero(pattern.any(axis=1))
    complete[survivors[lacking]] = False
    sets, group = np.unique(pattern[lacking], axis=0, return_inverse=True)
    partials = []
    for which, lacks in enumerate(sets):
        members = lacking[group.reshape(-1) == which]
        names = tuple(table.schema.columns[number].name for number, lack in zip(numbers, lacks, strict=True) if lack)
        rows = table.rows(survivors[members], chains, without=names)
        loaded = pa.Table.from_arrays(load_cells(table.data, rows), names=[one.column.name for one in rows])
        if moments is not None:
            loaded = loaded.append_column(DELETED_AT.name, deleted_at(moments[survivors[members]]))
        partials.append(PartialRows(names, table.origin_keys(origin[members]), loaded))
    return complete, tuple(partials)


class _Table:
    """The split rows of one table, and what is wanted for a choice of them."""

    def __init__(
        self, data: NDArray[np.uint8], schema: TableSchema, columns: Sequence[Column], changes: RowChanges
    ) -> None:
        """`columns` are those that the source sends."""
        self.data = data
        self.schema = schema
        self.columns = columns
        self.changes = changes
        self.has_unchanged = any(cells.unchanged is not None for cells in changes.new.columns)
        self.key_numbers = [number for number, column in enumerate(schema.columns) if column.name in schema.key]

    def key_texts(self) -> list[tuple[Array, Array]]:
        new, old = self.changes.new.columns, self.changes.old.columns
        return [pair for number in self.key_numbers for pair in key_texts(self.data, new[number], old[number])]

    def has_unchanged_insert(self) -> bool:
        inserted = self.changes.tag[self.changes.new.rows] == INSERT
        columns = self.changes.new.columns
        return any(bool((one.unchanged & inserted).any()) for one in columns if one.unchanged is not None)

    def inserted_without_value(self) -> TableError:
        name = self.schema.name
        return TableError(
            f"{name}: the source sent an inserted row without the value of a TOASTed column",
            table=str(name),
            hint="the publication's row filter turns an update that left the value unchanged into an insert: "
            f"drop the filter, or ALTER TABLE {name} REPLICA IDENTITY FULL; then: etl resync {name}",
        )

    def rows(self, chosen: Indices, chains: Chains | None, without: tuple[str, ...] = ()) -> list[Wanted]:
        """The new tuples numbered `chosen`, ascending, every unchanged value replaced by the one it leads back to."""
        if not chosen.size:
            return []
        wanted = []
        for cells, column in zip(self.changes.new.columns, self.columns, strict=True):
            if column.name in without:
                continue
            if cells.unchanged is not None and chains is not None:
                cells = cells.take(chains.resolve(cells.unchanged)[chosen])
            elif chosen.size < len(cells):
                cells = cells.take(chosen)
            wanted.append(Wanted(cells, column, self.schema.name))
        return wanted

    def old_rows(self, chosen: Indices) -> list[Wanted]:
        """The old tuples numbered `chosen`, which are whole."""
        if not chosen.size:
            return []
        columns = zip(self.changes.old.columns, self.columns, strict=True)
        return [Wanted(cells.take(chosen), column, self.schema.name) for cells, column in columns]

    def old_keys(self, chosen: Indices) -> list[Wanted]:
        """The keys of the old tuples numbered `chosen`."""
        return self._keys(self.changes.old.columns, chosen) if chosen.size else []

    def key_rows(self, chosen: Indices) -> pa.Table:
        """The same, loaded."""
        keys = self._keys(self.changes.old.columns, chosen)
        return pa.Table.from_arrays(load_cells(self.data, keys), schema=key_schema(self.schema))

    def origin_keys(self, chosen: Indices) -> pa.Table:
        """The key before the change, of the new tuples numbered `chosen`: the old tuple's where there is one."""
        old = self.changes.old_of_new()[chosen]
        both = pa.concat_tables(
            pa.Table.from_arrays(load_cells(self.data, keys), schema=key_schema(self.schema))
            for keys in (
                self._keys(self.changes.new.columns, chosen),
                self._keys(self.changes.old.columns, old[old >= 0]),
            )
        )
        pick = np.arange(chosen.size)
        pick[old >= 0] = chosen.size + np.arange(int((old >= 0).sum()))
        return both.take(fixed_width(pa.int64(), pick, None))

    def _keys(self, columns: Sequence[Cells], chosen: Indices) -> list[Wanted]:
        return [
            Wanted(columns[number].take(chosen), self.schema.columns[number], self.schema.name)
            for number in self.key_numbers
        ]
