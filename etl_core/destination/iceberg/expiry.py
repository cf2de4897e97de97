"""Snapshots that stopped being a table's state long ago are forgotten, and the files that no other one needs removed.

A snapshot counts from when the next one replaced it, so that a query that began on the last state of a table which
seldom changes keeps its files. pyiceberg forgets snapshots and removes no file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime

from pyiceberg.table import Table
from pyiceberg.table.snapshots import Snapshot


def expire(table: Table, before: datetime) -> int:
    """Forgets the snapshots that were replaced before then, but for those that have a name; returns how many."""
    expired = list(_expired(table, before))
    if not expired:
        return 0
    table.maintenance.expire_snapshots().by_ids([each.snapshot_id for each in expired]).commit()
    table.refresh()
    there = {each.snapshot_id for each in table.snapshots()}
    gone = [each for each in expired if each.snapshot_id not in there]
    needed = set(_paths(table, table.snapshots()))
    for path in set(_paths(table, gone)) - needed:
        with suppress(OSError):  # what is not there any more; what stays is an orphan, which harms nobody
            table.io.delete(path)
    return len(gone)


def is_due(table: Table, before: datetime) -> bool:
    """Whether `expire` would forget one."""
    return next(_expired(table, before), None) is not None


def _expired(table: Table, before: datetime) -> Iterator[Snapshot]:
    named = {reference.snapshot_id for reference in table.refs().values()}
    replaced: dict[int, int] = {}
    for snapshot in table.snapshots():
        if snapshot.parent_snapshot_id is not None:
            at = replaced.get(snapshot.parent_snapshot_id, snapshot.timestamp_ms)
            replaced[snapshot.parent_snapshot_id] = max(at, snapshot.timestamp_ms)
    limit = before.timestamp() * 1000
    for snapshot in table.snapshots():
        if snapshot.snapshot_id not in named and replaced.get(snapshot.snapshot_id, limit) < limit:
            yield snapshot


def _paths(table: Table, snapshots: Iterable[Snapshot]) -> Iterator[str]:
    """Every file that the snapshots need."""
    seen: set[str] = set()
    for snapshot in snapshots:
        yield snapshot.manifest_list
        for manifest in snapshot.manifests(table.io):
            if manifest.manifest_path in seen:
                continue
            seen.add(manifest.manifest_path)
            yield manifest.manifest_path
            for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=True):
                yield entry.data_file.file_path
