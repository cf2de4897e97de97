"""Is the source still the one this pipeline knows? Asked before every stream; continuing on a guess loses changes.

PostgreSQL starts a slot at the later of the requested and the confirmed position, without a word when that
skips WAL. So each way a slot or a server can have become another one is looked for here.
"""

from __future__ import annotations

from etl_core.errors import SourceChanged
from etl_core.lsn import Lsn
from etl_core.source.server import ServerInfo
from etl_core.source.slot import SlotStatus
from etl_core.state.store import SourceIdentity

_START_AGAIN = "if that is intended: etl teardown, then etl run copies every table again behind the swap"


def check_source(identity: SourceIdentity, server: ServerInfo, slot: SlotStatus | None, flushed: Lsn | None) -> None:
    """Raises SourceChanged unless streaming on from `flushed` (None: nothing was streamed yet) can skip nothing."""
    if server.system_identifier != identity.system_identifier:
        raise SourceChanged(
            f"the source is another PostgreSQL cluster: system identifier {server.system_identifier}, "
            f"replicated so far {identity.system_identifier}",
            hint="check the address in the configuration; if the move is intended: etl teardown (with the old address "
            "if that cluster still runs, or its slot stays there and keeps WAL), then etl run copies every table again "
            "behind the swap",
        )
    if server.timeline != identity.timeline:
        raise SourceChanged(
            f"the source is on timeline {server.timeline}, replicated so far {identity.timeline}: "
            "it was promoted or restored",
            hint=_START_AGAIN,
        )
    position = flushed or identity.slot_lsn
    if server.flush_lsn < position:
        raise SourceChanged(
            f"the source's WAL ends at {server.flush_lsn}, before {position} which is replicated: "
            "it was restored to an earlier point",
            hint=_START_AGAIN,
        )
    if slot is None:
        raise SourceChanged(
            f"replication slot {identity.slot_name} is gone, and with it the changes since {position}",
            hint=_START_AGAIN,
        )
    _check_slot(server, slot, position)


def _check_slot(server: ServerInfo, slot: SlotStatus, position: Lsn) -> None:
    if slot.plugin != "pgoutput" or slot.database != server.database:
        raise SourceChanged(
            f"replication slot {slot.name} is another one: plugin {slot.plugin}, database {slot.database}",
            hint=_START_AGAIN,
        )
    if slot.is_lost:
        raise SourceChanged(
            f"the server has invalidated replication slot {slot.name} ({slot.invalidation_reason or slot.wal_status})",
            hint=f"raise max_slot_wal_keep_size or idle_replication_slot_timeout; {_START_AGAIN}",
        )
    if slot.confirmed_flush_lsn is not None and slot.confirmed_flush_lsn > position:
        raise SourceChanged(
            f"replication slot {slot.name} is confirmed up to {slot.confirmed_flush_lsn}, beyond {position} which is "
            "replicated: it was created again or read by someone else",
            hint=_START_AGAIN,
        )
