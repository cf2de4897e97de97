"""Brings into being what a pipeline stands on, and clears away what a crash left: before anything is replicated.

The publication, the main slot and its recorded identity, the list of tables, the slots that nobody needs any more.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence

from etl_core.batch import WriteBatch
from etl_core.config import PipelineConfig
from etl_core.destination.protocol import Destination
from etl_core.errors import (
    ConfigError,
    EtlError,
    SourceChanged,
    SourceLocked,
    SourceRefused,
    StateConflict,
    Stopped,
    TableAbsent,
    TableError,
)
from etl_core.identifiers import TableId, TableName
from etl_core.replication.catalog_watch import CatalogWatch
from etl_core.replication.followed import find_followed, note_renamed, with_followed
from etl_core.replication.identity import check_source
from etl_core.replication.loops import check_no_loop
from etl_core.replication.observer import Observer, tell_shortened
from etl_core.replication.other_slots import describe_other_slot, find_other_slots
from etl_core.replication.permission import Permission
from etl_core.replication.shaping import Shaping
from etl_core.replication.source import Source
from etl_core.replication.stream_fence import begin_stream
from etl_core.replication.table_errors import absent_update, is_absent
from etl_core.shape.shapes import Shapes
from etl_core.source.absence import find_absent
from etl_core.source.catalog import PublishedTable, find_table_id, published_tables, table_schema
from etl_core.source.connection import Connection
from etl_core.source.publication import (
    check_publication,
    ensure_publication,
    find_publication,
    publication_oid,
    told_left_out,
    unpublished,
)
from etl_core.source.selected import check_selected, selected_tables, selected_unpublished, told_unpublished
from etl_core.source.server import Turn, limit_lock_waits, server_info, try_turn
from etl_core.source.slot import SlotStatus, drop_statement, slot_status
from etl_core.state.store import SourceIdentity, StateStore, TableStatus, TableUpdate
from etl_core.state.table_state import TableState

_log = logging.getLogger(__name__)

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
        shapes: Shapes,
        permission: Permission,
    ) -> None:
        self._config = config
        self._source = source
        self._store = store
        self._destination = destination
        self._observer = observer
        self._stop = stop
        self._watch = watch
        self._has_settings = bool(shapes)
        self._shaping = Shaping(shapes, store, observer)
        self._permission = permission
        self._told: set[str] = set()
        self._wanted: tuple[TableName, ...] | None = None
        """The tables that are configured, as `prepare` last found them; None for what the publication publishes."""

    def prepare(self) -> None:
        """See `Pipeline.prepare`. What the source can refuse is asked before anything is made."""
        with self._source.connect("prepare") as connection:
            # The publication's tables are opened to be listed: one that somebody alters must not hold up all others.
            limit_lock_waits(connection, _LOCK_SECONDS)
            server_info(connection)  # refuses what cannot be replicated
            check_no_loop(self._destination, connection)
            self._wanted = self._selected(connection)
            if self._wanted is not None:
                self._tell_plan(connection, self._wanted)
            self._check_tables(connection)
            self._store.migrate()
            self._check_settings(connection)
            self._wait_for_turn(connection)
            # Now: others have had their turn.
            self._wanted = self._selected(connection)
            exists = find_publication(connection, self._source.publication) is not None
            is_known = self._check_known_source(connection)
            self._destination.prepare()
            # Before a look at the catalog brings the names up to date: the configuration may have the old ones.
            before = {status.table_id: status for status in self._store.tables()}
            self._follow(connection, before.values())
            absent = self._find_absent(connection) if is_known else {}
            if is_known and not exists:
                # In this order: what was written without a publication was not sent, whatever is created now.
                self._watch.set_back_all(
                    f"publication {self._source.publication} did not exist, and changes of that time were not sent"
                )
            if ensure_publication(
                connection,
                self._source.publication,
                self._wanted_but(absent),
                allow_append_only=self._config.allow_append_only,
            ):
                self._store.set_publication_owned(True, publication_oid(connection, self._source.publication))
            if is_known:
                self._watch.look_now(connection)
            else:
                self._begin(connection)
            published = published_tables(connection, self._source.publication)
            if self._wanted is None:
                self._tell_plan(connection, [table.name for table in published])
            self._register(published, absent, before)
            self._watch.set_back(self._shaping.changed())
            self._shaping.settings_fit()
            self._go_on_where_permitted(connection, published)
            self._drop_leaked_slots()
            self._tell_of_other_slots(connection)

    def _check_tables(self, connection: Connection) -> None:
        """Refuses a first start with a table that the source does not have or publish; a later one goes on without."""
        try:
            self._check_publication(connection, self._wanted)
        except (ConfigError, SourceRefused):
            self._store.migrate()
            if self._store.source_identity() is None:
                raise
            self._follow(connection, self._store.tables())
            absent = self._find_absent(connection)
            try:
                self._check_publication(connection, self._wanted_but(absent))
            except EtlError:
                # What is not published meanwhile is to be copied again, whenever the next start is not refused.
                with contextlib.suppress(EtlError):
                    self._check_known_source(connection)
                    self._watch.look_now(connection)
                raise

    def _check_settings(self, connection: Connection) -> None:
        """Refuses settings that do not fit the tables, as they are or will be published."""
        wanted = self._wanted
        if not self._has_settings:
            return
        if find_publication(connection, self._source.publication) is not None:
            published = [table.schema for table in published_tables(connection, self._source.publication)]
            schemas = [schema for schema in published if wanted is None or schema.name in wanted]
        else:
            found = [find_table_id(connection, name) for name in wanted or ()]
            described = [table_schema(connection, table_id) for table_id in found if table_id is not None]
            schemas = [schema for schema in described if schema is not None]
        schemas = [self._permission.kept(schema) for schema in schemas]
        self._shaping.check_settings(schemas, {*(wanted or ()), *(status.name for status in self._store.tables())})

    def _selected(self, connection: Connection) -> tuple[TableName, ...] | None:
        return selected_tables(connection, self._source.publication, self._config.source.selection)

    def _check_publication(self, connection: Connection, tables: Sequence[TableName] | None) -> None:
        check_selected(self._wanted, self._source.publication, self._config.source.selection)
        check_publication(
            connection, self._source.publication, tables, allow_append_only=self._config.allow_append_only
        )

    def _follow(self, connection: Connection, known: Iterable[TableStatus]) -> None:
        """Puts the names of now in the place of configured ones that known tables had before."""
        if self._wanted is None:
            return
        followed = find_followed(connection, self._store, self._config.source.selection, known)
        self._wanted = with_followed(connection, self._wanted, followed)
        new = [str(one) for one in followed if str(one) not in self._told]
        self._told.update(new)
        tell_shortened(self._observer, new)

    def _find_absent(self, connection: Connection) -> dict[TableName, TableAbsent]:
        return find_absent(connection, self._source.publication, self._wanted) if self._wanted else {}

    def _wanted_but(self, absent: Collection[TableName]) -> Sequence[TableName] | None:
        return None if self._wanted is None else [name for name in self._wanted if name not in absent]

    def _tell_plan(self, connection: Connection, tables: Sequence[TableName]) -> None:
        """Says what will not arrive, and what the publication does to the source, before anything is copied."""
        name = self._source.publication
        if find_publication(connection, name) is not None:
            missing = set(unpublished(connection, name, tables))
            self._watch.tell_harms(connection, [table for table in tables if table not in missing])
        sentences = [one for one in self._left_out(connection, tables) if one not in self._told]
        self._told.update(sentences)  # a run prepares again after each lost connection
        tell_shortened(self._observer, sentences)

    def _left_out(self, connection: Connection, tables: Sequence[TableName]) -> list[str]:
        name = self._source.publication
        sentences = told_left_out(connection, name, tables)
        if find_publication(connection, name) is not None:
            unpublished = selected_unpublished(connection, name, self._config.source.selection)
            sentences += [told_unpublished(unpublished, name)] if unpublished else []
        return sentences

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
        identity = SourceIdentity(
            server.system_identifier,
            server.timeline,
            self._source.main_slot,
            created.consistent_point,
            server.database,
            server.database_oid,
            f"{connection.info.host}:{connection.info.port}",
        )
        # First: whatever the destination says later of another source or slot, it was put there since.
        found = self._destination.positions().stream
        begin = begin_stream(identity.incarnation, identity.slot_lsn, found)
        self._destination.write(WriteBatch((), {}, begin))
        self._store.save_source_identity(identity)

    def _drop_unfinished_slot(self, slot: SlotStatus) -> None:
        """A main slot though nothing was replicated: ours, from a start that crashed, or somebody else's."""
        if slot.name not in {owned.name for owned in self._store.owned_slots()}:
            raise SourceChanged(
                f"replication slot {slot.name} exists, but this pipeline did not create it",
                hint="another pipeline has this name, or the state store was lost; if nobody uses the slot: "
                + drop_statement(slot.name),
            )
        self._source.drop_owned_slot(slot.name)

    def _register(
        self,
        tables: Iterable[PublishedTable],
        absent: Mapping[TableName, TableAbsent],
        before: Mapping[TableId, TableStatus],
    ) -> None:
        """`before` is what was known of the tables before this start's look at the catalog."""
        published = {table.name: table.schema.table_id for table in tables}
        wanted = sorted(published) if self._wanted is None else self._wanted
        by_id = {published[name]: name for name in wanted if name in published and name not in absent}
        lost = []
        for status in self._store.tables():
            was = before.get(status.table_id, status)
            error = absent.get(status.name) or absent.get(was.name)
            if status.table_id not in by_id and error is not None:
                if not is_absent(status):
                    self._stop_absent(status, error)
                elif is_absent(was):  # else the look at the catalog has just stopped it, and said why
                    self._observer.on_table_error(status.name, error)
            elif status.table_id not in by_id:
                self._forget(status)
                lost.append(status)
        known = {status.table_id: status for status in self._store.tables()}
        for name in absent.keys() - {status.name for status in (*before.values(), *known.values())}:
            self._observer.on_table_error(name, absent[name])  # it was never copied, so that it has no state
        for table_id, name in by_id.items():
            found = known.get(table_id)
            if found is None or found.name != name:
                if found is not None:
                    note_renamed(self._store, self._config.source.selection, found, name)
                self._store.add_table(table_id, name, is_requested=not _replaces_copy(name, lost))
        selection = self._config.source.selection
        for table_id in self._store.selected_names():
            if selection is None or by_id.get(table_id) in selection:
                self._store.save_selected_name(table_id, None)  # the configuration has the name of now

    def _stop_absent(self, status: TableStatus, error: TableAbsent) -> None:
        """Stops a table that the source no longer offers. A paused one stays paused."""
        if status.state is TableState.PAUSED:
            return
        with contextlib.suppress(StateConflict):  # another process was faster
            self._store.transition(status, TableState.ERRORED, absent_update(error))
            self._observer.on_state(status.name, TableState.ERRORED)
            if status.sync_slot is not None:
                self._drop_unless_active(status.sync_slot)
            self._observer.on_table_error(status.name, error)

    def register_new(self, connection: Connection) -> None:
        """Adds tables that are published and wanted since the last look; one that has a lost one's name replaces it."""
        wanted = self._config.source.selection
        statuses = self._store.tables()
        known = {status.table_id for status in statuses}
        for table in published_tables(connection, self._source.publication):
            table_id, name = table.schema.table_id, table.name
            if table_id in known or (wanted is not None and name not in wanted):
                continue
            lost = [
                status
                for status in statuses
                if status.name == name and table_schema(connection, status.table_id) is None
            ]
            for status in lost:
                self._forget(status)
            self._store.add_table(table_id, name, is_requested=not _replaces_copy(name, lost))
            self._observer.on_state(name, TableState.INIT)

    def _forget(self, status: TableStatus) -> None:
        """A table that is no longer published or wanted, or was dropped. Its data stays for readers."""
        _log.warning("%s is no longer replicated; the destination keeps the rows it has", status.name)
        if status.sync_slot is not None:
            self._source.drop_if_owned(status.sync_slot)
        self._destination.forget(status.table_id)
        self._store.remove_table(status.table_id)

    def _go_on_where_permitted(self, connection: Connection, published: Sequence[PublishedTable]) -> None:
        """Has tables copied that waited for a person by a policy that says otherwise now.

        One whose changes are kept is the stream's matter.
        """
        schemas = {table.schema.table_id: table.schema for table in published}
        for status in self._store.tables():
            if status.waits_for is None or status.sync_slot is not None or status.table_id not in schemas:
                continue
            with contextlib.suppress(TableError, SourceLocked, StateConflict):
                self._permission.check_copy(connection, status, schemas[status.table_id])
                self._store.transition(status, TableState.INIT, TableUpdate(attempts=status.attempts))
                self._observer.on_state(status.name, TableState.INIT)

    def _drop_leaked_slots(self) -> None:
        """Drops slots that a crash left behind, after setting back the copies that died."""
        self.reset_dead_copies()
        # First: a copy has moved its table before it creates one. A slot in which another process is about to keep a
        # failing table's changes may be taken for leaked; that table is copied again then.
        slots = self._store.owned_slots()
        needed = {
            status.sync_slot
            for status in self._store.tables()
            if status.state in _NEED_A_SLOT or status.state is TableState.ERRORED
        }
        for owned in slots:
            is_needed = owned.name in needed
            if owned.name != self._source.main_slot and not is_needed:
                self._drop_unless_active(owned.name)

    def _tell_of_other_slots(self, connection: Connection) -> None:
        for slot in find_other_slots(connection, self._store):
            if slot.name not in self._told:
                self._told.add(slot.name)
                sentence = describe_other_slot(slot, self._config.pipeline)
                _log.warning("%s: %s", sentence, drop_statement(slot.name))

    def reset_dead_copies(self) -> None:
        """Sets tables that nobody copies any more back to INIT."""
        copying = [status for status in self._store.tables() if status.state is TableState.DATA_SYNC]
        if not copying:
            return
        with self._source.connect("prepare") as connection:
            running = self._source.running_copies(connection)
        for status in copying:
            # A copy's session ends after its state has moved. So one without a session whose state has not moved, as
            # seen after the sessions were, has died; it may also have finished since we saw its state first.
            if status not in running and self._store.table(status.table_id) == status:
                if status.sync_slot is not None:
                    self._source.drop_if_owned(status.sync_slot)
                with contextlib.suppress(StateConflict):  # its process, or another one, was faster
                    self._store.transition(status, TableState.INIT)
                    self._observer.on_state(status.name, TableState.INIT)

    def _drop_unless_active(self, name: str) -> None:
        status = self._source.slot_status(name)
        if status is None or not status.active:
            self._source.drop_if_owned(name)


def _replaces_copy(name: TableName, lost: Iterable[TableStatus]) -> bool:
    """Whether a table of that name was copied and is another one now: its first copy replaces what readers see."""
    return any(status.name == name and not status.is_requested for status in lost)
