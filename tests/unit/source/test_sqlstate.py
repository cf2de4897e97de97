"""PostgreSQL's errors → ours: class, hint, and no value of a row."""

from __future__ import annotations

import pytest

from etl_core.errors import EtlError, SlotInUse, SourceChanged, SourceRefused, SourceUnavailable
from etl_core.source.sqlstate import from_sqlstate


@pytest.mark.parametrize(
    ("sqlstate", "message", "kind", "hint"),
    [
        (None, "server closed the connection unexpectedly", SourceUnavailable, "log"),
        ("08006", "connection failure", SourceUnavailable, "log"),
        ("57P01", "terminating connection due to administrator command", SourceUnavailable, "log"),
        ("57014", "canceling statement due to user request", SourceUnavailable, ""),
        ("40P01", "deadlock detected", SourceUnavailable, ""),
        ("53300", "sorry, too many clients already", SourceUnavailable, "max_connections"),
        ("53400", "all replication slots are in use", SourceUnavailable, "max_replication_slots"),
        ("53200", "out of shared memory", SourceUnavailable, "max_locks_per_transaction"),
        ("55006", 'replication slot "s" is active for PID 4711', SlotInUse, "another run"),
        ("55000", "logical decoding requires wal_level >= logical", SourceRefused, "wal_level"),
        ("55000", 'can no longer access replication slot "s"', SourceChanged, "copy"),
        ("42704", 'replication slot "s" does not exist', SourceChanged, "copy"),
        ("42704", 'publication "p" does not exist', SourceRefused, ""),
        ("58P01", "requested WAL segment 000000010000000000000001 has already been removed", SourceChanged, "copy"),
        ("42501", "permission denied for table t", SourceRefused, "doctor"),
        ("42501", 'query would be affected by row-level security policy for table "t"', SourceRefused, "BYPASSRLS"),
        ("XX000", "cache lookup failed", SourceRefused, ""),
    ],
)
def test_class_and_hint(sqlstate: str | None, message: str, kind: type[EtlError], hint: str) -> None:
    error = from_sqlstate(sqlstate, message)
    assert type(error) is kind
    assert message in str(error)
    assert hint in (error.hint or "")


def test_the_process_that_holds_a_slot() -> None:
    error = from_sqlstate("55006", 'replication slot "s" is active for PID 4711')
    assert isinstance(error, SlotInUse)
    assert error.active_pid == 4711


@pytest.mark.parametrize("sqlstate", ["22P02", "22012", "23505", "P0001"])
def test_messages_that_may_quote_a_row_are_withheld(sqlstate: str) -> None:
    error = from_sqlstate(sqlstate, 'invalid input syntax for type integer: "secret"')
    assert "secret" not in f"{error} {error.hint}"
    assert sqlstate in str(error)
