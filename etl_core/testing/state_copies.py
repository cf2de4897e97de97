"""The part of the state stores' behaviour suite about copies that several processes share."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from etl_core.errors import StateConflict
from etl_core.identifiers import TableId, TableName
from etl_core.source.ctid_range import CtidRange
from etl_core.state.shared_copy import CopyOffer, OfferedRange
from etl_core.state.store import StateStore
from etl_core.testing.state_fixtures import LAST, ORDERS, ORDERS_NAME, StateStoreFixtures, Stores, race

OFFER = CopyOffer(ORDERS, "run 1", "00000003-0000001B-1", LAST, "abc", "staging")
RANGES = [
    CtidRange(ORDERS_NAME, 0, 8192, 64 << 20),
    CtidRange(ORDERS_NAME, 8192, None, (1 << 40) + 1),
    CtidRange(TableName("other", 'or"ders'), None, None, 0),
]


class StateStoreCopies(StateStoreFixtures):
    """Ranges are offered, taken, finished once, given back."""

    def test_an_offer_is_kept_with_its_ranges(self, store: StateStore) -> None:
        copies = store.shared_copies
        assert copies.find(ORDERS) is None
        copies.offer(OFFER, RANGES)
        assert copies.find(ORDERS) == OFFER
        assert not OFFER.is_over
        assert copies.find(TableId(1)) is None
        assert list(copies.ranges(OFFER)) == [OfferedRange(number, part) for number, part in enumerate(RANGES)]

    def test_ranges_are_taken_in_order_and_finished_once(self, store: StateStore) -> None:
        copies = store.shared_copies
        copies.offer(OFFER, RANGES)
        taken = [copies.take(OFFER, taker) for taker in (7, 7, 8)]
        assert taken == [
            OfferedRange(n, part, taker) for (n, part), taker in zip(enumerate(RANGES), (7, 7, 8), strict=True)
        ]
        assert copies.take(OFFER, 9) is None
        first, second, third = (held for held in taken if held is not None)
        copies.finish(OFFER, second, 10, "")
        assert [held.is_finished for held in copies.ranges(OFFER)] == [False, True, False]
        assert copies.ranges(OFFER)[1].rows == 10
        with pytest.raises(StateConflict):
            copies.finish(OFFER, second, 10, "again")
        copies.give_back(OFFER, second)  # too late
        copies.give_back(OFFER, first)
        with pytest.raises(StateConflict):
            copies.finish(OFFER, first, 1, "late")
        again = copies.take(OFFER, 8)
        assert again == OfferedRange(0, RANGES[0], 8)
        copies.give_back(OFFER, first)  # it is 8's by now
        copies.finish(OFFER, again, 1, "r")
        copies.finish(OFFER, third, 0, "s")
        assert [(held.taker, held.rows, held.receipt) for held in copies.ranges(OFFER)] == [
            (8, 1, "r"),
            (7, 10, ""),
            (8, 0, "s"),
        ]

    def test_a_new_offer_ends_the_old_one(self, store: StateStore) -> None:
        copies = store.shared_copies
        copies.offer(OFFER, RANGES)
        held = copies.take(OFFER, 7)
        assert held is not None
        newer = replace(OFFER, snapshot_name="00000003-0000001C-1")
        copies.offer(newer, RANGES[:1])
        for use in (
            partial(copies.take, OFFER, 7),
            partial(copies.finish, OFFER, held, 1, "r"),
            partial(copies.give_back, OFFER, held),
            partial(copies.ranges, OFFER),
        ):
            with pytest.raises(StateConflict, match="is over"):
                use()
        assert list(copies.ranges(newer)) == [OfferedRange(0, RANGES[0])]

    def test_an_offer_is_ended_by_its_own_token_only(self, store: StateStore) -> None:
        copies = store.shared_copies
        copies.offer(OFFER, RANGES)
        copies.end(ORDERS, "run 2")
        assert copies.find(ORDERS) == OFFER
        copies.end(ORDERS, OFFER.token)
        ended = copies.find(ORDERS)
        assert ended == replace(OFFER, is_over=True)
        with pytest.raises(StateConflict):
            copies.take(OFFER, 7)
        assert len(copies.ranges(ended)) == len(RANGES)
        copies.end(ORDERS, "run 2")
        none = copies.find(ORDERS)
        assert none == CopyOffer(ORDERS, "run 2", is_over=True)
        assert list(copies.ranges(none)) == []

    def test_a_shared_copy_goes_with_its_table(self, stores: Stores, store: StateStore) -> None:
        stores("other").shared_copies.offer(OFFER, RANGES)
        store.add_table(ORDERS, ORDERS_NAME)
        store.shared_copies.offer(OFFER, RANGES)
        store.remove_table(ORDERS)
        assert store.shared_copies.find(ORDERS) is None
        assert stores("other").shared_copies.find(ORDERS) == OFFER
        assert len(stores("other").shared_copies.ranges(OFFER)) == len(RANGES)

    def test_a_range_has_one_taker(self, stores: Stores, store: StateStore) -> None:
        parts = [CtidRange(ORDERS_NAME, number, number + 1, 8192) for number in range(4)]
        store.shared_copies.offer(OFFER, parts)
        racers = [stores("shop").shared_copies for _ in range(6)]
        taken = race([partial(racer.take, OFFER, taker) for taker, racer in enumerate(racers, 1)])
        ranges = [held for held in taken if isinstance(held, OfferedRange)]
        assert sorted(held.number for held in ranges) == [0, 1, 2, 3]
        assert sorted(ranges, key=lambda held: held.number) == list(store.shared_copies.ranges(OFFER))
