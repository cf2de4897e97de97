"""What the preflight found: one fact, how bad it is, and the SQL that mends it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    """Replication works, with the limit the message names."""
    UNSAFE = "unsafe"
    """Replication would fail or lose changes."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`check` groups findings of one kind, such as `wal_level` or `replica_identity`; `sql` can be run as it is."""

    severity: Severity
    check: str
    message: str
    sql: str | None = None
