"""Looks up what the reports of a stream run say of tables beyond their changes: columns, rows, sizes."""

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from etl_core.errors import EtlError
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_dagster.reports.reporting import Seen

if TYPE_CHECKING:
    from etl_core.pipeline import Pipeline

_COUNT_PATIENCE = 1.0
"""Seconds to wait for a destination that another process holds; else the rows are counted at the next report."""


class TableLook:
    """For `Reporter.look`: what cannot be looked up is left out. `sizes` are those last seen at the source."""

    def __init__(self, pipeline: "Pipeline", sizes: Callable[[], Mapping[TableId, int]]) -> None:
        self._pipeline = pipeline
        self._sizes = sizes

    def __call__(self, names: Sequence[TableName], uncounted: Collection[TableName]) -> dict[TableName, Seen]:
        wanted, store = {*names}, self._pipeline.store
        schemas, shapes = {}, {}
        with contextlib.suppress(EtlError):
            for status in store.tables():
                stored = store.schema(status.table_id) if status.name in wanted else None
                if stored is not None:
                    schemas[status.name] = stored[1]
                    with contextlib.suppress(EtlError):  # the table's settings do not fit it any more
                        shapes[status.name] = self._pipeline.shapes.of(stored[1])
        counted = self._count({schemas[name].table_id: schemas[name].name for name in uncounted if name in schemas})
        sizes = self._sizes()
        return {
            name: Seen(shapes.get(name), sizes.get(schema.table_id), counted.get(schema.table_id))
            for name, schema in schemas.items()
        }

    def _count(self, tables: Mapping[TableId, TableName]) -> Mapping[TableId, tuple[Lsn, int]]:
        from etl_core.destination.protocol import CountingDestination

        destination = self._pipeline.destination
        if tables and isinstance(destination, CountingDestination):
            with contextlib.suppress(EtlError):
                return destination.count(tables, _COUNT_PATIENCE)
        return {}
