"""Slots on the source that look like a pipeline's and are not this one's: a renamed pipeline leaves its own behind.

Nobody else would say so, and such a slot keeps WAL until the source's disk is full.
"""

from __future__ import annotations

import contextlib

from etl_core.errors import EtlError
from etl_core.replication.source import Source
from etl_core.source.connection import Connection
from etl_core.source.finding import Finding, Severity
from etl_core.source.slot import SlotStatus, drop_statement, unread_slots
from etl_core.state.store import StateStore


def find_other_slots(connection: Connection, store: StateStore) -> list[SlotStatus]:
    """The slots of pipelines on this database that nobody reads and that `store` does not know, by name."""
    owned = {slot.name for slot in store.owned_slots()}
    return [slot for slot in unread_slots(connection) if slot.name not in owned]


def describe_other_slot(slot: SlotStatus, pipeline: str) -> str:
    """What it is and when it may go; not the command."""
    size = "WAL" if slot.bytes_behind is None else f"{slot.bytes_behind / (1 << 20):,.0f} MB of WAL"
    return (
        f"replication slot {slot.name} is not one of pipeline {pipeline}; it is not read at the moment and keeps {size}"
        " on the source. If a pipeline that it belongs to still runs from time to time, nothing is wrong; if that was "
        "renamed or given up, drop it"
    )


def examine_other_slots(pipeline: str, source: Source, store: StateStore) -> list[Finding]:
    """For `etl doctor`. None where source or store cannot be asked, which other findings say."""
    with contextlib.suppress(EtlError), contextlib.closing(source.connect("doctor")) as connection:
        return [
            Finding(Severity.WARNING, "slots", describe_other_slot(slot, pipeline), drop_statement(slot.name))
            for slot in find_other_slots(connection, store)
        ]
    return []
