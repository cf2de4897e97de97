"""Every state that a keyed table has had at the source, commit by commit, read by a slot of the auditor's own.

Shares no code with the engine: a reader of pgoutput (protocol 1, "Logical Replication Message Formats") row by row.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from etl_core.lsn import ZERO, Lsn
from tests.chaos.workload import KEYED

SLOT = "chaos_audit"
COLUMNS = ("id", "n", "note", "big")
"""Those that the workload never drops or renames."""
_UNCHANGED = object()
_MAKE = f"""
CREATE PUBLICATION {SLOT} FOR TABLE {", ".join(KEYED)};
"""

Row = tuple[Any, ...]
"""The texts of COLUMNS, None for NULL."""


@dataclass(frozen=True, slots=True)
class _Change:
    """Of the transaction whose commit ended at `end_lsn`: `gone` is a key that is removed, None means all of them."""

    end_lsn: Lsn
    gone: str | None
    row: Row | None


@dataclass(slots=True)
class _Relation:
    name: str
    columns: list[str]


class History:
    """Of the tables KEYED. `execute` runs a statement on the source and returns its rows."""

    def __init__(self, execute: Callable[..., list[tuple[Any, ...]]]) -> None:
        self._execute = execute
        self._changes: dict[str, list[_Change]] = {name: [] for name in KEYED}
        self._relations: dict[int, _Relation] = {}
        self._open: list[tuple[str, str | None, Row | None]] = []

    def begin(self) -> None:
        """Called when the tables were made and have no row that matters yet: their rows are read here."""
        self._execute(_MAKE)
        self._execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [SLOT])
        for name in KEYED:
            rows = self._execute(f"SELECT id::text, n::text, note, big FROM {name}")  # noqa: S608 our own names
            self._changes[name] = [_Change(ZERO, row[0], row) for row in rows]

    def state_at(self, name: str, lsn: Lsn) -> dict[str, Row]:
        """The table's rows by key after the transactions whose commit ended at or before `lsn`."""
        self._read()
        rows: dict[str, Row] = {}
        for change in self._changes[name]:
            if change.end_lsn > lsn:
                break
            before: Row | None = None
            if change.gone is None:
                rows.clear()
            else:
                before = rows.pop(change.gone, None)
            if change.row is not None:
                rows[change.row[0]] = _completed(change.row, before)
        return rows

    def _read(self) -> None:
        messages = self._execute(
            "SELECT data FROM pg_logical_slot_get_binary_changes(%s, NULL, NULL, 'proto_version', '1',"
            " 'publication_names', %s)",
            [SLOT, SLOT],
        )
        for (data,) in messages:
            self._take(_Reader(bytes(data)))

    def _take(self, reader: _Reader) -> None:
        match reader.byte():
            case "R":
                oid, _, name = reader.number("I"), reader.text(), reader.text()
                reader.byte()
                columns = []
                for _ in range(reader.number("H")):
                    reader.byte()
                    columns.append(reader.text())
                    reader.number("Q")  # type and modifier
                self._relations[oid] = _Relation(name, columns)
            case "I":
                relation = self._relations[reader.number("I")]
                reader.byte()
                row = reader.row(relation.columns)
                self._open.append((relation.name, row[0], row))
            case "U":
                relation = self._relations[reader.number("I")]
                kind = reader.byte()
                old = None
                if kind in "KO":
                    old = reader.row(relation.columns)
                    reader.byte()
                row = reader.row(relation.columns)
                self._open.append((relation.name, row[0] if old is None else old[0], row))
            case "D":
                relation = self._relations[reader.number("I")]
                reader.byte()
                self._open.append((relation.name, reader.row(relation.columns)[0], None))
            case "T":
                count, _ = reader.number("I"), reader.number("B")
                for _ in range(count):
                    self._open.append((self._relations[reader.number("I")].name, None, None))
            case "C":
                reader.number("B"), reader.number("Q")
                end_lsn = Lsn(reader.number("Q"))
                for name, gone, changed in self._open:
                    self._changes[name].append(_Change(end_lsn, gone, changed))
                self._open.clear()


@dataclass(slots=True)
class _Reader:
    """Reads one message from its beginning."""

    data: bytes
    at: int = field(default=0)

    def byte(self) -> str:
        self.at += 1
        return chr(self.data[self.at - 1])

    def number(self, form: str) -> int:
        [value] = struct.unpack_from(f"!{form}", self.data, self.at)
        self.at += struct.calcsize(f"!{form}")
        return int(value)

    def text(self) -> str:
        end = self.data.index(0, self.at)
        value = self.data[self.at : end].decode()
        self.at = end + 1
        return value

    def row(self, columns: Sequence[str]) -> Row:
        values: dict[str, Any] = {}
        for name in columns[: self.number("H")]:
            match self.byte():
                case "n":
                    values[name] = None
                case "u":
                    values[name] = _UNCHANGED
                case _:
                    size = self.number("I")
                    values[name] = self.data[self.at : self.at + size].decode()
                    self.at += size
        return tuple(values.get(name) for name in COLUMNS)


def _completed(row: Row, before: Row | None) -> Row:
    if before is None:
        return row
    return tuple(old if new is _UNCHANGED else new for new, old in zip(row, before, strict=True))
