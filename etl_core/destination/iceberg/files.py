"""The files of a table as its manifests list them, and the manifests of a snapshot that leaves some of them out.

A file of deletes belongs to the one data file whose path its bounds have (DuckDB writes one for each); of any other it
is not known which rows it deletes, so it goes only with all data files.

https://iceberg.apache.org/spec/#manifests
"""

from __future__ import annotations

import uuid
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from pyiceberg.manifest import (
    DataFileContent,
    ManifestContent,
    ManifestEntry,
    ManifestFile,
    ManifestWriterV2,
    read_manifest_list,
    write_manifest_list,
)
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Snapshot

_FILE_PATH: Final = 2_147_483_646
"""The column of a file of position deletes that names the data file."""
FILE_NAME: Final = "filename"
"""What DuckDB calls the column of a row's file, unless the table has one that is called so."""
_SMALL = 32 << 20
"""Bytes of a data file below which it is worth to be merged with others."""
_CODEC: Any = "deflate"


@dataclass(frozen=True, slots=True)
class Listed:
    """A file, and the manifest that lists it."""

    manifest: ManifestFile
    entry: ManifestEntry

    @property
    def is_data(self) -> bool:
        return bool(self.entry.data_file.content == DataFileContent.DATA)

    @property
    def path(self) -> str:
        return str(self.entry.data_file.file_path)

    @property
    def rows(self) -> int:
        return int(self.entry.data_file.record_count)


@dataclass(frozen=True, slots=True)
class Chosen:
    """Of the files of a snapshot those that are to be written anew, and those of deletes that go with them.

    `rows` is how many rows stay in the new ones, None where that cannot be counted.
    """

    snapshot: Snapshot
    data: tuple[Listed, ...]
    deletes: tuple[Listed, ...]
    rest: tuple[Listed, ...]
    rows: int | None


def choose(table: Table, least_deletes: int) -> Chosen | None:
    """None if nothing is to be done. Chosen are data files with so many files of deletes, and small ones together."""
    snapshot = table.current_snapshot()
    if snapshot is None:
        return None
    listed = [
        Listed(manifest, entry)
        for manifest in snapshot.manifests(table.io)
        for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=True)
    ]
    data = {one.path: one for one in listed if one.is_data}
    targets: dict[str | None, list[Listed]] = defaultdict(list)
    for one in listed:
        if not one.is_data:
            targets[_target(one, data)].append(one)
    chosen = {str(path) for path, deletes in targets.items() if len(deletes) >= least_deletes} | _small(data.values())
    is_whole = None in targets or any(field.name.lower() == FILE_NAME for field in table.schema().fields)
    if chosen and not is_whole and not _left(chosen, data, targets):
        is_whole = True  # to insert nothing commits nothing
    if chosen and is_whole:
        chosen = set(data)
    deletes = [one for path, ones in targets.items() if path is None or path in chosen for one in ones]
    rows = None if None in targets else _left(chosen, data, targets)
    if rows == 0 or (not deletes and len(chosen) < 2):
        return None
    gone = {*chosen, *(one.path for one in deletes)}
    rest = tuple(one for one in listed if one.path not in gone)
    return Chosen(snapshot, tuple(data[path] for path in chosen), tuple(deletes), rest, rows)


def _left(chosen: Collection[str], data: Mapping[str, Listed], targets: Mapping[str | None, Sequence[Listed]]) -> int:
    """How many rows of these files are not deleted."""
    return sum(data[path].rows - sum(one.rows for one in targets.get(path, ())) for path in chosen)


def _target(deletes: Listed, data: Collection[str]) -> str | None:
    """The data file whose rows it deletes; None if it is not one that is known."""
    file = deletes.entry.data_file
    if file.content != DataFileContent.POSITION_DELETES:
        return None
    lower, upper = ((bounds or {}).get(_FILE_PATH) for bounds in (file.lower_bounds, file.upper_bounds))
    path = lower.decode(errors="replace") if lower is not None and lower == upper else None
    return path if path in data else None


def _small(files: Iterable[Listed]) -> set[str]:
    """Those small ones that can be written into one file: there are several in a partition."""
    small = [one for one in files if one.entry.data_file.file_size_in_bytes < _SMALL]
    partitions = Counter(_partition(one) for one in small)
    return {one.path for one in small if partitions[_partition(one)] > 1}


