"""A range of a table's rows by their place on disk: what a connection copies at a time."""

from __future__ import annotations

from dataclasses import dataclass

from etl_core.identifiers import TableName


@dataclass(frozen=True, slots=True)
class CtidRange:
    """Rows of `relation`, which is the table or one partition, from block `first` up to but not including `end`.

    `end` None: to the last block. `first` None: the whole relation, with its partitions. `size` is bytes on disk.
    """

    relation: TableName
    first: int | None
    end: int | None
    size: int
