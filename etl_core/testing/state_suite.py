"""The behaviour every state store must have, as a pytest class: subclass it and say how a store is opened.

    class TestMyStore(StateStoreSuite):
        @pytest.fixture
        def open_store(self, tmp_path: Path) -> OpenStore:
            return partial(MyStore, tmp_path / "state")

All stores opened in one test share one storage, which is empty when the test begins.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from etl_core.errors import ClaimLost, StateConflict
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import ZERO, Lsn
from etl_core.schema.table import Column, PgType, ReplicaIdentity, TableSchema, TypeKind
from etl_core.state.store import (
    FinishedCopy,
    Hold,
    ReplicationProgress,
    SourceIdentity,
    StateStore,
    StreamError,
    TableStatus,
    TableUpdate,
)
from etl_core.state.table_state import IllegalTransition, TableState
from etl_core.testing.state_copies import StateStoreCopies
from etl_core.testing.state_fixtures import (
    CUSTOMERS,
    FAR,
    LAST,
    ORDERS,
    ORDERS_NAME,
    REMEMBERED,
    SCHEMA,
    SIGN,
    TEXT,
    Clock,
    OpenStore,
    Stores,
    everything,
    fill,
)
from etl_core.testing.state_holds import StateStoreHolds
from etl_core.testing.state_races import StateStoreRaces

__all__ = ["Clock", "OpenStore", "StateStoreSuite"]


class StateStoreSuite(StateStoreRaces, StateStoreCopies, StateStoreHolds):
    """Override the fixture `open_store`."""

    # Migrations, closing, pipelines

    def test_an_empty_store_knows_nothing(self, store: StateStore) -> None:
        assert store.source_identity() is None
        assert list(store.tables()) == []
        assert store.table(ORDERS) is None
        assert list(store.history(ORDERS)) == []
        assert store.progress() is None
        assert store.schema(ORDERS) is None
        assert list(store.owned_slots()) == []
        assert store.publication_owned() is False
        assert store.hold() is None

    def test_migrating_again_keeps_everything(self, store: StateStore) -> None:
        status = store.add_table(ORDERS, ORDERS_NAME)
        store.migrate()
        assert store.table(ORDERS) == status

    def test_everything_survives_closing(self, stores: Stores, store: StateStore) -> None:
        fill(store)
        before = everything(store)
        store.close()
        store.close()
        reopened = stores("shop")
        reopened.migrate()
        assert everything(reopened) == before

    def test_pipelines_do_not_see_each_other(self, stores: Stores, store: StateStore) -> None:
        fill(store)
        other = stores("other")
        assert everything(other) == everything(stores("nobody"))
        fill(other)
        before = everything(store)
        other.clear()
        assert everything(other) == everything(stores("nobody"))
        assert everything(store) == before
        other.request_hold(Hold("verify", FAR))

    def test_a_cleared_pipeline_begins_anew(self, store: StateStore) -> None:
        fill(store)
        store.clear()
        store.save_progress(ReplicationProgress(Lsn(1)))
        assert store.add_table(ORDERS, ORDERS_NAME).state is TableState.INIT
        assert len(store.history(ORDERS)) == 1
        assert store.save_schema(SCHEMA, Lsn(1)) == 1

    def test_a_source_is_forgotten_and_its_tables_are_not(self, stores: Stores, store: StateStore) -> None:
        fill(store)
        store.save_stream_error("the slot is gone", None, is_permanent=True)
        other = stores("other")
        fill(other)
        kept = store.tables(), store.history(ORDERS), store.schema(ORDERS), store.publication_owned()
        store.forget_source()
        assert (store.tables(), store.history(ORDERS), store.schema(ORDERS), store.publication_owned()) == kept
        assert (store.source_identity(), store.progress(), store.stream_error(), store.hold()) == (None,) * 4
        assert (list(store.owned_slots()), dict(store.fingerprints()), dict(store.shapes())) == ([], {}, {})
        assert store.shared_copies.find(ORDERS) is None
        assert other.source_identity() is not None
        assert other.owned_slots() != []

    # The source, its slots and its publication

    def test_source_identity_is_kept_and_replaced(self, store: StateStore) -> None:
        first = SourceIdentity("7312345678901234567", 1, "etl_shop", LAST)
        store.save_source_identity(first)
        assert store.source_identity() == first
        assert first.incarnation == f"7312345678901234567/1/{LAST}"
        second = SourceIdentity("18446744073709551615", 2, "etl_shop", SIGN, "shop", 2**32 - 1, "db.example.com:5432")
        store.save_source_identity(second)
        assert store.source_identity() == second

    def test_slots_are_owned_until_forgotten(self, store: StateStore, clock: Clock) -> None:
        store.record_slot("etl_shop_sync_4294967295", CUSTOMERS)
        store.record_slot("etl_shop", None, "18446744073709551615")
        assert [(slot.name, slot.table_id, slot.system_identifier) for slot in store.owned_slots()] == [
            ("etl_shop", None, "18446744073709551615"),
            ("etl_shop_sync_4294967295", CUSTOMERS, None),
        ]
        clock.pass_time(5)
        store.record_slot("etl_shop", None)
        assert store.owned_slots()[0].created_at == clock()
        slot = store.owned_slots()[0]
        store.forget_slot(replace(slot, created_at=clock() - timedelta(minutes=5)))  # it was made again since
        assert slot in store.owned_slots()
        store.forget_slot(slot)
        store.forget_slot(slot)
        assert [slot.name for slot in store.owned_slots()] == ["etl_shop_sync_4294967295"]

    def test_a_slot_outlives_its_table(self, store: StateStore) -> None:
        """Else nobody would know that the slot is still to be dropped."""
        store.add_table(ORDERS, ORDERS_NAME)
        store.record_slot("etl_shop_sync_16412", ORDERS)
        store.remove_table(ORDERS)
        assert [slot.table_id for slot in store.owned_slots()] == [ORDERS]

    def test_publication_ownership(self, store: StateStore) -> None:
        store.set_publication_owned(True)
        assert (store.publication_owned(), store.publication_oid()) == (True, None)
        store.set_publication_owned(True, 2**32 - 1)
        assert (store.publication_owned(), store.publication_oid()) == (True, 2**32 - 1)
        store.set_publication_owned(False)
        assert (store.publication_owned(), store.publication_oid()) == (False, None)

    # Tables

    def test_an_added_table_begins_in_init(self, store: StateStore, clock: Clock) -> None:
        status = store.add_table(CUSTOMERS, ORDERS_NAME)
        assert status == TableStatus(
            CUSTOMERS, ORDERS_NAME, TableState.INIT, status.version, updated_at=clock(), is_requested=True
        )
        assert store.table(CUSTOMERS) == status
        assert [(line.from_state, line.to_state, line.at) for line in store.history(CUSTOMERS)] == [
            (None, TableState.INIT, clock())
        ]

    def test_adding_again_returns_what_is_there(self, store: StateStore) -> None:
        status = store.transition(store.add_table(ORDERS, ORDERS_NAME), TableState.PAUSED)
        assert store.add_table(ORDERS, ORDERS_NAME) == status
        assert len(store.history(ORDERS)) == 2

    def test_adding_again_under_a_new_name_renames(self, store: StateStore) -> None:
        paused = store.transition(store.add_table(ORDERS, ORDERS_NAME), TableState.PAUSED)
        renamed = store.add_table(ORDERS, TableName("public", "Orders"))
        assert (renamed.name, renamed.state) == (TableName("public", "Orders"), TableState.PAUSED)
        assert renamed.version > paused.version
        assert store.table(ORDERS) == renamed
        with pytest.raises(StateConflict):
            store.transition(paused, TableState.INIT)
        assert store.transition(renamed, TableState.INIT) == store.table(ORDERS)

    def test_tables_come_by_name(self, store: StateStore) -> None:
        names = [
            TableName(namespace, name)
            for namespace in ("Sales", "public", "über")
            for name in ("Order", "_order", 'a"b.c', "order", "order_1", "orders", "ö")
        ]
        assert names == sorted(names)
        for table_id, name in enumerate(reversed(names), start=1):
            store.add_table(TableId(table_id), name)
        assert [status.name for status in store.tables()] == names

    def test_a_transition_writes_every_field(self, store: StateStore, clock: Clock) -> None:
        copying = store.transition(store.add_table(ORDERS, ORDERS_NAME), TableState.DATA_SYNC)
        clock.pass_time(1)
        retry_at = datetime(2026, 3, 29, 3, 0, tzinfo=timezone(timedelta(hours=2)))
        update = TableUpdate(LAST, "etl_shop_sync_16412", 1 << 40, "disk full", "free space", 3, retry_at)
        done = store.transition(copying, TableState.FINISHED_COPY, update)
        assert done == TableStatus(
            ORDERS,
            ORDERS_NAME,
            TableState.FINISHED_COPY,
            copying.version + 1,
            LAST,
            "etl_shop_sync_16412",
            1 << 40,
            "disk full",
            "free space",
            3,
            retry_at,
            clock(),
        )
        stored = store.table(ORDERS)
        assert stored == done
        assert stored.retry_at is not None
        assert stored.retry_at.utcoffset() == timedelta(0)
        cleared = store.transition(done, TableState.READY)
        assert (cleared.snapshot_lsn, cleared.sync_slot, cleared.error, cleared.attempts) == (None, None, None, 0)
        assert store.table(ORDERS) == cleared

    def test_a_transition_from_an_old_version_changes_nothing(self, store: StateStore) -> None:
        added = store.add_table(ORDERS, ORDERS_NAME)
        moved = store.transition(added, TableState.DATA_SYNC)
        with pytest.raises(StateConflict, match=r"public\.orders"):
            store.transition(added, TableState.DATA_SYNC, TableUpdate(error="late"))
        assert store.table(ORDERS) == moved
        assert len(store.history(ORDERS)) == 2

    def test_many_move_at_once_and_one_that_moved_meanwhile_is_told(self, store: StateStore) -> None:
        ids = [TableId(number) for number in range(1, 6)]
        added = [store.add_table(table_id, TableName("public", f"t{table_id}")) for table_id in ids]
        paused = store.transition(added[2], TableState.PAUSED)
        begun = store.transition_all([(status, TableState.DATA_SYNC, TableUpdate()) for status in added])
        assert isinstance(begun[2], StateConflict)
        copying = [status for status in begun if isinstance(status, TableStatus)]
        assert [store.table(table_id) for table_id in ids] == [*copying[:2], paused, *copying[2:]]
        stopped = store.transition(copying[3], TableState.ERRORED)
        store.save_schema(replace(SCHEMA, table_id=ids[0]), Lsn(1))
        store.save_schema(replace(SCHEMA, table_id=ids[1], comment="of before"), Lsn(1))
        finished = store.finish_copies(
            [
                FinishedCopy(
                    (status, TableState.FINISHED_COPY, TableUpdate(snapshot_lsn=LAST, rows_copied=20)),
                    replace(SCHEMA, table_id=status.table_id),
                    f'{{"of": {status.table_id}}}',
                    replace(REMEMBERED, fingerprint=replace(REMEMBERED.fingerprint, table_id=status.table_id)),
                )
                for status in copying
            ]
        )
        assert [isinstance(status, StateConflict) for status in finished] == [False, False, False, True]
        assert [store.table(table_id) for table_id in ids] == [*finished[:2], paused, finished[2], stopped]
        found = [store.schema(table_id) for table_id in ids if table_id != paused.table_id]
        assert [version for version, _ in filter(None, found)] == [1, 2, 1, 1]
        assert {table_id: schema.comment for table_id, schema in store.schemas().items()} == dict.fromkeys(
            (ids[0], ids[1], ids[3], ids[4])
        )
        assert store.shapes()[ids[3]] == f'{{"of": {ids[3]}}}'
        assert set(store.fingerprints()) == {ids[0], ids[1], ids[3], ids[4]}
        moves = [(move.from_state, move.to_state) for move in store.history(ids[0])]
        assert moves[:2] == [(TableState.DATA_SYNC, TableState.FINISHED_COPY), (TableState.INIT, TableState.DATA_SYNC)]

    def test_an_arrow_that_does_not_exist_is_refused(self, store: StateStore) -> None:
        added = store.add_table(ORDERS, ORDERS_NAME)
        with pytest.raises(IllegalTransition):
            store.transition(added, TableState.READY)
        assert store.table(ORDERS) == added

    def test_a_removed_table_is_forgotten(self, store: StateStore) -> None:
        status = store.add_table(ORDERS, ORDERS_NAME)
        kept = store.add_table(CUSTOMERS, TableName("public", "customers"))
        store.save_schema(SCHEMA, Lsn(1))
        store.save_fingerprint(ORDERS, REMEMBERED)
        store.save_shape(ORDERS, "{}")
        store.save_selected_name(ORDERS, ORDERS_NAME)
        store.remove_table(ORDERS)
        store.remove_table(ORDERS)
        assert store.table(ORDERS) is None
        assert store.schema(ORDERS) is None
        assert store.fingerprint(ORDERS) is None
        assert store.shape(ORDERS) is None
        assert store.selected_names() == {}
        assert list(store.history(ORDERS)) == []
        assert list(store.tables()) == [kept]
        with pytest.raises(StateConflict):
            store.transition(status, TableState.DATA_SYNC)

    def test_a_status_from_before_a_removal_matches_nothing(self, store: StateStore) -> None:
        """A copy that outlived its table's removal must not finish the copy that began after it."""
        zombie = store.transition(store.add_table(ORDERS, ORDERS_NAME), TableState.DATA_SYNC)
        store.remove_table(ORDERS)
        current = store.transition(store.add_table(ORDERS, ORDERS_NAME), TableState.DATA_SYNC)
        with pytest.raises(StateConflict):
            store.transition(zombie, TableState.FINISHED_COPY, TableUpdate(snapshot_lsn=Lsn(1)))
        assert store.table(ORDERS) == current

    def test_any_error_text_can_be_reported(self, store: StateStore) -> None:
        added = store.add_table(ORDERS, ORDERS_NAME)
        store.transition(added, TableState.ERRORED, TableUpdate(error="NUL \0, surrogate \udc80, ✗", hint="\0"))
        stored = store.table(ORDERS)
        assert stored is not None
        assert stored.error is not None
        assert stored.error.startswith("NUL ")
        assert stored.error.endswith(", ✗")

    def test_a_copy_stays_requested_until_one_has_finished_and_what_was_approved_stays(self, store: StateStore) -> None:
        assert not store.add_table(CUSTOMERS, ORDERS_NAME, is_requested=False).is_requested
        status = store.add_table(ORDERS, ORDERS_NAME)
        seen = []
        for to, update in (
            (TableState.DATA_SYNC, TableUpdate()),
            (TableState.ERRORED, TableUpdate(error="disk full")),
            (TableState.INIT, TableUpdate()),
            (TableState.DATA_SYNC, TableUpdate()),
            (TableState.FINISHED_COPY, TableUpdate()),
            (TableState.READY, TableUpdate()),
            (TableState.ERRORED, TableUpdate(waits_for="approve", change="1f")),
            (TableState.INIT, TableUpdate(approved="1f")),
            (TableState.PAUSED, TableUpdate()),
            (TableState.INIT, TableUpdate(is_requested=True)),
            (TableState.DATA_SYNC, TableUpdate()),
            (TableState.FINISHED_COPY, TableUpdate()),
            (TableState.READY, TableUpdate()),
            (TableState.INIT, TableUpdate()),
        ):
            status = store.transition(status, to, update)
            assert store.table(ORDERS) == status
            seen.append((status.is_requested, status.waits_for, status.change, status.approved))
        assert seen == [
            *[(True, None, None, None)] * 4,
            *[(False, None, None, None)] * 2,
            (False, "approve", "1f", None),
            *[(False, None, None, "1f")] * 2,
            *[(True, None, None, "1f")] * 2,
            *[(False, None, None, "1f")] * 2,
            (False, None, None, None),
        ]

    def test_history_has_the_newest_first(self, store: StateStore, clock: Clock) -> None:
        status = store.add_table(ORDERS, ORDERS_NAME)
        store.add_table(CUSTOMERS, ORDERS_NAME)
        for to, error in ((TableState.DATA_SYNC, None), (TableState.ERRORED, "disk full"), (TableState.INIT, None)):
            clock.pass_time(60)
            status = store.transition(status, to, TableUpdate(error=error))
        lines = store.history(ORDERS, limit=3)
        assert [(line.from_state, line.to_state, line.error) for line in lines] == [
            (TableState.ERRORED, TableState.INIT, None),
            (TableState.DATA_SYNC, TableState.ERRORED, "disk full"),
            (TableState.INIT, TableState.DATA_SYNC, None),
        ]
        assert [line.at for line in lines] == [clock() - timedelta(minutes=age) for age in range(3)]

    def test_the_tables_that_were_once_in_a_state(self, stores: Stores, store: StateStore) -> None:
        status = store.transition(store.add_table(ORDERS, ORDERS_NAME), TableState.PAUSED)
        store.transition(status, TableState.INIT)
        store.add_table(CUSTOMERS, ORDERS_NAME)
        assert store.tables_once_in([TableState.PAUSED, TableState.READY]) == {ORDERS}
        assert store.tables_once_in([TableState.INIT]) == {ORDERS, CUSTOMERS}
        assert store.tables_once_in([TableState.READY]) == store.tables_once_in([]) == set()
        assert stores("other").tables_once_in([TableState.INIT]) == set()

    def test_the_last_stream_error_is_kept(self, store: StateStore, clock: Clock) -> None:
        store.save_stream_error("the slot is gone", "create another one", is_permanent=True)
        assert store.stream_error() == StreamError("the slot is gone", "create another one", clock(), True)
        store.save_stream_error("blocked", None, is_permanent=False)
        assert store.stream_error() == StreamError("blocked", None, clock(), False)

    # Progress

    def test_progress_is_kept(self, store: StateStore, clock: Clock) -> None:
        commit_time = datetime(2026, 3, 29, 2, 59, 59, 1, tzinfo=timezone(timedelta(hours=2)))
        progress = ReplicationProgress(LAST, commit_time, 1 << 40, 130_000.5, 0.25)
        store.save_progress(progress)
        assert store.progress() == replace(progress, updated_at=clock())
        clock.pass_time(1)
        bare = ReplicationProgress(LAST)
        store.save_progress(bare)
        assert store.progress() == replace(bare, updated_at=clock())

    def test_progress_only_grows(self, store: StateStore) -> None:
        """In numbers: unsigned, and 10 after 9."""
        ascending = [ZERO, Lsn(9), Lsn(10), Lsn(0xFFFFFFFF), Lsn(1 << 32), Lsn(SIGN - 1), SIGN, LAST]
        for lsn in ascending:
            store.save_progress(ReplicationProgress(lsn))
        for lsn in ascending[:-1]:
            with pytest.raises(StateConflict):
                store.save_progress(ReplicationProgress(lsn, rows=7))
        stored = store.progress()
        assert stored is not None
        assert (stored.flushed_lsn, stored.rows) == (LAST, 0)

    def test_progress_is_stored_by_whoever_claimed_it_last(self, store: StateStore, stores: Stores) -> None:
        """Also while the clock stands still, as it does in these tests."""
        first = store.claim_progress(None, Lsn(5))
        assert store.progress() == first
        assert first.flushed_lsn == 5
        first = store.save_progress(ReplicationProgress(Lsn(6)), first)
        assert store.progress() == first
        heir = stores("shop")
        claimed = heir.claim_progress(heir.progress(), Lsn(0))
        assert replace(claimed, updated_at=None, claim=None) == replace(first, updated_at=None, claim=None)
        assert claimed.claim not in (None, first.claim)
        with pytest.raises(StateConflict):
            store.save_progress(ReplicationProgress(Lsn(7)), first)
        with pytest.raises(StateConflict):
            store.claim_progress(first, Lsn(0))
        with pytest.raises(StateConflict):
            store.claim_progress(None, Lsn(0))
        saved = heir.save_progress(ReplicationProgress(Lsn(6)), claimed)
        assert saved == store.progress()
        assert saved.claim == claimed.claim

    def test_only_the_stream_that_has_the_claim_moves_tables_under_it(self, store: StateStore) -> None:
        status = store.add_table(ORDERS, ORDERS_NAME)
        first = store.claim_progress(None, Lsn(5))
        status = store.transition(status, TableState.PAUSED, claim=first.claim)
        heir = store.claim_progress(first, Lsn(5))
        with pytest.raises(ClaimLost):
            store.transition(status, TableState.INIT, claim=first.claim)
        assert store.table(ORDERS) == status
        store.save_progress(ReplicationProgress(Lsn(6)), heir)
        store.transition(status, TableState.INIT, claim=heir.claim)

    # Schemas

    def test_a_schema_gets_a_version_when_it_changed(self, store: StateStore) -> None:
        wider = replace(SCHEMA, columns=(*SCHEMA.columns, Column("note", TEXT, attnum=2, missing_value="a\0b")))
        assert store.save_schema(SCHEMA, Lsn(1)) == 1
        assert store.save_schema(SCHEMA, Lsn(2)) == 1
        assert store.save_schema(wider, Lsn(3)) == 2
        assert store.schema(ORDERS) == (2, wider)
        assert store.save_schema(SCHEMA, Lsn(4)) == 3
        assert store.schema(ORDERS) == (3, SCHEMA)
        other = replace(SCHEMA, table_id=CUSTOMERS)
        assert store.save_schema(other, LAST) == 1
        assert store.schema(CUSTOMERS) == (1, other)
        versions = store.schema_versions(ORDERS)
        assert [(one.version, one.lsn, one.schema) for one in versions] == [
            (1, Lsn(1), SCHEMA),
            (2, Lsn(3), wider),
            (3, Lsn(4), SCHEMA),
        ]
        assert [one.version for one in store.schema_versions(ORDERS, limit=2)] == [2, 3]

    def test_a_comment_that_changed_is_kept(self, store: StateStore) -> None:
        assert store.save_schema(SCHEMA, Lsn(1)) == 1
        assert store.save_schema(replace(SCHEMA, comment="ours"), Lsn(2)) == 2
        stored = store.schema(ORDERS)
        assert stored is not None
        assert stored[1].comment == "ours"

    def test_a_schema_comes_back_as_it_was(self, store: StateStore) -> None:
        mood = PgType(4294967295, "Mood", "my types", TypeKind.ENUM)
        array = PgType(99999, "_Mood", "my types", TypeKind.ARRAY, element=mood)
        domain = PgType(100001, "moods", "public", TypeKind.DOMAIN, element=array)
        attributes = (Column("a", TEXT, 24, attnum=1), Column("B c", domain, attnum=3))
        pair = PgType(100002, "pair", "public", TypeKind.COMPOSITE, attributes=attributes)
        columns = (
            Column("pair", PgType(100003, "_pair", "public", TypeKind.ARRAY, element=pair), attnum=2),
            Column("id", TEXT, type_modifier=68, nullable=False, attnum=1, missing_value=""),
            Column('quo"ted ✗', domain, attnum=3, missing_value='{"a b",NULL}'),
        )
        schema = TableSchema(ORDERS, TableName("My Schema", "ö"), columns, ("id", 'quo"ted ✗'), ReplicaIdentity.FULL)
        store.save_schema(schema, Lsn(1))
        assert store.schema(ORDERS) == (1, schema)

    # Holds

    def test_a_selected_name_comes_back_and_goes(self, store: StateStore) -> None:
        odd = TableName("My Schema", 'say "hi"')
        store.save_selected_name(ORDERS, ORDERS_NAME)
        store.save_selected_name(ORDERS, odd)
        store.save_selected_name(CUSTOMERS, ORDERS_NAME)
        assert store.selected_names() == {ORDERS: odd, CUSTOMERS: ORDERS_NAME}
        store.save_selected_name(CUSTOMERS, None)
        assert store.selected_names() == {ORDERS: odd}

    def test_a_shape_comes_back_and_is_replaced_beside_what_was_checked(self, store: StateStore) -> None:
        assert (store.shape(ORDERS), store.checked_settings()) == (None, None)
        store.save_shape(ORDERS, "first")
        store.save_checked_settings("digest")
        store.save_shape(ORDERS, "second")
        assert (store.shape(ORDERS), store.checked_settings()) == ("second", "digest")
        assert store.shapes() == {ORDERS: "second"}
        assert store.shape(CUSTOMERS) is None

    def test_a_fingerprint_comes_back_as_it_was_and_is_replaced(self, store: StateStore) -> None:
        assert store.fingerprint(ORDERS) is None
        store.save_fingerprint(ORDERS, REMEMBERED)
        found = store.fingerprint(ORDERS)
        assert found == REMEMBERED
        assert found.fingerprint.horizon == REMEMBERED.fingerprint.horizon
        grown = replace(REMEMBERED, lsn=LAST, has_gap=True, earlier=REMEMBERED)
        store.save_fingerprint(ORDERS, grown)
        assert store.fingerprints() == {ORDERS: grown}
