"""The reference destination: what the contract says, in few words, on Arrow tables in memory.

A transaction works on copies of the dictionaries (Arrow tables are immutable, so they are shared) and puts them in
place when it is complete. Nothing here is fast, and nothing survives the process.
"""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc

from etl_core.batch import PartialRows, StreamPosition, TableChanges, WriteBatch
from etl_core.destination.aside import aside_name, is_aside
from etl_core.destination.change_log import emptied, stamped
from etl_core.destination.declaration import DestinationType
from etl_core.destination.protocol import KeptRows, LoggedCopy, Positions, check_count, check_stream
from etl_core.errors import COPIED_AGAIN, CopiedAgain, DestinationUnavailable, TableError, WatermarkConflict
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.schema.alterations import origins
from etl_core.schema.change_log import LSN, SEQ, keeps_log
from etl_core.schema.deleted_rows import DELETED_AT, keeps_deleted
from etl_core.schema.table import TableSchema
from etl_core.values import load_missing
from etl_core.values.arrow import arrow_schema
from etl_core.write_mode import WriteMode

Key = tuple[Hashable, ...]


@dataclass(frozen=True, slots=True)
class StoredTable:
    """A table's rows and the schema they have."""

    schema: TableSchema
    rows: pa.Table


@dataclass(frozen=True, slots=True)
class Watermark:
    """Which table a pipeline keeps under an id, and up to where."""

    name: TableName
    lsn: Lsn


@dataclass(frozen=True, slots=True)
class State:
    """All that is committed, of all pipelines. Never changed in place."""

    tables: Mapping[TableName, StoredTable] = field(default_factory=dict)
    watermarks: Mapping[tuple[str, TableId], Watermark] = field(default_factory=dict)
    streams: Mapping[str, StreamPosition] = field(default_factory=dict)


