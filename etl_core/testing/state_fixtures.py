"""What the behaviour suite of state stores works with: fixtures, a clock, sample values, races."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import Protocol, TypeVar

import pytest

from etl_core.errors import StateConflict
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.schema.fingerprint import Attribute, Fingerprint, Node, Publishing, TypeForm, Way
from etl_core.schema.table import Column, PgType, TableSchema
from etl_core.state.store import Hold, Remembered, ReplicationProgress, SourceIdentity, StateStore, TableUpdate
from etl_core.state.table_state import TableState

T = TypeVar("T")

ORDERS = TableId(16412)
CUSTOMERS = TableId((1 << 32) - 1)
ORDERS_NAME = TableName("public", "orders")
TEXT = PgType(25, "text")
SCHEMA = TableSchema(ORDERS, ORDERS_NAME, (Column("id", PgType(23, "int4"), nullable=False, attnum=1),), ("id",))
REMEMBERED = Remembered(
    Fingerprint(
        ORDERS,
        ORDERS_NAME,
        "r",
        "p",
        (Attribute(1, "id", 23, xmin=740), Attribute(2, ""), Attribute(3, 'a "b"\0', 16500, 8, "s", 741)),
        (Node(ORDERS, 16412), Node(16450, 16451, 742, born_attached=True)),
        (TypeForm(16500, True, ((16501, "open"), (16503, "größer"))), TypeForm(16600, False, ())),
        Publishing(
            16700,
            743,
            10,
            (("pubinsert", True),),
            (Way(ORDERS, 16701, condition="1f", columns=(1, 3)), Way(2200, 9, True)),
        ),
        is_published=True,
        horizon=1 << 40,
    ),
    Lsn(7),
)
SIGN = Lsn(1 << 63)
"""Where a signed 64-bit number would turn negative."""
LAST = Lsn((1 << 64) - 1)
FAR = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)


class Clock:
    """A clock that a test sets: pass it as `now`, move it with `pass_time`."""

    def __init__(self) -> None:
        self.time = datetime(2026, 3, 29, 0, 59, 59, 123456, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time

    def pass_time(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


class OpenStore(Protocol):
    """Opens a store on the test's storage. Called from the test's thread, several times in one test."""

    def __call__(self, pipeline: str, *, now: Callable[[], datetime]) -> StateStore: ...


Stores = Callable[[str], StateStore]


class StateStoreFixtures:
    """The suite's fixtures; `open_store` is for the subclass to override."""

    @pytest.fixture
    def open_store(self) -> OpenStore:
        raise NotImplementedError("override the fixture open_store")

    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def stores(self, open_store: OpenStore, clock: Clock) -> Iterator[Stores]:
        """Opens further stores by pipeline, closed at the end."""
        with ExitStack() as stack:
            yield lambda pipeline: stack.enter_context(closing(open_store(pipeline, now=clock)))

    @pytest.fixture
    def store(self, stores: Stores) -> StateStore:
        store = stores("shop")
        store.migrate()
        return store


def fill(store: StateStore) -> None:
    """Puts something into every part of the store."""
    store.save_source_identity(SourceIdentity("7312345678901234567", 1, "etl_shop", Lsn(1)))
    store.transition(store.add_table(ORDERS, ORDERS_NAME), TableState.ERRORED, TableUpdate(error="disk full"))
    store.save_progress(ReplicationProgress(Lsn(9), rows=1))
    store.save_schema(SCHEMA, Lsn(1))
    store.record_slot("etl_shop", None)
    store.set_publication_owned(True)
    store.request_hold(Hold("verify", FAR))
    store.shared_copies.end(ORDERS, "run 1")
    store.save_fingerprint(ORDERS, REMEMBERED)
    store.save_shape(ORDERS, "{}")
    store.save_selected_name(ORDERS, ORDERS_NAME)
    store.save_checked_settings("digest")


def everything(store: StateStore) -> list[object]:
    """All that can be read from the store, to be compared."""
    return [
        store.source_identity(),
        store.tables(),
        store.history(ORDERS),
        store.progress(),
        store.schema(ORDERS),
        store.owned_slots(),
        store.publication_owned(),
        store.hold(),
        store.shared_copies.find(ORDERS),
        store.fingerprints(),
        store.shapes(),
        store.selected_names(),
        store.checked_settings(),
    ]


def race(contenders: Sequence[Callable[[], T]]) -> list[T | StateConflict]:
    """Runs all at once, each in a thread; a StateConflict is an outcome, any other error is raised."""
    start = Barrier(len(contenders))

    def run(contender: Callable[[], T]) -> T | StateConflict:
        start.wait()
        try:
            return contender()
        except StateConflict as conflict:
            return conflict

    with ThreadPoolExecutor(len(contenders)) as executor:
        return list(executor.map(run, contenders))
