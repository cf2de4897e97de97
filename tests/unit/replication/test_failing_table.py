"""A table that fails in a batch: its error is stored while the stream still has it, or it is copied again."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from etl_core.batch import WriteBatch
from etl_core.destination.memory import MemoryDatabase, MemoryDestination
from etl_core.errors import (
    DestinationError,
    DestinationUnavailable,
    DestinationUnusable,
    EtlError,
    PermanentError,
    TableError,
    WatermarkConflict,
)
from etl_core.identifiers import TableId
from etl_core.lsn import ZERO, Lsn
from etl_core.protocol.messages import Relation
from etl_core.replication.active import ActiveTables
from etl_core.replication.applier import Applier, Reactions
from etl_core.replication.assembler import Assembled, Assembler
from etl_core.replication.observer import Observer
from etl_core.replication.retry import Backoff
from etl_core.replication.stream_fence import StreamFence
from etl_core.schema.table import TableSchema
from etl_core.state.sql_store import open_store
from etl_core.testing.feeding import feed
from etl_core.testing.source_model import SourceModel, SourceTable


class Refusing(MemoryDestination):
    """Refuses every batch that has changes of one table."""

    def __init__(self, refused: TableSchema, error: Exception | None = None) -> None:
        super().__init__(MemoryDatabase(), "shop")
        self._refused = refused
        self._error = error or TableError("refused", table=str(refused.name))

    def write(self, batch: WriteBatch) -> None:
        if self._refused.table_id in batch.watermarks:
            raise self._error
        super().write(batch)


def assembled(source: SourceModel, tables: Sequence[SourceTable]) -> Assembled:
    schemas = {table.table_id: table.schema for table in tables}

    def describe(relation: Relation, _: Lsn) -> TableSchema:
        return schemas[relation.table_id]

    assembler = Assembler(describe, memory_limit=1 << 30, start_lsn=ZERO)
    return feed(assembler, source.stream(0)).take()


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(None, id="a table error"),
        pytest.param(DestinationError("refused, and nobody says which table"), id="of no table"),
        pytest.param(DestinationUnavailable("refused again and again"), id="of no table, transient"),
        pytest.param(ZeroDivisionError("a defect"), id="a defect"),
    ],
)
def test_one_table_fails_and_the_others_go_on(tmp_path: Path, error: Exception | None) -> None:
    source = SourceModel()
    tables = [source.create(name, {"id": "int8"}, key=("id",)) for name in ("bad", "good", "third")]
    for table in tables:
        source.insert(table, id=1)
    source.commit()
    bad, *others = tables
    destination = Refusing(bad.schema, error)
    active = ActiveTables()
    for table in tables:
        with destination.copy(table.schema) as copy:
            copy.publish(ZERO)
        active.activate(table.table_id, ZERO, table.schema)
    told: list[tuple[TableId, bool, str]] = []
    store = open_store(f"sqlite:///{tmp_path / 'state.db'}", "shop")
    store.migrate()
    batch = assembled(source, tables)
    applier = Applier(
        destination,
        store,
        active,
        # It is told while the stream still has the table: one that is READY and not active would be copied again.
        Reactions(lambda table_id, found: told.append((table_id, table_id in active, found.table)), lambda: None),
        Observer(),
        write_lock=threading.Lock(),
        stop=threading.Event(),
        fence=StreamFence("1/1/0/1", None),
        backoff=Backoff(first=0.001, tries=2),
    )
    applier.apply(batch)
    assert told == [(bad.table_id, True, str(bad.schema.name))]
    assert active.watermarks() == {table.table_id: batch.end_lsn for table in others}
    for table in others:
        assert [rows.num_rows for rows in destination.read(table.schema)] == [1]
    stream = destination.positions().stream
    assert stream is not None
    assert stream.lsn == batch.end_lsn
    progress = store.progress()
    assert progress is not None
    assert (progress.flushed_lsn, progress.rows) == (batch.end_lsn, 2)
    store.close()


@pytest.mark.parametrize("kind", [DestinationError, DestinationUnavailable, DestinationUnusable])
def test_a_destination_that_fails_as_a_whole_stops_no_table(tmp_path: Path, kind: type[EtlError]) -> None:
    source = SourceModel()
    tables = [source.create(name, {"id": "int8"}, key=("id",)) for name in ("one", "two")]
    for table in tables:
        source.insert(table, id=1)
    source.commit()

    class Failing(MemoryDestination):
        def write(self, batch: WriteBatch) -> None:  # noqa: ARG002
            raise kind("away")

    destination = Failing(MemoryDatabase(), "shop")
    active = ActiveTables()
    for table in tables:
        active.activate(table.table_id, ZERO, table.schema)
    store = open_store(f"sqlite:///{tmp_path / 'state.db'}", "shop")
    store.migrate()
    told: list[TableId] = []
    applier = Applier(
        destination,
        store,
        active,
        Reactions(lambda table_id, _: told.append(table_id), lambda: None),
        Observer(),
        write_lock=threading.Lock(),
        stop=threading.Event(),
        fence=StreamFence("1/1/0/1", None),
        backoff=Backoff(first=0.001, tries=2),
    )
    with pytest.raises(kind, match="away"):
        applier.apply(assembled(source, tables))
    assert told == []
    store.close()


@pytest.mark.parametrize("is_isolating", [False, True], ids=["the whole batch", "table by table"])
def test_conflicts_without_an_end_end_the_stream(tmp_path: Path, is_isolating: bool) -> None:
    source = SourceModel()
    tables = [source.create(name, {"id": "int8"}, key=("id",)) for name in ("one", "two")]
    for table in tables:
        source.insert(table, id=1)
    source.commit()

    class Contested(MemoryDestination):
        left = 200

        def write(self, batch: WriteBatch) -> None:
            assert self.left, "written again and again"
            self.left -= 1
            if is_isolating and len(batch.watermarks) > 1:
                raise DestinationError("refused, and nobody says which table")
            raise WatermarkConflict("somebody else has written")

    active = ActiveTables()
    for table in tables:
        active.activate(table.table_id, ZERO, table.schema)
    store = open_store(f"sqlite:///{tmp_path / 'state.db'}", "shop")
    store.migrate()
    told: list[TableId] = []
    applier = Applier(
        Contested(MemoryDatabase(), "shop"),
        store,
        active,
        Reactions(lambda table_id, _: told.append(table_id), lambda: None),
        Observer(),
        write_lock=threading.Lock(),
        stop=threading.Event(),
        fence=StreamFence("1/1/0/1", None),
        backoff=Backoff(first=0.001, tries=2),
    )
    with pytest.raises(DestinationUnavailable, match="again and again"):
        applier.apply(assembled(source, tables))
    assert (told, store.progress()) == ([], None)
    store.close()


def test_an_error_about_a_table_that_is_not_written_is_not_met_for_ever(tmp_path: Path) -> None:
    source = SourceModel()
    tables = [source.create(name, {"id": "int8"}, key=("id",)) for name in ("one", "paused")]
    for table in tables:
        source.insert(table, id=1)
    source.commit()
    one, paused = tables

    class Confused(MemoryDestination):
        left = 50

        def write(self, batch: WriteBatch) -> None:  # noqa: ARG002
            assert self.left, "written again and again"
            self.left -= 1
            raise TableError("refused", table=str(paused.schema.name))

    active = ActiveTables()
    active.activate(one.table_id, ZERO, one.schema)
    store = open_store(f"sqlite:///{tmp_path / 'state.db'}", "shop")
    store.migrate()
    applier = Applier(
        Confused(MemoryDatabase(), "shop"),
        store,
        active,
        Reactions(lambda *_: None, lambda: None),
        Observer(),
        write_lock=threading.Lock(),
        stop=threading.Event(),
        fence=StreamFence("1/1/0/1", None),
        backoff=Backoff(first=0.001, tries=2),
    )
    with pytest.raises(PermanentError, match="a table that is not replicated"):
        applier.apply(assembled(source, tables))
    store.close()
