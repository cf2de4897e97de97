"""The part of the destination contract about positions and the fence; also for a destination that keeps no rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from etl_core.batch import StreamMove, StreamPosition, TableChanges, WatermarkMove, WriteBatch
from etl_core.destination.protocol import Destination, Positions
from etl_core.errors import DestinationUnavailable, WatermarkConflict
from etl_core.identifiers import TableId
from etl_core.lsn import ZERO, Lsn
from etl_core.testing.destination_tables import (
    batch,
    changes,
    orders,
    publish,
    rows,
    stream_at,
)
from etl_core.testing.scripted_destination import Fault, ScriptedDestination

MakeDestination = Callable[[str], Destination]
BIGGEST = 2**64 - 1


class DestinationFixtures:
    """The suites' fixtures; `make_destination` is for the subclass to override."""

    @pytest.fixture
    def make_destination(self) -> MakeDestination:
        raise NotImplementedError("override this fixture")

    @pytest.fixture
    def destination(self, make_destination: MakeDestination) -> Iterator[Destination]:
        """A prepared destination of pipeline `shop`."""
        destination = make_destination("shop")
        destination.prepare()
        yield destination
        destination.close()


class WatermarkSuite(DestinationFixtures):
    """What every destination promises, also one that keeps no rows."""

    def test_nothing_is_there_at_first(self, destination: Destination) -> None:
        assert destination.positions() == Positions({}, None)

    def test_prepare_and_close_may_repeat(self, destination: Destination) -> None:
        destination.prepare()
        publish(destination, orders())
        destination.prepare()
        assert destination.positions().tables == {orders().table_id: Lsn(100)}
        destination.close()
        destination.close()

    def test_publishing_sets_the_watermark_and_counts_rows(self, destination: Destination) -> None:
        assert publish(destination, orders(), [(1, "new", "n", 5), (2, "new", "n", 6)], watermark=BIGGEST) == 2
        assert destination.positions() == Positions({orders().table_id: Lsn(BIGGEST)}, None)

    def test_a_copy_without_publish_changes_nothing(self, destination: Destination) -> None:
        with destination.copy(orders()) as copy:
            copy.write(rows(orders(), [(1, "new", "n", 5)]).to_batches()[0])
        assert destination.positions().tables == {}

    def test_a_batch_moves_watermarks_and_the_stream(self, destination: Destination) -> None:
        first, second = orders(), orders(16_500, "customers")
        publish(destination, first)
        publish(destination, second)
        destination.write(batch(changes(first, inserts=[(1, "a", "b", 1)]), expected=100, new=150, stream=150))
        assert destination.positions() == Positions(
            {first.table_id: Lsn(150), second.table_id: Lsn(100)}, stream_at(150)
        )
        destination.write(batch(tables=[second.table_id], expected=100, new=160))
        assert destination.positions() == Positions(
            {first.table_id: Lsn(150), second.table_id: Lsn(160)}, stream_at(150)
        )

    def test_a_batch_may_move_only_the_stream(self, destination: Destination) -> None:
        destination.write(batch(expected=0, new=0, stream=70))
        destination.write(batch(expected=0, new=0, stream=BIGGEST, stream_from=70))
        assert destination.positions() == Positions({}, stream_at(BIGGEST))

    @pytest.mark.parametrize("expected", [None, 69, 71, BIGGEST])
    def test_an_unexpected_position_of_the_stream_is_a_conflict(
        self, destination: Destination, expected: int | None
    ) -> None:
        """Though every table is where it is expected to be: so a restored destination is found by any batch."""
        publish(destination, orders())
        destination.write(batch(expected=0, new=0, stream=70))
        inserted = changes(orders(), inserts=[(1, "a", "b", 1)])
        with pytest.raises(WatermarkConflict):
            destination.write(batch(inserted, expected=100, new=200, stream=200, stream_from=expected))
        assert destination.positions() == Positions({orders().table_id: Lsn(100)}, stream_at(70))
        destination.write(batch(inserted, expected=100, new=200, stream=200, stream_from=70))
        assert destination.positions() == Positions({orders().table_id: Lsn(200)}, stream_at(200))

    def test_a_stream_without_position_is_a_conflict(self, destination: Destination) -> None:
        with pytest.raises(WatermarkConflict):
            destination.write(batch(expected=0, new=0, stream=70, stream_from=60))
        assert destination.positions() == Positions({}, None)

    def test_positions_of_another_incarnation_are_not_compared(self, destination: Destination) -> None:
        """After a move to another cluster LSNs begin anew: the position goes back, and both are told apart."""
        before, after = StreamPosition(Lsn(BIGGEST), "one"), StreamPosition(Lsn(7), "other")
        destination.write(WriteBatch((), {}, StreamMove(None, before)))
        with pytest.raises(WatermarkConflict):
            destination.write(WriteBatch((), {}, StreamMove(replace(before, incarnation="other"), after)))
        destination.write(WriteBatch((), {}, StreamMove(before, after)))
        assert destination.positions().stream == after
        with pytest.raises(WatermarkConflict):
            destination.write(WriteBatch((), {}, StreamMove(before, after)))

    def test_a_catch_up_writes_wherever_the_stream_is(self, destination: Destination) -> None:
        publish(destination, orders())
        destination.write(batch(expected=0, new=0, stream=70))
        destination.write(batch(changes(orders(), inserts=[(1, "a", "b", 1)]), expected=100, new=200))
        assert destination.positions() == Positions({orders().table_id: Lsn(200)}, stream_at(70))

    @pytest.mark.parametrize("expected", [99, 101, 0])
    def test_an_unexpected_watermark_is_a_conflict(self, destination: Destination, expected: int) -> None:
        publish(destination, orders())
        with pytest.raises(WatermarkConflict):
            destination.write(
                batch(changes(orders(), inserts=[(1, "a", "b", 1)]), expected=expected, new=200, stream=200)
            )
        assert destination.positions() == Positions({orders().table_id: Lsn(100)}, None)

    def test_a_table_without_watermark_is_a_conflict(self, destination: Destination) -> None:
        with pytest.raises(WatermarkConflict):
            destination.write(batch(changes(orders(), inserts=[(1, "a", "b", 1)]), expected=ZERO, new=200))
        assert destination.positions().tables == {}

    def test_a_forgotten_table_has_no_watermark(self, destination: Destination) -> None:
        publish(destination, orders())
        destination.forget(orders().table_id)
        destination.forget(TableId(4_000_000_000))
        assert destination.positions().tables == {}
        with pytest.raises(WatermarkConflict):
            destination.write(batch(changes(orders(), inserts=[(1, "a", "b", 1)]), expected=100, new=200))
        publish(destination, orders(), watermark=300)
        assert destination.positions().tables == {orders().table_id: Lsn(300)}

    def test_after_a_lost_answer_the_positions_tell_and_the_fence_holds(self, destination: Destination) -> None:
        publish(destination, orders())
        hostile = ScriptedDestination(destination, [Fault("write", after=DestinationUnavailable("answer lost"))])
        inserted = changes(orders(), inserts=[(1, "a", "b", 1)])
        with pytest.raises(DestinationUnavailable):
            hostile.write(batch(inserted, expected=100, new=200, stream=200))
        assert hostile.positions() == Positions({orders().table_id: Lsn(200)}, stream_at(200))
        with pytest.raises(WatermarkConflict):
            hostile.write(batch(inserted, expected=100, new=200, stream=200))

    def test_parts_are_all_consumed_and_their_failure_applies_nothing(self, destination: Destination) -> None:
        publish(destination, orders())

        def parts() -> Iterator[TableChanges]:
            yield changes(orders(), inserts=[(1, "a", "b", 1)])
            raise LookupError("the spool is gone")

        move = WatermarkMove(Lsn(100), Lsn(200))
        with pytest.raises(LookupError):
            destination.write(
                WriteBatch(parts(), {orders().table_id: move}, StreamMove(None, StreamPosition(Lsn(200))))
            )
        assert destination.positions() == Positions({orders().table_id: Lsn(100)}, None)
