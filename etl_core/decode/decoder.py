"""Frames to changes: selects, splits, collapses and types the rows of every table in them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from etl_core.batch import ChangeCounts, PartialRows, TableChanges
from etl_core.decode.collapse import Chains, Events, Final, collapse, number_keys
from etl_core.decode.split import Cells, RowChanges, gather, split
from etl_core.errors import CopyNeeded, EtlError, MalformedMessage, TableError, where
from etl_core.identifiers import TableId
from etl_core.lsn import Lsn
from etl_core.protocol.segment import DELETE, INSERT, UPDATE, Frames, Indices, row_numbers
from etl_core.schema.arrow import arrow_schema, key_schema
from etl_core.schema.table import TableSchema
from etl_core.values import load
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
    if not first.size:
        raise MalformedMessage("a change outside of a transaction", offset=0)
    for table_id, selected in _by_relation(frames):
        schema = schemas.get(table_id)
        if schema is None:
            raise MalformedMessage(f"a change of relation {table_id}, which no message has described,", offset=1)
        watermark = watermarks.get(table_id)
        if watermark is None:
            continue
        truncated = table_id in frames.truncated and commit_lsn[0] >= watermark
        if selected.size and commit_lsn[0] < watermark:
            begun = int(np.searchsorted(commit_lsn, np.uint64(watermark)))
            selected = selected[selected >= (first[begun] if begun < first.size else frames.bounds.size)]
        if not selected.size and not truncated:
            continue
        try:
            changes = _decode_alone(frames, selected, schema, truncated=truncated)
        except TableError as error:
            if on_table_error is None:
                raise
            on_table_error(table_id, error)
        else:
            yield changes


def _decode_alone(frames: Frames, selected: Indices, schema: TableSchema, *, truncated: bool) -> TableChanges:
    """Whatever goes wrong with the rows of one table is a TableError of that table, but for frames that are damaged."""
    try:
        return decode_table(frames, selected, schema, truncated=truncated)
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
    """Every relation with the numbers of its frames, ascending; also those that are only truncated."""
    seen = set()
    rows = row_numbers(frames.tags())
    if rows.size:
        relation = frames.relations(rows)
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
    for table_id in frames.truncated - seen:
        yield table_id, np.empty(0, np.int64)


def decode_table(frames: Frames, selected: Indices, schema: TableSchema, *, truncated: bool = False) -> TableChanges:
    """The changes in the frames numbered `selected`, all of the table `schema`, collapsed and typed."""
    changes = split(frames, selected, len(schema.columns))
    counts = ChangeCounts(
        int((changes.tag == INSERT).sum()),
        int((changes.tag == UPDATE).sum()),
        int((changes.tag == DELETE).sum()),
        int(truncated),
    )
    table = _Table(frames.data, schema, changes)
    if not schema.key:
        return _append(table, truncated, counts)
    try:
        new_key, old_key = number_keys(table.keys(changes.new.columns), table.keys(changes.old.columns))
        events = Events(changes.tag, changes.new.rows, new_key, changes.old.rows, old_key, changes.old_of_new())
        final, chains = collapse(events, with_chains=table.has_unchanged)
        complete, partials = _complete(table, final, chains)
    except TableError:
        raise
    except EtlError as error:
        raise TableError(f"{schema.name}: {error}", table=str(schema.name), hint=error.hint) from None
    return TableChanges(
        schema,
        inserts=table.rows(final.inserted[complete[final.inserted]], chains),
        upserts=table.rows(final.upserted[complete[final.upserted]], chains),
        deletes=table.old_keys(final.deleted),
        partials=partials,
        truncate=truncated,
        counts=counts,
    )


def _append(table: _Table, truncated: bool, counts: ChangeCounts) -> TableChanges:
    if counts.updated or counts.deleted:
        name = table.schema.name
        raise CopyNeeded(
            f"{name} is published without a key, so an update or delete cannot be applied to it",
            table=str(name),
            hint=f"if it has no primary key: ALTER TABLE {name} ADD PRIMARY KEY (…); if a generated column is in it:"
            f" publish_generated_columns = stored (PostgreSQL 18); then: etl resync {name}",
        )
    if table.has_unchanged:
        raise table.inserted_without_value()
    everything = np.arange(table.changes.new.rows.size)
    return TableChanges(
        table.schema,
        inserts=table.rows(everything, None),
        upserts=table.arrow.empty_table(),
        deletes=pa.schema([]).empty_table(),
        truncate=truncated,
        counts=counts,
    )


def _complete(table: _Table, final: Final, chains: Chains | None) -> tuple[NDArray[np.bool_], tuple[PartialRows, ...]]:
    """Which new tuples have all their values known, and the surviving others, one PartialRows per set of columns."""
    columns = table.changes.new.columns
    complete = np.ones(table.changes.new.rows.size, np.bool_)
    if not table.has_unchanged:
        return complete, ()
    survivors = np.sort(np.concatenate([final.inserted, final.upserted]))
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
        partials.append(PartialRows(names, table.origin_keys(origin[members]), rows))
    return complete, tuple(partials)


class _Table:
    """The split rows of one table, and how to make Arrow tables of a choice of them."""

    def __init__(self, data: NDArray[np.uint8], schema: TableSchema, changes: RowChanges) -> None:
        self.data = data
        self.schema = schema
        self.changes = changes
        self.arrow = arrow_schema(schema)
        self.has_unchanged = any(cells.unchanged is not None for cells in changes.new.columns)
        self.key_numbers = [number for number, column in enumerate(schema.columns) if column.name in schema.key]

    def keys(self, columns: Sequence[Cells]) -> list[Array]:
        return [gather(self.data, columns[number]) for number in self.key_numbers]

    def inserted_without_value(self) -> TableError:
        name = self.schema.name
        return TableError(
            f"{name}: the source sent an inserted row without the value of a TOASTed column",
            table=str(name),
            hint="the publication's row filter turns an update that left the value unchanged into an insert: "
            f"drop the filter, or ALTER TABLE {name} REPLICA IDENTITY FULL; then: etl resync {name}",
        )

    def rows(self, chosen: Indices, chains: Chains | None, without: tuple[str, ...] = ()) -> pa.Table:
        """The new tuples numbered `chosen`, ascending, every unchanged value replaced by the one it leads back to."""
        arrays, names = [], []
        for cells, column in zip(self.changes.new.columns, self.schema.columns, strict=True):
            if column.name in without:
                continue
            source = chosen
            if cells.unchanged is not None and chains is not None:
                source = chains.resolve(cells.unchanged)[chosen]
            every = source.size == cells.start.size and cells.unchanged is None
            text = gather(self.data, cells, None if every else source)
            arrays.append(load(text, column, self.schema.name))
            names.append(column.name)
        if not without:
            return pa.Table.from_arrays(arrays, schema=self.arrow)
        return pa.Table.from_arrays(arrays, names=names)

    def old_keys(self, chosen: Indices) -> pa.Table:
        """The keys of the old tuples numbered `chosen`."""
        return self._key_table(self.changes.old.columns, chosen)

    def origin_keys(self, chosen: Indices) -> pa.Table:
        """The key before the change, of the new tuples numbered `chosen`: the old tuple's where there is one."""
        old = self.changes.old_of_new()[chosen]
        both = pa.concat_tables(
            [
                self._key_table(self.changes.new.columns, chosen),
                self._key_table(self.changes.old.columns, old[old >= 0]),
            ]
        )
        pick = np.arange(chosen.size)
        pick[old >= 0] = chosen.size + np.arange(int((old >= 0).sum()))
        return both.take(fixed_width(pa.int64(), pick, None))

    def _key_table(self, columns: Sequence[Cells], chosen: Indices) -> pa.Table:
        arrays = [
            load(gather(self.data, columns[number], chosen), self.schema.columns[number], self.schema.name)
            for number in self.key_numbers
        ]
        return pa.Table.from_arrays(arrays, schema=key_schema(self.schema))
