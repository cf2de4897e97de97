"""What the conductor needs of the source: connections by role, and the slots this pipeline owns."""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

from etl_core.errors import EtlError, PermanentError, SourceChanged
from etl_core.identifiers import TableId, main_slot_name, sync_slot_name
from etl_core.lsn import Lsn
from etl_core.replication.failpoints import SLOT_COPIED, SLOT_DROPPED, SLOT_RECORDED, reach
from etl_core.silence import SILENCE
from etl_core.source.catalog import published_tables
from etl_core.source.connection import Connection, connect
from etl_core.source.ddl_trigger import trigger_state
from etl_core.source.server import application_names, server_info
from etl_core.source.slot import Blocker, CreatedSlot, SlotStatus, copy_slot, create_slot, drop_slot, slot_status
from etl_core.state.store import OwnedSlot, StateStore, TableStatus

if TYPE_CHECKING:
    from etl_core.source.replication_stream import ReplicationStream


@dataclass(frozen=True, slots=True)
class KeptChanges:
    """A slot that keeps a stopped table's changes: those of transactions that end after `confirmed_lsn`."""

    slot: str
    confirmed_lsn: Lsn


@dataclass(frozen=True, slots=True)
class RunningCopies:
    """The tables that have a copy of their own, and the sessions: a group's is called as its slot is."""

    tables: Set[TableId] = frozenset()
    sessions: Set[str] = frozenset()

    def __contains__(self, status: TableStatus) -> bool:
        return status.table_id in self.tables or status.sync_slot in self.sessions