class MemoryDatabase:
    """What the destinations of several pipelines, or one opened twice, have in common."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.state = State()
        self.copying: set[tuple[str, TableId]] = set()


class MemoryDestination:
    """One pipeline's share of a MemoryDatabase. Thread-safe."""

    def __init__(self, database: MemoryDatabase, pipeline: str) -> None:
        self._database = database
        self._pipeline = pipeline

    def prepare(self) -> None:
        """Nothing to create, and a crash leaves nothing behind."""

    def positions(self) -> Positions:
        state = self._database.state
        marks = {table_id: mark for (owner, table_id), mark in state.watermarks.items() if owner == self._pipeline}
        return Positions(
            {table_id: mark.lsn for table_id, mark in marks.items()},
            state.streams.get(self._pipeline),
            frozenset(table_id for table_id, mark in marks.items() if is_aside(mark.name)),
        )

    def count(self, tables: Mapping[TableId, TableName], wait_seconds: float) -> Mapping[TableId, tuple[Lsn, int]]:  # noqa: ARG002 - nothing is waited for
        """See CountingDestination."""
        state = self._database.state
        marks = {table_id: state.watermarks.get((self._pipeline, table_id)) for table_id in tables}
        return {
            table_id: (mark.lsn, _count_living(state.tables[mark.name]))
            for table_id, mark in marks.items()
            if mark is not None
        }

    def refuses_removals(self, schema: TableSchema) -> None:
        """See RemovingDestination: none is refused."""

    def copy(self, schema: TableSchema) -> MemoryCopy:
        return MemoryCopy(self._database, self._pipeline, schema)

    def write(self, batch: WriteBatch) -> None:
        with self._database.lock:
            before = self._database.state
            marks = self._check_fence(before, batch)
            moved = {
                (self._pipeline, table_id): replace(marks[table_id], lsn=move.new)
                for table_id, move in batch.watermarks.items()
            }
            streams = dict(before.streams)
            if batch.stream is not None:
                streams[self._pipeline] = batch.stream.new
            after = State(before.tables, {**before.watermarks, **moved}, streams)
            for changes in batch.parts:
                key = (self._pipeline, changes.schema.table_id)
                after, place = renamed(after, key, changes.schema.name, after.watermarks[key].lsn)
                changed = apply_changes(after.tables[place], changes)
                after = replace(after, tables={**after.tables, place: changed})
            self._database.state = after

    def read(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        state = self._database.state
        mark = state.watermarks.get((self._pipeline, schema.table_id))
        stored = state.tables.get(schema.name if mark is None else mark.name)
        if stored is None:
            raise TableError(f"{schema.name} is not in the destination", table=str(schema.name))
        return iter(stored.rows.select(list(schema.column_names)).cast(arrow_schema(schema)).to_batches())

    def forget(self, table_id: TableId) -> None:
        with self._database.lock:
            before = self._database.state
            mark = before.watermarks.get((self._pipeline, table_id))
            kept = {key: mark for key, mark in before.watermarks.items() if key != (self._pipeline, table_id)}
            tables = dict(before.tables)
            if mark is not None and is_aside(mark.name):
                schema = tables[mark.name].schema
                if not (keeps_log(schema) or keeps_deleted(schema)):  # whose past is nowhere else
                    del tables[mark.name]
            self._database.state = replace(before, tables=tables, watermarks=kept)

    def close(self) -> None:
        """Nothing is held."""

    def _check_fence(self, state: State, batch: WriteBatch) -> dict[TableId, Watermark]:
        marks = {table_id: mark for (owner, table_id), mark in state.watermarks.items() if owner == self._pipeline}
        for table_id, move in batch.watermarks.items():
            stored = marks[table_id].lsn if table_id in marks else None
            if stored != move.expected:
                raise WatermarkConflict(
                    f"table {table_id} has the watermark {stored}, not the expected {move.expected}"
                )
        check_stream(state.streams.get(self._pipeline), batch.stream)
        return marks


class MemoryCopy:
    """Batches in a list until they are published."""

    def __init__(self, database: MemoryDatabase, pipeline: str, schema: TableSchema) -> None:
        self._database = database
        self._key = (pipeline, schema.table_id)
        self._schema = schema
        self._staged: list[pa.RecordBatch] = []
        self._lock = threading.Lock()

    def write(self, rows: pa.RecordBatch) -> None:
        with self._lock:
            self._staged.append(rows)

    def publish(self, watermark: Lsn, expected: int | None = None) -> int:
        return self._publish(watermark, expected, None)

    def publish_keeping(self, watermark: Lsn, expected: int | None, kept: KeptRows) -> int:
        """See KeepingCopy."""
        return self._publish(watermark, expected, kept)

    def publish_appending(self, watermark: Lsn, expected: int | None, logged: LoggedCopy) -> int:
        """See AppendingCopy."""
        self._staged = [stamped(rows, watermark, logged.taken_at) for rows in self._staged]
        return self._publish(watermark, expected, logged)

    def _publish(self, watermark: Lsn, expected: int | None, kept: KeptRows | LoggedCopy | None) -> int:
        name = self._schema.name
        rows = pa.Table.from_batches(self._staged, schema=arrow_schema(self._schema))
        check_count(name, rows.num_rows, expected)
        copied = rows.num_rows
        if isinstance(kept, LoggedCopy) and not copied:
            rows = pa.Table.from_batches([emptied(rows.schema, watermark, kept.taken_at)])
        with self._database.lock:
            before = self._database.state
            after, place = renamed(before, self._key, name, watermark)
            there = after.tables.get(place)
            together = rows
            if kept is not None and there is not None and there.schema.table_id == self._schema.table_id:
                is_streamed = self._key in before.watermarks
                stay = _rows_to_stay(there, self._schema, rows, kept, watermark, is_streamed=is_streamed)
                together = pa.concat_tables([rows, stay])
            self._database.state = State(
                {**after.tables, place: StoredTable(self._schema, together)},
                {**after.watermarks, self._key: Watermark(place, watermark)},
                before.streams,
            )
        return copied

    def __enter__(self) -> Self:
        with self._database.lock:
            if self._key in self._database.copying:
                raise DestinationUnavailable(f"another copy of {self._schema.name} is running")
            self._database.copying.add(self._key)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._database.lock:
            self._database.copying.discard(self._key)
        self._staged = []


def renamed(state: State, key: tuple[str, TableId], name: TableName, lsn: Lsn) -> tuple[State, TableName]:
    """The state in which a table has the name that it has as of `lsn`, and where it is then, or is to be.

    A table that had the name before is put aside, unless it has it since `lsn`.
    """
    tables, marks = dict(state.tables), dict(state.watermarks)
    own = marks.get(key)
    if own is not None and own.name == name:
        return state, name
    for other, mark in state.watermarks.items():
        if mark.name != name:
            continue
        if other[0] != key[0]:
            raise TableError(f"{name} is already replicated here by pipeline {other[0]}", table=str(name))
        if mark.lsn > lsn:
            return state, aside_name(*key, name.namespace) if own is None else own.name
        aside = aside_name(*other, name.namespace)
        tables[aside], marks[other] = tables.pop(name), replace(mark, name=aside)
    if own is not None:
        tables[name], marks[key] = tables.pop(own.name), replace(own, name=name)
    return replace(state, tables=tables, watermarks=marks), name


def apply_changes(stored: StoredTable, changes: TableChanges) -> StoredTable:
    """The table after the five steps of TableChanges."""
    schema = changes.schema
    rows = bring_to_schema(stored, schema)
    if changes.truncate:
        rows = rows.slice(0, 0)
    if changes.mark_deleted is not None:
        rows = _mark_deleted(rows, changes.mark_deleted)
    completed = [_complete(rows, partial, schema) for partial in changes.partials]
    gone = _keys_to_delete(changes)
    if gone:
        rows = rows.take(
            pa.array([at for at, key in enumerate(_keys(rows, schema.key)) if key not in gone], pa.int64())
        )
    if changes.removals is not None:
        rows = _remove(rows, changes.removals, schema)
    arriving = [table for table in (changes.inserts, changes.upserts, *completed) if table.num_rows]
    return StoredTable(schema, pa.concat_tables([rows, *arriving]))


def bring_to_schema(stored: StoredTable, schema: TableSchema) -> pa.Table:
    """The stored rows with the columns of `schema`; a new column has what its old rows hold at the source."""
    target = arrow_schema(schema)
    origin = origins({column.name: column.attnum for column in stored.schema.columns}, schema.columns)
    columns: list[Any] = []
    for column in schema.columns:
        if column.name not in origin:
            columns.append(_repeated(load_missing(column, schema.name), stored.rows.num_rows))
            continue
        values, wanted = stored.rows[origin[column.name]], target.field(column.name).type
        if values.type != wanted:
            both = pa.types.is_decimal(values.type) and pa.types.is_decimal(wanted)
            if not both or values.type.scale != wanted.scale:
                raise CopiedAgain(
                    f"column {column.name} of {schema.name} has another type than before", table=str(schema.name)
                )
            values = values.cast(wanted)
        columns.append(values)
    return pa.Table.from_arrays(columns, schema=target)


def _rows_to_stay(
    before: StoredTable,
    schema: TableSchema,
    copied: pa.Table,
    kept: KeptRows | LoggedCopy,
    watermark: Lsn,
    *,
    is_streamed: bool,
) -> pa.Table:
    """The rows of `before` that stay in addition to the copied ones: see KeepingCopy and AppendingCopy."""
    is_log = isinstance(kept, LoggedCopy)
    if keeps_log(before.schema) is not is_log:
        return copied.slice(0, 0)  # the table had another write mode
    rows = _carried_rows(before, schema, kept.changed)
    if isinstance(kept, KeptRows):
        return _keep_rows(rows, schema, copied, kept)
    lsn = rows[LSN.name]
    is_later: Any = pc.greater_equal(lsn, pa.scalar(int(watermark)))
    if not is_streamed:
        is_later = pc.and_(pc.equal(lsn, pa.scalar(int(watermark))), pc.equal(rows[SEQ.name], pa.scalar(0)))
    return rows.filter(pc.invert(is_later))


def _carried_rows(before: StoredTable, schema: TableSchema, changed: Collection[str]) -> pa.Table:
    target = arrow_schema(schema)
    origin = origins({column.name: column.attnum for column in before.schema.columns}, schema.columns)
    return pa.Table.from_arrays(
        [
            _carried(before.rows[origin[field.name]], field.type)
            if field.name in origin and field.name not in changed
            else pa.chunked_array([pa.nulls(before.rows.num_rows, field.type)])
            for field in target
        ],
        schema=target,
    )


def _keep_rows(rows: pa.Table, schema: TableSchema, copied: pa.Table, kept: KeptRows) -> pa.Table:
    # With NULL in the key, those that were deleted before stay: which of the others live cannot be told.
    known = functools.reduce(pc.and_, [pc.is_valid(rows[name]) for name in schema.key])
    rows = rows.filter(pc.or_(known, pc.is_valid(rows[DELETED_AT.name])))
    rows = _mark_deleted(rows, kept.deleted_at).sort_by([(DELETED_AT.name, "descending")])
    seen, chosen = set(_keys(copied, schema.key)), []
    for at, key in enumerate(_keys(rows, schema.key)):
        if None in key or key not in seen:
            chosen.append(at)
            seen.add(key)
    return rows.take(pa.array(chosen, pa.int64()))


def _carried(values: Any, kind: pa.DataType) -> Any:
    """Values in another type, NULL for those that are not the same in it."""
    if values.type == kind:
        return values

    def carried(value: Any) -> Any:
        try:
            found = value.cast(kind)
            return found.as_py() if found.cast(value.type).equals(value) else None
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return None

    return pa.chunked_array([pa.array([carried(value) for value in values], kind)])


def _mark_deleted(rows: pa.Table, moment: datetime) -> pa.Table:
    at = rows.schema.get_field_index(DELETED_AT.name)
    marked: Any = pc.fill_null(rows[DELETED_AT.name], pa.scalar(moment, rows.schema.field(at).type))
    return rows.set_column(at, rows.schema.field(at), marked)


def _count_living(stored: StoredTable) -> int:
    return stored.rows[DELETED_AT.name].null_count if keeps_deleted(stored.schema) else stored.rows.num_rows


def _repeated(value: Any, count: int) -> Any:
    return pa.repeat(value, count)


def _complete(rows: pa.Table, partial: PartialRows, schema: TableSchema) -> pa.Table:
    """The partial rows with their unchanged columns read from `rows`, found by origin key."""
    position = {key: at for at, key in enumerate(_keys(rows, schema.key))}
    try:
        origins = pa.array([position[key] for key in _keys(partial.origin_keys, schema.key)], pa.int64())
    except KeyError:
        raise TableError(
            f"{schema.name}: a row whose unchanged values are needed is not in the destination",
            table=str(schema.name),
            hint=f"copy the table again: etl resync {schema.name}",
        ) from None
    columns = [
        rows[name].take(origins) if name in partial.unchanged else partial.rows[name] for name in schema.column_names
    ]
    return pa.Table.from_arrays(columns, schema=arrow_schema(schema))


def _remove(rows: pa.Table, removals: pa.Table, schema: TableSchema) -> pa.Table:
    """`rows` without one equal row for each of `removals`."""
    wanted = Counter(_rows(removals))
    stay = []
    for at, row in enumerate(_rows(rows)):
        if wanted[row]:
            wanted[row] -= 1
        else:
            stay.append(at)
    missing = wanted.total()
    if missing:
        raise CopiedAgain(
            f"{schema.name}: {missing} of {removals.num_rows} rows to remove are not there, so the table was changed"
            " from outside",
            table=str(schema.name),
            hint=COPIED_AGAIN,
        )
    return rows.take(pa.array(stay, pa.int64()))


def _rows(rows: pa.Table) -> list[tuple[Hashable, ...]]:
    """Every row as a tuple that is equal where all its values have the same text: -0 is not 0, and NaN is NaN."""
    columns = (
        [repr(value) for value in column.to_pylist()]
        if pa.types.is_floating(column.type) or pa.types.is_nested(column.type)
        else _hashable(column)
        for column in rows.columns
    )
    return list(zip(*columns, strict=True))


def _keys_to_delete(changes: TableChanges) -> set[Key]:
    tables = [changes.deletes, changes.upserts]
    for partial in changes.partials:
        tables += [partial.origin_keys, partial.rows]
    return {key for table in tables if table.num_rows for key in _keys(table, changes.schema.key)}


def _keys(rows: pa.Table, names: Sequence[str]) -> list[Key]:
    """The key of every row as a tuple; all different when the table has no key."""
    if not names:
        return [(at,) for at in range(rows.num_rows)]
    return list(zip(*(_hashable(rows[name]) for name in names), strict=True))


def _hashable(column: Any) -> list[Hashable]:
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_time64(kind):
        # Python's datetime ends at year 9999; infinity is beyond.
        return list(column.cast(pa.int64()).to_pylist())
    if pa.types.is_date32(kind):
        return list(column.cast(pa.int32()).to_pylist())
    if pa.types.is_floating(kind):
        # NaN equals NaN, -0 equals 0
        return [None if value is None else str(value + 0.0) for value in column.to_pylist()]
    if pa.types.is_nested(kind):
        return [None if value is None else str(value) for value in column.to_pylist()]
    return list(column.to_pylist())


MEMORY = DestinationType(
    options=(),
    build=lambda options, pipeline: MemoryDestination(MemoryDatabase(), pipeline),  # noqa: ARG005
    refuses=lambda mode, options: "it has no views" if mode is WriteMode.HISTORY else None,  # noqa: ARG005
)
"""A new database that ends with the process."""
