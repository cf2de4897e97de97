"""The part of the state stores' behaviour suite that is about holds: whose they are, how long, and their answers."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from etl_core.errors import StateConflict
from etl_core.lsn import Lsn
from etl_core.state.store import Hold, StateStore
from etl_core.testing.state_fixtures import LAST, SIGN, Clock, StateStoreFixtures


class StateStoreHolds(StateStoreFixtures):
    """A hold is of one owner, and nobody is shown one that has expired."""

    def test_a_hold_is_answered_and_released(self, store: StateStore, clock: Clock) -> None:
        hold = Hold("verify", clock() + timedelta(seconds=30), LAST)
        store.request_hold(hold)
        assert store.hold() == hold
        store.answer_hold("verify", SIGN)
        assert store.hold() == replace(hold, reached=SIGN)
        store.release_hold("verify")
        assert store.hold() is None
        store.answer_hold("verify", SIGN)
        store.release_hold("verify")
        assert store.hold() is None

    def test_a_hold_expires(self, store: StateStore, clock: Clock) -> None:
        store.request_hold(Hold("verify", clock() + timedelta(seconds=30)))
        clock.pass_time(29.999)
        assert store.hold() is not None
        clock.pass_time(0.001)
        assert store.hold() is None
        store.answer_hold("verify", Lsn(1))
        later = Hold("verify", clock() + timedelta(seconds=30))
        store.request_hold(later)
        assert store.hold() == later

    def test_a_hold_has_one_owner(self, store: StateStore, clock: Clock) -> None:
        hold = Hold("verify", clock() + timedelta(seconds=30))
        store.request_hold(hold)
        other = Hold("resync", clock() + timedelta(seconds=90))
        with pytest.raises(StateConflict, match="verify"):
            store.request_hold(other)
        store.answer_hold("resync", Lsn(1))
        store.release_hold("resync")
        assert store.hold() == hold
        clock.pass_time(30)
        store.request_hold(other)
        assert store.hold() == other

    def test_a_renewed_hold_keeps_its_answer(self, store: StateStore, clock: Clock) -> None:
        hold = Hold("verify", clock() + timedelta(seconds=30), Lsn(7))
        store.request_hold(hold)
        store.answer_hold("verify", Lsn(6))
        renewed = replace(hold, expires_at=clock() + timedelta(seconds=60))
        store.request_hold(renewed)
        assert store.hold() == replace(renewed, reached=Lsn(6))
        further = replace(renewed, lsn=Lsn(9))
        store.request_hold(further)
        assert store.hold() == further
