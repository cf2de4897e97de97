"""The contract of a destination whose copies several processes may stage (`SharingDestination`)."""

from __future__ import annotations

from collections import Counter

import pytest

from etl_core.destination.protocol import Destination, SharedCopy, SharingDestination
from etl_core.errors import DestinationError, DestinationUnavailable
from etl_core.lsn import Lsn
from etl_core.testing.destination_tables import Row, contents, orders, rows
from etl_core.testing.destination_watermark_suite import DestinationFixtures, MakeDestination


def _row(number: int) -> Row:
    return (number, "new", "n", number)


def _stage(helper: Destination, address: str, *numbers: int) -> str:
    """Stages rows as a helping process does, in a batch each, and returns the receipt."""
    assert isinstance(helper, SharingDestination)
    part = helper.join_copy(orders(), address)
    for number in numbers:
        part.write(rows(orders(), [_row(number)]).to_batches()[0])
    return part.finish()


class SharingSuite(DestinationFixtures):
    """A second destination of the same pipeline stands for the helping process."""

    @pytest.fixture
    def helper(self, make_destination: MakeDestination) -> Destination:
        return make_destination("shop")

    def test_rows_staged_elsewhere_are_published_with_ours(self, destination: Destination, helper: Destination) -> None:
        with destination.copy(orders()) as copy:
            assert isinstance(copy, SharedCopy)
            receipts = [
                _stage(helper, copy.address, 1, 2),
                _stage(helper, copy.address),
                _stage(helper, copy.address, 3),
            ]
            copy.write(rows(orders(), [_row(4)]).to_batches()[0])
            for receipt in receipts:
                copy.include(receipt)
            assert copy.publish(Lsn(100)) == 4
        assert contents(destination, orders()) == Counter(map(_row, (1, 2, 3, 4)))

    def test_only_included_parts_count(self, destination: Destination, helper: Destination) -> None:
        with destination.copy(orders()) as copy:
            assert isinstance(copy, SharedCopy)
            assert isinstance(helper, SharingDestination)
            wanted = _stage(helper, copy.address, 1)
            _stage(helper, copy.address, 1, 2)
            given_up = helper.join_copy(orders(), copy.address)
            given_up.write(rows(orders(), [_row(3)]).to_batches()[0])
            given_up.discard()
            given_up.discard()
            unfinished = helper.join_copy(orders(), copy.address)
            unfinished.write(rows(orders(), [_row(4)]).to_batches()[0])
            copy.include(wanted)
            assert copy.publish(Lsn(100)) == 1
            unfinished.discard()
        assert contents(destination, orders()) == Counter([_row(1)])

    def test_a_copy_that_is_over_cannot_be_joined(self, destination: Destination, helper: Destination) -> None:
        with destination.copy(orders()) as before:
            assert isinstance(before, SharedCopy)
            left = _stage(helper, before.address, 1)
        with pytest.raises(DestinationUnavailable):
            _stage(helper, before.address, 2)
        with destination.copy(orders()) as copy:
            assert isinstance(copy, SharedCopy)
            assert copy.address != before.address
            with pytest.raises(DestinationUnavailable):
                _stage(helper, before.address, 2)
            with pytest.raises(DestinationError):
                copy.include(left)
            assert copy.publish(Lsn(100)) == 0
        assert contents(destination, orders()) == Counter()
