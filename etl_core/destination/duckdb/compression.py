"""Long values are compressed by ZSTD, which DuckDB considers where a column's average is 4,096 bytes.

DuckDB 2.0 chooses DICT_FSST for them by itself. Measured with 6,400 texts of 10 kB: 44 ns of CPU a byte, and 40 MB for
62 MB of text; without that method it takes ZSTD: 0.6 ns and less than 1 MB. BLOB is the same. Short values need
DICT_FSST: without it they are stored as they are, in two to five times the space. DuckDB 1.5 stores long values
as they are, whatever is set.

The setting is one for all columns, so the larger part of the text decides. It counts when values are compressed, not
when they are inserted: a full row group while rows are inserted, everything else at the next checkpoint, which may come
with a later transaction, and deleted rows' neighbours once more at a merge. What waits for either is kept count of, per
file. Not known is what an earlier process left in the log, 4 MB at most, and what it left to be merged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache

import duckdb
import pyarrow as pa
import pyarrow.types

_LONG = 4096
"""Bytes on average: DuckDB's `zstd_min_string_length`."""
_DISABLE = "SET disabled_compression_methods = 'dict_fsst'"
_ENABLE = "RESET disabled_compression_methods"


@dataclass(frozen=True, slots=True)
class TextSizes:
    """Bytes of text and bytea: in columns with long values, and in the others."""

    long: int = 0
    short: int = 0

    def __add__(self, other: TextSizes) -> TextSizes:
        return TextSizes(self.long + other.long, self.short + other.short)


def sizes_of_columns(rows: int, columns: Sequence[int]) -> TextSizes:
    """Of columns of so many bytes each."""
    long = sum(size for size in columns if size >= _LONG * rows)
    return TextSizes(long, sum(columns) - long)


def sizes_of(rows: pa.Table | pa.RecordBatch) -> TextSizes:
    """Of rows in memory; no value is looked at."""
    # Less the offsets, of 4 bytes a row and 4 for each chunk.
    columns = [column.nbytes - 4 * rows.num_rows for column in rows.columns if _is_text(column.type)]
    return sizes_of_columns(rows.num_rows, columns)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_binary(kind)


class Compression:
    """What waits to be compressed in one file. Used by whoever has the turn to write."""

    def __init__(self) -> None:
        self._to_checkpoint = TextSizes()
        self._to_merge = TextSizes()
        self._is_disabled = False

    @contextmanager
    def transaction(self, connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
        """Around a transaction and its commit. What it noted is forgotten if it fails."""
        before = self._to_checkpoint, self._to_merge
        try:
            self._choose(connection, self._to_checkpoint)
            yield
        except BaseException:
            self._to_checkpoint, self._to_merge = before
            raise
        finally:
            self._choose(connection, TextSizes())

    def note(self, connection: duckdb.DuckDBPyConnection, sizes: TextSizes) -> None:
        """Before values of so many bytes are inserted."""
        self._to_checkpoint += sizes
        self._to_merge += sizes
        self._choose(connection, self._to_checkpoint)

    @property
    def waiting(self) -> int:
        """Bytes of text that the next checkpoint compresses."""
        return self._to_checkpoint.long + self._to_checkpoint.short

    def checkpointed(self) -> None:
        """Nothing is left in the log."""
        self._to_checkpoint = TextSizes()

    def checkpoint(self, connection: duckdb.DuckDBPyConnection, *, merges: bool = False) -> None:
        """A checkpoint outside of a transaction. `merges` says that it merges row groups. Raises duckdb.Error."""
        try:
            self._choose(connection, self._to_merge if merges else self._to_checkpoint)
            connection.execute("CHECKPOINT")
        finally:
            self._choose(connection, TextSizes())
        self.checkpointed()
        if merges:
            self._to_merge = TextSizes()

    def _choose(self, connection: duckdb.DuckDBPyConnection, sizes: TextSizes) -> None:
        disable = sizes.long > sizes.short and _is_known()
        if disable == self._is_disabled:
            return
        # One that failed has ended its transaction, or the connection: then the next one opens with DuckDB's own.
        with suppress(duckdb.Error):
            connection.execute(_DISABLE if disable else _ENABLE)
        self._is_disabled = disable


@cache
def _is_known() -> bool:
    """Whether this DuckDB has the method. Asked of a database in memory: a refused setting ends a transaction."""
    with duckdb.connect() as memory:
        try:
            memory.execute(_DISABLE)
        except duckdb.Error:
            return False
    return True
