"""The transactions that a staged batch becomes: one, unless it is more than BigQuery takes at once.

Then there are several, one after the other, each of whole tables with their fence and their watermarks. Each compares
the position of the stream, and the last moves it. Every table is exact by its own watermark, so a crash between two
leaves nothing that the next process does not know of.
https://cloud.google.com/bigquery/docs/transactions#limitations and https://cloud.google.com/bigquery/quotas#query_jobs
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from etl_core.batch import WatermarkMove, WriteBatch
from etl_core.destination.bigquery import statements
from etl_core.destination.bigquery.bookkeeping import (
    Bookkeeping,
    columns_parameter,
    dropped_parameter,
    moves_parameter,
    stream_fence_parameters,
    stream_parameters,
)
from etl_core.destination.bigquery.changes import Stager
from etl_core.destination.bigquery.connection import Parameter
from etl_core.destination.bigquery.declaration import MOST_TABLES
from etl_core.identifiers import TableId

_LONGEST = 900_000
"""Characters of SQL in a job, of the 1 MB there may be."""


@dataclass(slots=True)
class _Steps:
    """What is done to one table."""

    moves: Mapping[TableId, WatermarkMove]
    statements: list[str] = field(default_factory=list)
    parameters: list[Parameter] = field(default_factory=list)

    @property
    def length(self) -> int:
        return sum(map(len, self.statements))


@dataclass(frozen=True, slots=True)
class Transaction:
    """A script and its parameters."""

    sql: str
    parameters: list[Parameter]


def transactions(book: Bookkeeping, batch: WriteBatch, stager: Stager) -> Iterator[Transaction]:
    """In the order they are to be run in."""
    groups = list(_grouped(_steps(book, batch, stager))) or [[]]
    for number, group in enumerate(groups, 1):
        stream = batch.stream
        if not group and stream is None:
            return
        moves = {table_id: move for steps in group for table_id, move in steps.moves.items()}
        found = [statement for steps in group for statement in steps.statements]
        parameters = [parameter for steps in group for parameter in steps.parameters]
        if moves:
            found = [book.fence(moves), *found, book.moves()]
            parameters.append(
                moves_parameter(moves, stager.attempt.claims, {key: redo.dump() for key, redo in stager.redo.items()})
            )
        if stream is not None:
            found.insert(0, book.stream_fence())
            parameters += stream_fence_parameters(stream)
            if number == len(groups):
                found.append(book.move_stream())
                parameters += stream_parameters(stream)
        yield Transaction(statements.transaction(found), parameters)


def _steps(book: Bookkeeping, batch: WriteBatch, stager: Stager) -> list[_Steps]:
    tables = {table_id: _Steps({table_id: move}) for table_id, move in batch.watermarks.items()}
    for number, part in enumerate(stager.parts):
        steps = tables[part.schema.table_id]
        steps.statements += part.statements(number, stager.moves.columns(part.schema.table_id))
        if part.bounds is not None and part.staged is not None:
            steps.parameters += part.bounds[1]
    for table_id in stager.moves.changed():
        columns, dropped = f"columns_{int(table_id)}", f"dropped_{int(table_id)}"
        steps = tables[table_id]
        steps.statements.append(book.put_columns(columns, dropped, table_id))
        steps.parameters += [
            columns_parameter(columns, stager.moves.columns(table_id)),
            dropped_parameter(stager.moves.dropped(table_id), dropped),
        ]
    return list(tables.values())


def _grouped(tables: Sequence[_Steps]) -> Iterator[list[_Steps]]:
    group: list[_Steps] = []
    for steps in tables:
        is_full = len(group) == MOST_TABLES or sum(other.length for other in group) + steps.length > _LONGEST
        if group and is_full:
            yield group
            group = []
        group.append(steps)
    if group:
        yield group