@dataclass(frozen=True, slots=True)
class Source:
    """One pipeline's source. Every call opens the connections it needs, and closes those it does not return.

    `conninfo` gives the connection string, which may hold a password and is never shown; it is called for every
    connection, as passwords are rotated and tokens expire. A connection is given up after `silence` seconds without a
    word.
    """

    conninfo: Callable[[], str]
    pipeline: str
    publication: str
    store: StateStore
    silence: float = SILENCE

    def __repr__(self) -> str:
        return f"Source(pipeline={self.pipeline!r}, publication={self.publication!r})"

    @property
    def main_slot(self) -> str:
        return main_slot_name(self.pipeline)

    def new_sync_slot(self, table_id: TableId) -> str:
        """A name for the slot of the copy that is about to begin: no other copy has it."""
        return sync_slot_name(self.pipeline, table_id, secrets.token_hex(3))

    def new_group(self) -> str:
        """A role for the session of a group of copies that is about to begin: no other group has it."""
        return f"group_{secrets.token_hex(3)}"

    def group_slot(self, role: str) -> str:
        """What the slot of a group is called, and its session on the server."""
        return f"etl_{self.pipeline}_{role}"

    def connect(self, role: str, *, replication: bool = False, autocommit: bool = True) -> Connection:
        """A connection called `etl_<pipeline>_<role>` on the server."""
        return connect(
            self.conninfo(),
            pipeline=self.pipeline,
            role=role,
            replication=replication,
            autocommit=autocommit,
            silence=self.silence,
        )

    def open_stream(self, slot: str, start_lsn: Lsn, role: str) -> ReplicationStream:
        """Streams a slot. Raises SlotInUse while another consumer has it."""
        from etl_core.source.replication_stream import ReplicationStream  # numpy, for those alone who stream

        connection = self.connect(role, replication=True)
        try:
            has_trigger = trigger_state(connection) is not None
        except BaseException:
            connection.close()
            raise
        return ReplicationStream(
            connection, slot, self.publication, start_lsn, filtered=self._filtered_tables, messages=has_trigger
        )

    def _filtered_tables(self) -> list[str]:
        """The tables that the publication filters rows of; none if that cannot be found out now."""
        with contextlib.suppress(EtlError), self.connect("catalog") as connection:
            published = published_tables(connection, self.publication)
            return [str(table.name) for table in published if table.row_filter is not None]
        return []

    def slot_status(self, name: str) -> SlotStatus | None:
        with self.connect("slots") as connection:
            return slot_status(connection, name)

    def create_slot(
        self,
        connection: Connection,
        name: str,
        table_id: TableId | None,
        *,
        export_snapshot: bool,
        on_wait: Callable[[Sequence[Blocker]], None],
        stop: threading.Event,
    ) -> CreatedSlot:
        """Creates a slot on the replication connection `connection`, recorded as ours before it exists."""
        self.store.record_slot(name, table_id, server_info(connection).system_identifier)
        reach(SLOT_RECORDED, connection)
        with self.connect("slots") as observer:
            return create_slot(
                connection, name, export_snapshot=export_snapshot, observer=observer, on_wait=on_wait, stop=stop
            )

    @contextlib.contextmanager
    def exported_snapshot(
        self, role: str, *, on_wait: Callable[[Sequence[Blocker]], None], stop: threading.Event
    ) -> Iterator[CreatedSlot]:
        """A snapshot and its LSN for the length of the block, from a temporary slot that nobody reads."""
        with self.connect(role, replication=True) as connection:
            name = f"{self.main_slot}_{role}_{connection.info.backend_pid}"
            with self.connect("slots") as observer:
                created = create_slot(
                    connection,
                    name,
                    export_snapshot=True,
                    temporary=True,
                    observer=observer,
                    on_wait=on_wait,
                    stop=stop,
                )
            yield created
            # Closing would drop it too, but a moment later.
            drop_slot(connection, name)

    def running_copies(self, connection: Connection) -> RunningCopies:
        """What a process somewhere is copying now, as the server sees it."""
        own = f"etl_{self.pipeline}_"
        names = application_names(connection, own)
        ids = (name.removeprefix(f"{own}copy_") for name in names)
        return RunningCopies(frozenset(TableId(int(one)) for one in ids if one.isdigit()), frozenset(names))

    def keep_changes(self, table_id: TableId) -> KeptChanges | None:
        """Keeps what the main slot has not confirmed in a slot of the table's own; None if the server refuses that."""
        name = self.new_sync_slot(table_id)
        try:
            with self.connect("slots") as connection:
                cluster = server_info(connection).system_identifier
                self.store.record_slot(name, table_id, cluster)
                confirmed = copy_slot(connection, self.main_slot, name)
                reach(SLOT_COPIED, connection)
                # Once more: another process that prepared meanwhile may have taken the record for one without a slot.
                self.store.record_slot(name, table_id, cluster)
                return KeptChanges(name, confirmed)
        except EtlError:
            with contextlib.suppress(EtlError):  # else at the next start, by its record
                self.drop_if_owned(name)  # the answer may have been lost
            return None

    def wal_kept_by(self, name: str) -> int | None:
        """Bytes of WAL that the slot keeps and the main slot does not; None if either slot is gone or lost."""
        with self.connect("slots") as connection:
            kept, main = slot_status(connection, name), slot_status(connection, self.main_slot)
        if kept is None or main is None or kept.is_lost or kept.restart_lsn is None or main.restart_lsn is None:
            return None
        return max(main.restart_lsn, kept.restart_lsn) - kept.restart_lsn

    def drop_owned_slot(self, name: str) -> None:
        """Drops a slot this pipeline recorded as its own, and forgets it; nothing if it is gone. Never another's."""
        if not self.drop_if_owned(name):
            raise PermanentError(f"replication slot {name} is not one this pipeline created, so it is not dropped")

    def drop_if_owned(self, name: str, timeout: float = 10.0) -> bool:
        """Drops a slot unless it is none of ours, or not any more; another process may be doing it at this moment.

        Says whether it was ours. Raises SlotInUse if it is still read after `timeout` seconds, and SourceChanged,
        having dropped nothing, on another cluster than the one it was created on.
        """
        for slot in self.store.owned_slots():
            if slot.name == name:
                with self.connect("slots") as connection:
                    self._check_cluster(connection, slot)
                    drop_slot(connection, name, timeout=timeout)
                reach(SLOT_DROPPED)
                self.store.forget_slot(slot)
                return True
        return False

    def _check_cluster(self, connection: Connection, slot: OwnedSlot) -> None:
        identity = self.store.source_identity()
        created_on = slot.system_identifier or (identity and identity.system_identifier)
        found = server_info(connection).system_identifier
        if created_on is not None and found != created_on:
            raise SourceChanged(
                f"replication slot {slot.name} was created on the cluster with system identifier {created_on}, and the "
                f"address in the configuration leads to another one ({found}): it is not dropped there",
                hint="check the address in the configuration",
            )
