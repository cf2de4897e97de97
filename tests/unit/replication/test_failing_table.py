"""A table that fails in a batch: its error is stored while the stream still has it, or it is copied again."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from etl_core.batch import WriteBatch
from etl_core.destination.memory import MemoryDatabase, MemoryDestination
from etl_core.errors import TableError
from etl_core.identifiers import TableId
from etl_core.lsn import ZERO, Lsn
from etl_core.protocol.messages import Relation
from etl_core.replication.active import ActiveTables
from etl_core.replication.applier import Applier, Reactions
from etl_core.replication.assembler import Assembled, Assembler
from etl_core.replication.observer import Observer
from etl_core.replication.stream_fence import StreamFence
from etl_core.schema.table import TableSchema
from etl_core.state.sql_store import open_store
from etl_core.testing.source_model import SourceModel, SourceTable


class Refusing(MemoryDestination):
    """Refuses every batch that has changes of one table."""

    def __init__(self, refused: TableSchema) -> None:
        super().__init__(MemoryDatabase(), "shop")
        self._refused = refused

    def write(self, batch: WriteBatch) -> None:
        if self._refused.table_id in batch.watermarks:
            raise TableError("refused", table=str(self._refused.name))
        super().write(batch)


def assembled(source: SourceModel, tables: Sequence[SourceTable]) -> Assembled:
    schemas = {table.table_id: table.schema for table in tables}

    def describe(relation: Relation, _: Lsn) -> TableSchema:
        return schemas[relation.table_id]

    assembler = Assembler(describe, memory_limit=1 << 30, start_lsn=ZERO)
    for item in source.stream(0):
        if isinstance(item, bytes):
            assembler.segment.offsets.append(assembler.segment.size)
            assembler.segment.data += item
            assembler.segment.size += len(item)
        else:
            assembler.on_message(item)
    return assembler.take()


def test_the_error_is_stored_before_the_table_leaves_the_stream(tmp_path: Path) -> None:
    source = SourceModel()
    good, bad = (source.create(name, {"id": "int8"}, key=("id",)) for name in ("good", "bad"))
    for table in (good, bad):
        source.insert(table, id=1)
    source.commit()
    destination = Refusing(bad.schema)
    active = ActiveTables()
    for table in (good, bad):
        with destination.copy(table.schema) as copy:
            copy.publish(ZERO)
        active.activate(table.table_id, ZERO, table.schema)
    told: list[tuple[TableId, bool]] = []
    store = open_store(f"sqlite:///{tmp_path / 'state.db'}", "shop")
    store.migrate()
    applier = Applier(
        destination,
        store,
        active,
        Reactions(lambda table_id, _: told.append((table_id, table_id in active)), lambda: None),
        Observer(),
        write_lock=threading.Lock(),
        stop=threading.Event(),
        fence=StreamFence("1/1/0/1", None),
        unknown_types_to_bytes=True,
    )
    applier.apply(assembled(source, (good, bad)))
    assert told == [(bad.table_id, True)]
    assert set(active.watermarks()) == {good.table_id}
    assert [batch.num_rows for batch in destination.read(good.schema)] == [1]
    store.close()