def _partition(one: Listed) -> tuple[int, str]:
    return one.manifest.partition_spec_id, repr(one.entry.data_file.partition)


def leave_out(table: Table, chosen: Chosen, snapshot: dict[str, Any]) -> None:
    """Has a snapshot of a commit, which added rows to that of `chosen`, have those rows in place of the chosen files.

    It gets a list of manifests of its own. Raises ValueError if another number of rows was added.
    """
    place, number = str(snapshot["manifest-list"]), int(snapshot["snapshot-id"])
    added = [m for m in read_manifest_list(table.io.new_input(place)) if m.added_snapshot_id == number]
    rows = sum(manifest.added_rows_count or 0 for manifest in added)
    if chosen.rows is not None and rows != chosen.rows:
        raise ValueError(f"{rows} rows were written in place of {chosen.rows}")
    gone = [*chosen.data, *chosen.deletes]
    touched = {one.manifest.manifest_path for one in gone}
    stay = {one.manifest.manifest_path: one.manifest for one in chosen.rest}
    manifests = [manifest for path, manifest in stay.items() if path not in touched]
    folder = place.rpartition("/")[0]
    moved = [(one, False) for one in chosen.rest if one.manifest.manifest_path in touched]
    moved += [(one, True) for one in gone]
    groups: dict[tuple[int, ManifestContent], list[tuple[Listed, bool]]] = defaultdict(list)
    for one, is_gone in moved:
        groups[one.manifest.partition_spec_id, one.manifest.content].append((one, is_gone))
    for (spec, content), ones in groups.items():
        writer = _Writer(table, spec, content, f"{folder}/{uuid.uuid4()}-m0.avro", number)
        with writer:
            for one, is_gone in ones:
                (writer.delete if is_gone else writer.existing)(one.entry)
        manifests.append(writer.to_manifest_file())
    snapshot["manifest-list"] = f"{folder}/snap-{number}-{uuid.uuid4()}.avro"
    output, sequence = table.io.new_output(snapshot["manifest-list"]), int(snapshot["sequence-number"])
    with write_manifest_list(2, output, number, chosen.snapshot.snapshot_id, sequence, _CODEC) as listing:
        listing.add_manifests([*added, *manifests])
    with suppress(OSError):  # the other list stays as an orphan then
        table.io.delete(place)
    snapshot["summary"] = _summary(snapshot["summary"], chosen, rows, sum(m.added_files_count or 0 for m in added))


class _Writer(ManifestWriterV2):  # type: ignore[misc] # it is Any where pyiceberg is not installed
    """Of data files or, as pyiceberg's are not, of deletes."""

    def __init__(self, table: Table, spec: int, content: ManifestContent, place: str, snapshot: int) -> None:
        super().__init__(table.specs()[spec], table.schema(), table.io.new_output(place), snapshot, _CODEC)
        self._content = content

    def content(self) -> ManifestContent:
        return self._content

    @property
    def _meta(self) -> dict[str, str]:
        return {**super()._meta, "content": "data" if self._content == ManifestContent.DATA else "deletes"}


def _summary(given: Mapping[str, str], chosen: Chosen, rows: int, files: int) -> dict[str, str]:
    """https://iceberg.apache.org/spec/#optional-snapshot-summary-fields"""
    data = [one for one in chosen.rest if one.is_data]
    deletes = [one for one in chosen.rest if not one.is_data]
    counts = {
        "added-data-files": files,
        "added-records": rows,
        "deleted-data-files": len(chosen.data),
        "deleted-records": sum(one.rows for one in chosen.data),
        "removed-delete-files": len(chosen.deletes),
        "total-data-files": len(data) + files,
        "total-records": sum(one.rows for one in data) + rows,
        "total-delete-files": len(deletes),
        "total-position-deletes": sum(one.rows for one in deletes),
    }
    kept = {name: value for name, value in given.items() if not name.startswith(("added-", "deleted-", "removed-"))}
    return {**kept, **{name: str(count) for name, count in counts.items()}, "operation": "replace"}
