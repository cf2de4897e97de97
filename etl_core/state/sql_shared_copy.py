"""Shared copies in SQL: see `shared_copy`. Transactions come from the store that this is a part of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy import ColumnElement, Connection, Row

from etl_core.errors import StateConflict
from etl_core.identifiers import TableId, TableName
from etl_core.source.ctid_range import CtidRange
from etl_core.state.shared_copy import CopyOffer, OfferedRange
from etl_core.state.sql_tables import Tables

Transaction = Callable[[], AbstractContextManager[Connection]]


class SqlSharedCopyStore:
    """`read` and `write` begin a transaction of the kind that `SqlStateStore` describes."""

    def __init__(self, tables: Tables, pipeline: str, read: Transaction, write: Transaction) -> None:
        self._offers = tables.copy_offers
        self._ranges = tables.copy_ranges
        self._pipeline = pipeline
        self._read = read
        self._write = write

    def offer(self, offer: CopyOffer, ranges: Sequence[CtidRange]) -> None:
        with self._write() as connection:
            self._replace(connection, offer)
            rows = [self._range_row(offer.table_id, number, part) for number, part in enumerate(ranges)]
            if rows:
                connection.execute(sa.insert(self._ranges), rows)

    def find(self, table_id: TableId) -> CopyOffer | None:
        with self._read() as connection:
            return self._find(connection, table_id)

    def end(self, table_id: TableId, token: str) -> None:
        with self._write() as connection:
            found = self._find(connection, table_id)
            if found is not None and found.token == token:
                offers = self._offers
                mine = (offers.c.pipeline == self._pipeline, offers.c.table_id == table_id)
                connection.execute(sa.update(offers).where(*mine).values(is_over=True))
            elif found is None or found.is_over:
                self._replace(connection, CopyOffer(table_id, token, is_over=True))

    def take(self, offer: CopyOffer, taker: int) -> OfferedRange | None:
        ranges = self._ranges
        free = (*self._mine(offer.table_id), ranges.c.taker.is_(None), ranges.c.receipt.is_(None))
        with self._write() as connection:
            self._check(connection, offer)
            row = connection.execute(sa.select(ranges).where(*free).order_by(ranges.c.number).limit(1)).one_or_none()
            if row is None:
                return None
            connection.execute(sa.update(ranges).where(*free, ranges.c.number == row.number).values(taker=taker))
            return replace(_offered(row), taker=taker)

    def finish(self, offer: CopyOffer, held: OfferedRange, rows: int, receipt: str) -> None:
        with self._write() as connection:
            self._check(connection, offer)
            done = connection.execute(
                sa.update(self._ranges).where(*self._held(offer, held)).values(rows=rows, receipt=receipt)
            )
            if done.rowcount != 1:
                raise StateConflict(
                    f"range {held.number} of the shared copy was given to another process meanwhile",
                    hint="its rows are staged by that one; nothing is lost",
                )

    def give_back(self, offer: CopyOffer, held: OfferedRange) -> None:
        with self._write() as connection:
            self._check(connection, offer)
            connection.execute(sa.update(self._ranges).where(*self._held(offer, held)).values(taker=None))

    def ranges(self, offer: CopyOffer) -> Sequence[OfferedRange]:
        statement = sa.select(self._ranges).where(*self._mine(offer.table_id)).order_by(self._ranges.c.number)
        with self._write() as connection:  # the offer and its ranges as of one moment
            self._check(connection, offer)
            return [_offered(row) for row in connection.execute(statement)]

    def _find(self, connection: Connection, table_id: TableId) -> CopyOffer | None:
        offers = self._offers
        mine = (offers.c.pipeline == self._pipeline, offers.c.table_id == table_id)
        row = connection.execute(sa.select(offers).where(*mine)).one_or_none()
        if row is None:
            return None
        return CopyOffer(**{name: value for name, value in row._mapping.items() if name != "pipeline"})

    def _check(self, connection: Connection, offer: CopyOffer) -> None:
        if self._find(connection, offer.table_id) != offer:
            raise StateConflict(
                "the copy that was offered to be shared is over", hint="nothing is lost: what it needs it copies itself"
            )

    def _replace(self, connection: Connection, offer: CopyOffer) -> None:
        for table in (self._offers, self._ranges):
            mine = (table.c.pipeline == self._pipeline, table.c.table_id == offer.table_id)
            connection.execute(sa.delete(table).where(*mine))
        values = {field.name: getattr(offer, field.name) for field in fields(offer)}
        connection.execute(sa.insert(self._offers).values(pipeline=self._pipeline, **values))

    def _mine(self, table_id: TableId) -> tuple[ColumnElement[bool], ...]:
        return (self._ranges.c.pipeline == self._pipeline, self._ranges.c.table_id == table_id)

    def _held(self, offer: CopyOffer, held: OfferedRange) -> tuple[ColumnElement[bool], ...]:
        """Conditions for the range as long as it is its taker's to finish."""
        ranges = self._ranges
        return (
            *self._mine(offer.table_id),
            ranges.c.number == held.number,
            ranges.c.taker == held.taker,
            ranges.c.receipt.is_(None),
        )

    def _range_row(self, table_id: TableId, number: int, part: CtidRange) -> dict[str, Any]:
        return {
            "pipeline": self._pipeline,
            "table_id": table_id,
            "number": number,
            "namespace": part.relation.namespace,
            "name": part.relation.name,
            "first_block": part.first,
            "end_block": part.end,
            "size": part.size,
        }


def _offered(row: Row[Any]) -> OfferedRange:
    part = CtidRange(TableName(row.namespace, row.name), row.first_block, row.end_block, row.size)
    return OfferedRange(row.number, part, row.taker, row.rows, row.receipt)
