"""A replicated table as Arrow, pandas or polars, for people who read it without an IO manager."""

import contextlib
import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING

from etl_core.errors import ConfigError, EtlError, PermanentError
from etl_core.identifiers import TableName
from etl_dagster.failures import failure_of

if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow

    from etl_core.destination.protocol import Destination
    from etl_core.schema.table import TableSchema
    from etl_core.shape.shapes import Shapes
    from etl_core.state.store import StateStore


class ReplicatedTable:
    """A table as the destination has it: durable state at a transaction boundary of the source.

    Every read is a new one, and sees what the stream has written by then. The source is neither asked nor needed.
    Raises dg.Failure, with what to do, if the table was never copied or cannot be read.
    """

    def __init__(
        self,
        pipeline: str,
        name: TableName,
        open_store: "Callable[[], StateStore]",
        open_destination: "Callable[[], Destination]",
        shapes: "Callable[[], Shapes]",
    ) -> None:
        """By `PostgresReplicationResource.table`. Each read opens the store and the destination, and closes them."""
        self.pipeline = pipeline
        self.name = name
        self._open_store = open_store
        self._open_destination = open_destination
        self._shapes = shapes

    def to_arrow(self) -> "pyarrow.Table":
        """All rows, in memory, columns in the source's order, as the settings shape them."""
        import pyarrow

        from etl_core.destination.protocol import read_whole
        from etl_core.values.arrow import arrow_schema

        try:
            schema = self._schema()
            with contextlib.closing(self._open_destination()) as destination:
                return read_whole(lambda: pyarrow.Table.from_batches(destination.read(schema), arrow_schema(schema)))
        except EtlError as error:
            raise failure_of(error, self.pipeline) from error

    def to_pandas(self) -> "pandas.DataFrame":
        """All rows, in memory, in the types that Arrow gives pandas: integers with NULL become floats."""
        _check_installed("pandas")
        return self.to_arrow().to_pandas()

    def to_polars(self) -> "polars.DataFrame":
        """All rows, in memory, in the types that polars has for Arrow's."""
        _check_installed("polars")
        import polars

        frame = polars.from_arrow(self.to_arrow())
        assert isinstance(frame, polars.DataFrame)  # noqa: S101 - of one column it would be a Series
        return frame

    def _schema(self) -> "TableSchema":
        with contextlib.closing(self._open_store()) as store:
            store.migrate()
            tables = store.tables()
            status = next((status for status in tables if status.name == self.name), None)
            stored = None if status is None else store.schema(status.table_id)
        if stored is None:
            raise PermanentError(
                f"{self.name} of pipeline {self.pipeline} was never copied, so there is nothing to read",
                hint="materialise its asset first"
                if status is not None or not tables
                else f"is that its name? The tables are: {', '.join(str(status.name) for status in tables[:8])}",
            )
        return self._shapes().of(stored[1]).readable


def _check_installed(library: str) -> None:
    """Before a row is read. Raises dg.Failure."""
    if importlib.util.find_spec(library) is None:
        raise failure_of(
            ConfigError(
                f"{library} is not installed",
                hint=f"run: pip install 'etl-dagster[{library}]', or use to_arrow()",
            )
        )
