"""The end of a pipeline, or of its stream: what it made on the source is dropped; what is another's is named.

A name proves nothing: the address in the configuration may lead to another cluster or database by now, where a slot or
a publication of the same name is somebody else's. So each is compared with where and as what it was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import sql

from etl_core.destination.protocol import Destination, StagingDestination
from etl_core.errors import SlotInUse, SourceUnavailable
from etl_core.replication.source import Source
from etl_core.source.connection import Connection
from etl_core.source.publication import drop_publication, publication_oid
from etl_core.source.server import ServerInfo, server_info
from etl_core.source.slot import SlotStatus, drop_statement, slot_status
from etl_core.state.store import OwnedSlot, SourceIdentity, StateStore, TableUpdate
from etl_core.state.table_state import TableState


@dataclass(frozen=True, slots=True)
class TeardownPlan:
    """What a teardown drops on the source, and in sentences what it leaves behind and where."""

    slots: tuple[OwnedSlot, ...] = ()
    drops_publication: bool = False
    left: tuple[str, ...] = ()
    reader_pid: int | None = None
    """The server process that streams now, so that nothing may be dropped."""
    is_elsewhere: bool = False
    """What was made is on another cluster than the address in the configuration leads to."""


class Teardown:
    """Of one pipeline."""

    def __init__(self, source: Source, store: StateStore, destination: Destination) -> None:
        self._source = source
        self._store = store
        self._destination = destination

    def plan(self) -> TeardownPlan:
        """Changes nothing. Raises SourceUnavailable if something was made and the source is out of reach."""
        owned, has_publication = self._store.owned_slots(), self._store.publication_owned()
        if not owned and not has_publication:
            return TeardownPlan()
        identity = self._store.source_identity()
        with self._reach(identity, owned, has_publication) as connection:
            server = server_info(connection)
            homes = {slot.system_identifier or (identity and identity.system_identifier) for slot in owned}
            if identity is not None:
                homes.add(identity.system_identifier)
            if homes and not homes & {server.system_identifier, None}:
                left = self._on_another_cluster(server, identity, owned, has_publication)
                return TeardownPlan(left=(left,), is_elsewhere=True)
            return self._plan_here(connection, server, identity, owned, has_publication)

    def run(self) -> list[str]:
        """Drops what the plan says, then forgets the state; says what was dropped. The destination keeps its tables.

        What a copy that was killed has staged beside them is removed. Raises SlotInUse while somebody streams.
        """
        plan = self.plan()
        dropped = self._drop_slots(plan)
        if plan.drops_publication:
            with self._source.connect("teardown") as connection:
                drop_publication(connection, self._source.publication)
            dropped.append(f"publication {self._source.publication}")
        for status in self._store.tables():
            self._destination.forget(status.table_id)
        if isinstance(self._destination, StagingDestination):
            self._destination.discard_staging()
        self._store.clear()
        return dropped

    def reset(self) -> list[str]:
        """Drops the slots and forgets the position; says what was dropped. The publication stays.

        Every table that is not paused is to be copied again; the destination keeps what it has until then. On another
        cluster than before the tables are forgotten too: an OID means another table there. Each step may be repeated
        after a crash. Raises SlotInUse while a process reads the slot.
        """
        plan = self.plan()
        dropped = self._drop_slots(plan)
        for status in self._store.tables():
            if status.state is not TableState.PAUSED:
                self._store.transition(status, TableState.INIT, TableUpdate(is_requested=True))
            self._destination.forget(status.table_id)
        if isinstance(self._destination, StagingDestination):
            self._destination.discard_staging()
        if plan.is_elsewhere:
            self._store.clear()
        else:
            self._store.forget_source()
        return dropped

    def _drop_slots(self, plan: TeardownPlan) -> list[str]:
        if plan.reader_pid is not None:
            raise SlotInUse(
                f"pipeline {self._source.pipeline} is streaming", active_pid=plan.reader_pid, hint="stop it first"
            )
        for owned in plan.slots:
            self._source.drop_owned_slot(owned.name)
        return [f"replication slot {owned.name}" for owned in plan.slots]

    def _reach(self, identity: SourceIdentity | None, owned: Sequence[OwnedSlot], has_publication: bool) -> Connection:
        try:
            return self._source.connect("teardown")
        except SourceUnavailable as error:
            raise SourceUnavailable(
                f"{error}; nothing was dropped, and {self._what(owned, has_publication)} stay there{_where(identity)}",
                hint="start it and try again; if it is gone for good, write the address of the next source into the "
                "configuration: etl teardown then forgets what was on this one",
            ) from None

    def _what(self, owned: Sequence[OwnedSlot], has_publication: bool) -> str:
        what = [f"replication slot {slot.name}" for slot in owned]
        return ", ".join([*what, *([f"publication {self._source.publication}"] if has_publication else [])])

    def _plan_here(
        self,
        connection: Connection,
        server: ServerInfo,
        identity: SourceIdentity | None,
        owned: Sequence[OwnedSlot],
        has_publication: bool,
    ) -> TeardownPlan:
        slots, left = [], []
        reader = None
        databases: set[int | None] = {identity.database_oid if identity else None}
        for slot in owned:
            home = slot.system_identifier or (identity and identity.system_identifier)
            found = slot_status(connection, slot.name)
            if home not in (server.system_identifier, None):
                left.append(f"replication slot {slot.name} on the cluster with system identifier {home}")
            elif found is not None and not _is_ours(found, identity):
                left.append(
                    f"replication slot {slot.name}, which is another one by now (database {found.database}, plugin "
                    f"{found.plugin})"
                )
            else:
                slots.append(slot)
                if found is not None:
                    databases.add(found.database_oid)
                    if slot.name == self._source.main_slot and found.active:
                        reader = found.active_pid
        drops_publication = has_publication and self._is_our_publication(connection, server, databases - {None})
        if has_publication and not drops_publication and publication_oid(connection, self._source.publication):
            where = f" of database {identity.database}" if identity and identity.database else ""
            left.append(
                f"publication {self._source.publication}{where}: the one of that name in database {server.database} "
                "was not made by this pipeline"
            )
        return TeardownPlan(tuple(slots), drops_publication, tuple(left), reader)

    def _is_our_publication(self, connection: Connection, server: ServerInfo, databases: set[int | None]) -> bool:
        """In the database that the pipeline replicated, and the very one that it made, as far as that is known."""
        ours, found = self._store.publication_oid(), publication_oid(connection, self._source.publication)
        if ours is not None and found is not None and found != ours:
            return False
        return databases == {server.database_oid} or (not databases and ours is not None and found == ours)

    def _on_another_cluster(
        self, server: ServerInfo, identity: SourceIdentity | None, owned: Sequence[OwnedSlot], has_publication: bool
    ) -> str:
        home = identity.system_identifier if identity else owned[0].system_identifier
        statements = [drop_statement(slot.name) for slot in owned]
        if has_publication:
            drop = sql.SQL("DROP PUBLICATION {}").format(sql.Identifier(self._source.publication))
            statements.append(drop.as_string(None))
        what = self._what(owned, has_publication)
        return (
            f"{what} on the cluster with system identifier {home}{_where(identity)}; the address in the configuration "
            f"leads to another cluster ({server.system_identifier}), where nothing is dropped. The slots keep WAL "
            f"until they are dropped: if that cluster still runs, run there: {'; '.join(statements)}"
        )


def _where(identity: SourceIdentity | None) -> str:
    return f", database {identity.database} at {identity.address}" if identity and identity.database else ""


def _is_ours(found: SlotStatus, identity: SourceIdentity | None) -> bool:
    """Whether a slot under a name of ours, on our cluster, can be the one that was made."""
    known = identity.database_oid if identity else None
    return found.plugin == "pgoutput" and (known is None or found.database_oid == known)
