"""The part of the state stores' behaviour suite in which several do the same thing at once."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from etl_core.errors import StateConflict
from etl_core.identifiers import TableName
from etl_core.lsn import Lsn
from etl_core.state.store import Hold, ReplicationProgress, StateStore, TableStatus
from etl_core.state.table_state import TableState
from etl_core.testing.state_fixtures import (
    FAR,
    ORDERS,
    ORDERS_NAME,
    SCHEMA,
    StateStoreFixtures,
    Stores,
    race,
)

RACERS = 6


class StateStoreRaces(StateStoreFixtures):
    """Racers with a store each stand for processes: they share nothing but the storage."""

    def test_migrations_race(self, stores: Stores) -> None:
        racers = [stores("shop") for _ in range(RACERS)]
        race([racer.migrate for racer in racers])
        racers[0].add_table(ORDERS, ORDERS_NAME)
        assert [racer.table(ORDERS) for racer in racers] == [racers[0].table(ORDERS)] * RACERS

    def test_one_of_many_wins_a_transition(self, stores: Stores, store: StateStore) -> None:
        status = store.add_table(ORDERS, ORDERS_NAME)
        # Half of the racers share a store: one process with threads. The others are as processes are.
        racers = [store] * (RACERS // 2) + [stores("shop") for _ in range(RACERS // 2)]
        for to in (TableState.DATA_SYNC, TableState.ERRORED, TableState.INIT) * 3:
            outcomes = race([partial(racer.transition, status, to) for racer in racers])
            winners = [outcome for outcome in outcomes if isinstance(outcome, TableStatus)]
            assert len(winners) == 1
            assert sum(isinstance(outcome, StateConflict) for outcome in outcomes) == RACERS - 1
            status = winners[0]
            assert store.table(ORDERS) == status
        assert len(store.history(ORDERS)) == 10

    def test_racing_progress_ends_at_the_furthest(self, stores: Stores, store: StateStore) -> None:
        racers = [stores("shop") for _ in range(RACERS)]
        outcomes = race(
            [
                partial(racer.save_progress, ReplicationProgress(Lsn(100 - number)))
                for number, racer in enumerate(racers)
            ]
        )
        assert all(isinstance(outcome, ReplicationProgress | StateConflict) for outcome in outcomes)
        assert outcomes[0] == store.progress()
        stored = store.progress()
        assert stored is not None
        assert stored.flushed_lsn == 100

    def test_one_of_many_claims_the_progress(self, stores: Stores, store: StateStore) -> None:
        seen = None
        for _ in range(3):
            racers = [stores("shop") for _ in range(RACERS)]
            outcomes = race([partial(racer.claim_progress, seen, Lsn(1)) for racer in racers])
            winners = [outcome for outcome in outcomes if isinstance(outcome, ReplicationProgress)]
            assert len(winners) == 1
            assert sum(isinstance(outcome, StateConflict) for outcome in outcomes) == RACERS - 1
            seen = winners[0]
            assert store.progress() == seen

    def test_racing_schemas_get_a_version_each(self, stores: Stores, store: StateStore) -> None:
        racers = [stores("shop") for _ in range(RACERS)]
        assert race([partial(racer.save_schema, SCHEMA, Lsn(1)) for racer in racers]) == [1] * RACERS
        different = [replace(SCHEMA, name=TableName("public", f"orders_{number}")) for number in range(RACERS)]
        pairs = zip(racers, different, strict=True)
        versions = race([partial(racer.save_schema, schema, Lsn(2)) for racer, schema in pairs])
        assert set(versions) == set(range(2, 2 + RACERS))
        assert store.schema(ORDERS) == (1 + RACERS, different[versions.index(1 + RACERS)])

    def test_one_of_many_gets_the_hold(self, stores: Stores, store: StateStore) -> None:
        holds = [Hold(f"owner {number}", FAR) for number in range(RACERS)]
        outcomes = race([partial(stores("shop").request_hold, hold) for hold in holds])
        assert sum(isinstance(outcome, StateConflict) for outcome in outcomes) == RACERS - 1
        assert store.hold() == holds[outcomes.index(None)]
