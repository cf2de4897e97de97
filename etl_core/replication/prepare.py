"""Brings into being what a pipeline stands on, and clears away what a crash left: before anything is replicated.

The publication, the main slot and its recorded identity, the list of tables, the slots that nobody needs any more.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable

from etl_core.config import PipelineConfig
from etl_core.destination.protocol import Destination
from etl_core.errors import EtlError, SourceChanged, StateConflict, Stopped
from etl_core.identifiers import TableId
from etl_core.replication.catalog_watch import CatalogWatch
from etl_core.replication.identity import check_source
from etl_core.replication.observer import Observer
from etl_core.replication.source import Source
from etl_core.source.catalog import PublishedTable, published_tables, table_schema
from etl_core.source.connection import Connection
from etl_core.source.publication import check_publication, ensure_publication
from etl_core.source.server import Turn, application_names, limit_lock_waits, server_info, try_turn
from etl_core.source.slot import SlotStatus, slot_status
from etl_core.state.store import SourceIdentity, StateStore, TableStatus
from etl_core.state.table_state import TableState

_NEED_A_SLOT = (TableState.DATA_SYNC, TableState.FINISHED_COPY, TableState.SYNC_DONE)

_LOCK_SECONDS = 10
_TURN_EVERY = 0.05
_TELL_AFTER = 2.0


class Preparation:
    """What `Pipeline.prepare` does, step by step. Every step may be repeated after a crash."""

    def __init__(
        self,
        config: PipelineConfig,
        source: Source,
        store: StateStore,
        destination: Destination,
        observer: Observer,
        stop: threading.Event,
        watch: CatalogWatch,
    ) -> None:
        self._config = config
        self._source = source
        self._store = store
        self._destination = destination
        self._observer = observer
        self._stop = stop
        self._watch = watch

    def prepare(self) -> None:
        """See `Pipeline.prepare`. What the source can refuse is asked before anything is made."""
        with self._source.connect("prepare") as connection:
            # The publication's tables are opened to be listed: one that somebody alters must not hold up all others.
            limit_lock_waits(connection, _LOCK_SECONDS)
            server_info(connection)  # refuses what cannot be replicated
            exists = self._check_publication(connection)
            self._store.migrate()
            self._wait_for_turn(connection)
            is_known = self._check_known_source(connection)
            self._destination.prepare()
            if is_known and not exists:
                # In this order: what was written without a publication was not sent, whatever is created now.
                self._watch.set_back_all(
                    f"publication {self._source.publication} did not exist, and changes of that time were not sent"
                )
            if ensure_publication(connection, self._source.publication, self._config.source.tables):
                self._store.set_publication_owned(True)
            if not is_known:
                self._begin(connection)
            else:
                self._watch.look_now(connection)
            self._register(published_tables(connection, self._source.publication))
            self._drop_leaked_slots()

    def _check_publication(self, connection: Connection) -> bool:
        """Whether the publication exists. What is refused for it, the tables must be copied again for."""
        try:
            return check_publication(connection, self._source.publication, self._config.source.tables)
        except EtlError:
            with contextlib.suppress(EtlError):  # a pipeline that is new, or whose store is away
                if self._store.source_identity() is not None:
                    self._watch.look_now(connection)
            raise

    def _wait_for_turn(self, connection: Connection) -> None:
        """One process prepares a pipeline at a time: until `connection` is closed, also by the end of the process."""
        started = time.monotonic()
        is_told = False
        while not try_turn(connection, Turn.PREPARE, self._config.pipeline):
            if not is_told and time.monotonic() - started > _TELL_AFTER:
                self._observer.on_waiting(f"another process is preparing pipeline {self._config.pipeline}")
                is_told = True
            if self._stop.wait(_TURN_EVERY):
                raise Stopped("stopped while another process prepared the pipeline")

    def _check_known_source(self, connection: Connection) -> bool:
        """False if nothing was replicated yet; raises SourceChanged if the source is not the one it was."""
        identity = self._store.source_identity()
        if identity is None:
            return False
        # In this order: a stream that runs stores what it has flushed, then confirms it, and the WAL is beyond.
        slot = slot_status(connection, self._source.main_slot)
        progress = self._store.progress()
        check_source(identity, server_info(connection), slot, progress.flushed_lsn if progress else None)
        return True

    def _begin(self, connection: Connection) -> None:
        """Creates the main slot and records whose it is."""
        slot = slot_status(connection, self._source.main_slot)
        if slot is not None:
            self._drop_unfinished_slot(slot)
        server = server_info(connection)
        with self._source.connect("slots", replication=True) as creator:
            created = self._source.create_slot(
                creator,
                self._source.main_slot,
                None,
                export_snapshot=False,
                on_wait=lambda blockers: self._observer.on_waiting(
                    f"creating replication slot {self._source.main_slot} waits for {'; '.join(map(str, blockers))}"
                ),
                stop=self._stop,
            )
        self._store.save_source_identity(
            SourceIdentity(server.system_identifier, server.timeline, self._source.main_slot, created.consistent_point)
        )

    def _drop_unfinished_slot(self, slot: SlotStatus) -> None:
        """A main slot though nothing was replicated: ours, from a start that crashed, or somebody else's."""
        if slot.name not in {owned.name for owned in self._store.owned_slots()}:
            raise SourceChanged(
                f"replication slot {slot.name} exists, but this pipeline did not create it",
                hint="another pipeline has this name, or the state store was lost; if nobody uses the slot: "
                f"SELECT pg_drop_replication_slot('{slot.name}')",
            )
        self._source.drop_owned_slot(slot.name)

    def _register(self, tables: Iterable[PublishedTable]) -> None:
        published = {table.name: table.schema.table_id for table in tables}
        wanted = self._config.source.tables or sorted(published)
        by_id = {published[name]: name for name in wanted if name in published}
        for status in self._store.tables():
            if status.table_id not in by_id:
                self._forget(status)
        known = {status.table_id: status.name for status in self._store.tables()}
        for table_id, name in by_id.items():
            if known.get(table_id) != name:
                self._store.add_table(table_id, name)

    def register_new(self, connection: Connection) -> None:
        """Adds tables that are published and wanted since the last look; one that has a lost one's name replaces it."""
        wanted = self._config.source.tables
        statuses = self._store.tables()
        known = {status.table_id for status in statuses}
        for table in published_tables(connection, self._source.publication):
            table_id, name = table.schema.table_id, table.name
            if table_id in known or (wanted is not None and name not in wanted):
                continue
            for status in statuses:
                if status.name == name and table_schema(connection, status.table_id) is None:
                    self._forget(status)
            self._store.add_table(table_id, name)
            self._observer.on_state(name, TableState.INIT)

    def _forget(self, status: TableStatus) -> None:
        """A table that is no longer published or wanted, or was dropped. Its data stays for readers."""
        if status.sync_slot is not None:
            self._source.drop_if_owned(status.sync_slot)
        self._destination.forget(status.table_id)
        self._store.remove_table(status.table_id)

    def _drop_leaked_slots(self) -> None:
        """Drops slots that a crash left behind, after setting back the copies that died."""
        self.reset_dead_copies()
        slots = self._store.owned_slots()  # first: whoever creates one has moved its table before
        states = {status.table_id: status.state for status in self._store.tables()}
        for owned in slots:
            is_needed = owned.table_id is not None and states.get(owned.table_id) in _NEED_A_SLOT
            if owned.name != self._source.main_slot and not is_needed:
                self._drop_unless_active(owned.name)

    def reset_dead_copies(self) -> None:
        """Sets tables that nobody copies any more back to INIT."""
        copying = [status for status in self._store.tables() if status.state is TableState.DATA_SYNC]
        running = self._running_copies() if copying else set()
        for status in copying:
            # A copy's session ends after its state has moved. So one without a session whose state has not moved, as
            # seen after the sessions were, has died; it may also have finished since we saw its state first.
            if status.table_id not in running and self._store.table(status.table_id) == status:
                self._source.drop_if_owned(self._source.sync_slot(status.table_id))
                with contextlib.suppress(StateConflict):  # its process, or another one, was faster
                    self._store.transition(status, TableState.INIT)
                    self._observer.on_state(status.name, TableState.INIT)

    def _drop_unless_active(self, name: str) -> None:
        status = self._source.slot_status(name)
        if status is None or not status.active:
            self._source.drop_if_owned(name)

    def _running_copies(self) -> set[TableId]:
        """The tables that a process somewhere is copying now, as the server sees it."""
        prefix = f"etl_{self._config.pipeline}_copy_"
        with self._source.connect("prepare") as connection:
            names = application_names(connection, prefix)
        return {TableId(int(name[len(prefix) :])) for name in names if name[len(prefix) :].isdigit()}
