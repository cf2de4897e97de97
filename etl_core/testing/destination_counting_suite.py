"""The contract of a destination that counts rows without reading them (`CountingDestination`)."""

from __future__ import annotations

from collections.abc import Mapping

from etl_core.destination.protocol import CountingDestination, Destination
from etl_core.identifiers import TableId
from etl_core.lsn import Lsn
from etl_core.schema.table import TableSchema
from etl_core.testing.destination_tables import Row, batch, changes, orders, publish
from etl_core.testing.destination_watermark_suite import DestinationFixtures


def _row(number: int) -> Row:
    return (number, "new", "n", number)


def _count(destination: Destination, *schemas: TableSchema) -> Mapping[TableId, tuple[Lsn, int]]:
    assert isinstance(destination, CountingDestination)
    return destination.count({schema.table_id: schema.name for schema in schemas}, 1.0)


class CountingSuite(DestinationFixtures):
    """What is counted, and that it belongs to the watermark it comes with."""

    def test_rows_are_counted_as_of_the_table_s_watermark(self, destination: Destination) -> None:
        schema = orders()
        publish(destination, schema, [_row(number) for number in range(5)])
        assert _count(destination, schema) == {schema.table_id: (Lsn(100), 5)}
        part = changes(schema, inserts=[_row(8), _row(9)], upserts=[_row(1)], deletes=[(0,), (2,), (3,)])
        destination.write(batch(part, expected=100, new=200))
        assert _count(destination, schema) == {schema.table_id: (Lsn(200), 4)}
        destination.write(batch(changes(schema, inserts=[_row(7)], truncate=True), expected=200, new=300))
        assert _count(destination, schema) == {schema.table_id: (Lsn(300), 1)}

    def test_a_table_without_a_watermark_is_left_out(self, destination: Destination) -> None:
        copied, forgotten = orders(), orders(16_401, "forgotten")
        assert _count(destination, copied) == {}
        publish(destination, copied)
        publish(destination, forgotten, [_row(1)])
        destination.forget(forgotten.table_id)
        assert _count(destination, copied, forgotten) == {copied.table_id: (Lsn(100), 0)}
