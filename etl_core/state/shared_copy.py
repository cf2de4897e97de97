"""A copy that several processes share, as the state store keeps it: the offer to help, and the ranges.

The process that copies a table offers its ranges under the snapshot it keeps alive. Whoever helps takes a range, stages
its rows where only a receipt makes them count, and leaves the receipt here. A range has one receipt, of whoever held
it: one that was given to somebody else meanwhile is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from etl_core.identifiers import TableId
from etl_core.lsn import Lsn
from etl_core.source.ctid_range import CtidRange


@dataclass(frozen=True, slots=True)
class CopyOffer:
    """A copy others may help with, or could until it was over.

    `token` is what the copy's caller calls it. `snapshot_name` and `snapshot_lsn` are those of the exported snapshot,
    `layout` tells what was published of the table, `address` where its staging is (see
    `destination.protocol.SharedCopy`); None for a copy that ended before it offered anything.
    """

    table_id: TableId
    token: str
    snapshot_name: str | None = None
    snapshot_lsn: Lsn | None = None
    layout: str | None = None
    address: str | None = None
    is_over: bool = False


@dataclass(frozen=True, slots=True)
class OfferedRange:
    """A range of an offered copy, counted from 0. `taker`, `rows` and `receipt` are None as long as there is none.

    `taker` is the process id of the server's end of the connection that copies it, `receipt` what the destination gave
    for the staged rows.
    """

    number: int
    part: CtidRange
    taker: int | None = None
    rows: int | None = None
    receipt: str | None = None

    @property
    def is_finished(self) -> bool:
        return self.receipt is not None


class SharedCopyStore(Protocol):
    """One pipeline's shared copies. A table has one offer at most; every method is one transaction.

    A method that is given an offer raises StateConflict if the table's offer is not that one any more.
    """

    def offer(self, offer: CopyOffer, ranges: Sequence[CtidRange]) -> None:
        """Replaces the table's offer, and its ranges."""

    def find(self, table_id: TableId) -> CopyOffer | None: ...

    def end(self, table_id: TableId, token: str) -> None:
        """No help is wanted with the copy of that token, or no more: who waits for its offer finds one that is over.

        Its ranges can be read until the table's next offer.
        """

    def take(self, offer: CopyOffer, taker: int) -> OfferedRange | None:
        """Takes the first free range; None if there is none."""

    def finish(self, offer: CopyOffer, held: OfferedRange, rows: int, receipt: str) -> None:
        """Leaves the receipt. Raises StateConflict if the range is no longer `held.taker`'s, or has one."""

    def give_back(self, offer: CopyOffer, held: OfferedRange) -> None:
        """Frees a range that `held.taker` holds and has not finished; nothing if that is not so."""

    def ranges(self, offer: CopyOffer) -> Sequence[OfferedRange]:
        """All of them, by number."""
