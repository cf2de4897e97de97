"""A batch's pieces, decoded and shaped: from the frames that the source sent to what a destination is given.

What a table has become since the destination's version of it is told with its first changes, as alterations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from etl_core.batch import ChangeCounts, TableChanges
from etl_core.decode.decoder import decode_frames
from etl_core.destination.protocol import Destination
from etl_core.errors import COPIED_AGAIN, CopiedAgain, CopyNeeded, TableError
from etl_core.identifiers import TableId
from etl_core.lsn import Lsn
from etl_core.replication.active import ActiveTables
from etl_core.replication.assembler import Assembled, Piece
from etl_core.replication.removals import refuse_removals
from etl_core.schema.alterations import alterations, cannot_be_told, check_carried, is_sent_alike
from etl_core.schema.ignored import as_kept
from etl_core.schema.table import TableSchema
from etl_core.shape.shape import Shape
from etl_core.shape.shapes import Shapes


@dataclass(frozen=True, slots=True)
class _Given:
    """What the destination was given of a batch so far."""

    schemas: dict[TableId, TableSchema]
    counts: dict[TableId, ChangeCounts]


class ShapedChanges:
    """Of one stream; one thread at a time.

    `followed` gives a table's schema as it is applied (`Permission.followed`), and `check_permitted` raises
    DecisionNeeded for a change of it that waits for a person.
    """

    def __init__(
        self,
        active: ActiveTables,
        shapes: Shapes,
        destination: Destination,
        followed: Callable[[TableSchema, TableSchema], TableSchema],
        check_permitted: Callable[[TableSchema, TableSchema], None],
    ) -> None:
        self._active = active
        self._shapes = shapes
        self._destination = destination
        self._followed = followed
        self._check_permitted = check_permitted

    def of(
        self,
        batch: Assembled,
        watermarks: Mapping[TableId, Lsn],
        schemas: dict[TableId, TableSchema],
        counts: dict[TableId, ChangeCounts],
    ) -> Iterator[TableChanges]:
        """The changes beyond the watermarks of the tables that have one, piece by piece, as the destination gets them.

        Of the tables that were given, `schemas` gets the source's, and `counts` how many changes. Raises TableError,
        CopiedAgain or DecisionNeeded of one table.
        """
        given = _Given(schemas, counts)
        for piece in batch.pieces:
            # A piece as a whole, so that its frames are let go before the destination works on its rows. Columns of
            # one type share memory, which is given back with the last table of the piece.
            decoded = list(self._decode_piece(piece, watermarks, given))
            while decoded:
                yield decoded.pop(0)

    def _decode_piece(self, piece: Piece, watermarks: Mapping[TableId, Lsn], given: _Given) -> Iterator[TableChanges]:
        schemas = self._schemas_of(piece, watermarks, given)
        shapes = self._shapes_of(schemas, piece, watermarks, given)
        read = {table_id: shape.read for table_id, shape in shapes.items()}

        def refused(table_id: TableId, error: TableError) -> None:
            known = given.schemas.get(table_id) or self._active.schema(table_id)
            raise _copied_again(known, schemas[table_id], error) or error

        described = {**schemas, **read} if read else schemas
        for changes in decode_frames(piece.load(), described, watermarks, refused):
            table_id = changes.schema.table_id
            schema = schemas[table_id]
            known = given.schemas.get(table_id) or self._active.schema(table_id)
            shaped = shapes[table_id].changes(changes) if table_id in shapes else changes
            if shaped.removals is not None:
                refuse_removals(self._destination, shaped.schema)
            if known is not None and known != schema:
                _check_carried(known, schema)
                steps = alterations(self._shapes.of(known).target, shaped.schema)
                self._check_permitted(known, schema)
                shaped = replace(shaped, alterations=steps)
            given.schemas[table_id] = schema
            given.counts[table_id] = given.counts.get(table_id, ChangeCounts()) + changes.counts
            yield shaped

    def _schemas_of(
        self, piece: Piece, watermarks: Mapping[TableId, Lsn], given: _Given
    ) -> Mapping[TableId, TableSchema]:
        """Of the tables in it, with the columns that the destination keeps.

        A table that was copied since it was described is what it was copied as: its message is older than the copy, and
        a change of it would have brought another one before its next row. Numerics have the digits that the
        destination's have.
        """
        copied: dict[TableId, TableSchema] = {}
        for table_id in piece.tables & watermarks.keys() & piece.schemas.keys():
            schema = piece.schemas[table_id]
            known = given.schemas.get(table_id) or self._active.schema(table_id)
            if known is None or known is schema:
                continue
            described, schema = schema, self._shapes.carried(schema, known)
            if schema is not described:
                copied[table_id] = schema
            if not _is_described_before(schema, watermarks[table_id]):
                followed = self._followed(known, schema) if known != schema else schema
                if followed is not schema:
                    copied[table_id] = followed
                if known.key != schema.key:
                    # First: rows of before may have no such key.
                    _check_carried(known, followed)
            elif known != schema:
                copied[table_id] = known if is_sent_alike(known, schema) else cannot_be_told(schema)
        return {**piece.schemas, **copied} if copied else piece.schemas

    def _shapes_of(
        self,
        schemas: Mapping[TableId, TableSchema],
        piece: Piece,
        watermarks: Mapping[TableId, Lsn],
        given: _Given,
    ) -> dict[TableId, Shape]:
        """Of the tables in the piece that the destination has otherwise than the source."""
        shapes: dict[TableId, Shape] = {}
        for table_id in piece.tables & watermarks.keys() & schemas.keys():
            schema = schemas[table_id]
            known = given.schemas.get(table_id) or self._active.schema(table_id)
            if known != schema and _is_described_before(schema, watermarks[table_id]):
                continue  # of rows that the destination has; what they were called then is no matter
            if known is not None and known != schema:
                _check_carried(known, schema)  # first: the settings go by names
                self._shapes.check_carried(known, schema)
            shape = self._shapes.of(schema)
            if not shape.is_identity:
                shapes[table_id] = shape
        return shapes


def _check_carried(known: TableSchema, schema: TableSchema) -> None:
    """Raises CopiedAgain if the steps between what the destination keeps of both cannot be carried forward."""
    before, after = as_kept(known), as_kept(schema)
    check_carried(before, after, alterations(before, after))


def _copied_again(known: TableSchema | None, schema: TableSchema, error: TableError) -> CopiedAgain | None:
    """For changes that were refused, if a new copy makes them needless, and so will be the only one.

    Old rows of a table without a key were sent whole until its replica identity became another one, and whether these
    were can no longer be told. From then on the source refuses updates and deletes, or sends them without such rows.
    """
    was_whole = known is not None and known.is_multiset
    if not (isinstance(error, CopyNeeded) and was_whole) or schema.is_multiset or schema.key:
        return None
    return CopiedAgain(
        f"table {schema.name}: its replica identity is FULL no more, and changes of before were not yet applied",
        table=str(schema.name),
        hint=COPIED_AGAIN,
    )


def _is_described_before(schema: TableSchema, watermark: Lsn) -> bool:
    return schema.described_at is not None and schema.described_at < watermark
