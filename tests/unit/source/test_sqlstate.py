"""PostgreSQL's errors → ours: class, hint, and no value of a row."""

from __future__ import annotations

import pytest

from etl_core.errors import EtlError, SlotInUse, SourceChanged, SourceRefused, SourceUnavailable, StreamBlocked
from etl_core.source.sqlstate import from_sqlstate, stream_error


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
        ("42704", 'publication "p" does not exist', SourceUnavailable, "start again"),
        ("58P01", "requested WAL segment 000000010000000000000001 has already been removed", SourceChanged, "copy"),
        ("42501", "permission denied for table t", SourceRefused, "doctor"),
        ("42501", 'query would be affected by row-level security policy for table "t"', SourceRefused, "BYPASSRLS"),
        ("XX000", "cache lookup failed", SourceRefused, ""),
        ("XX000", "konnte Relation mit OID 17110 nicht öffnen", SourceUnavailable, ""),
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


@pytest.mark.parametrize(
    ("sqlstate", "message", "is_told"),
    [
        ("22012", "division by zero", True),
        ("22012", "Division durch Null", True),
        ("2201E", "cannot take logarithm of a negative number", True),
        ("22003", 'value "99" is out of range for type smallint', False),
        ("22P02", "invalid input syntax for type integer: secret", False),
        ("22008", "date out of range: 2026", False),
        ("P0001", "secret", False),
        ("23514", "secret", False),
    ],
)
def test_the_servers_sentence_is_told_where_it_holds_words_alone(sqlstate: str, message: str, is_told: bool) -> None:
    error = from_sqlstate(sqlstate, message)
    assert (message in str(error)) is is_told
    assert sqlstate in str(error)


@pytest.mark.parametrize(
    ("sqlstate", "message"),
    [
        ("22021", 'invalid byte sequence for encoding "UTF8": 0xe9 0x73 0x65'),
        ("22P05", 'character with byte sequence 0x81 in encoding "WIN1252" has no equivalent in encoding "UTF8"'),
    ],
)
def test_bytes_that_are_no_text_are_told_without_them(sqlstate: str, message: str) -> None:
    error = from_sqlstate(sqlstate, message)
    assert "encoding" in str(error)
    assert "0x" not in f"{error} {error.hint}"
    assert "filter" not in f"{error} {error.hint}"


def test_a_stream_is_blocked_by_what_every_try_meets_again() -> None:
    error = stream_error(from_sqlstate("22012", "division by zero"), lsn="0/1A", filtered=["public.t"])
    assert type(error) is StreamBlocked
    assert "at 0/1A" in str(error)
    assert "division by zero" in str(error)
    assert "the row filter of public.t fails" in (error.hint or "")
    assert "ALTER PUBLICATION" in (error.hint or "")


@pytest.mark.parametrize("sqlstate", ["57P01", "58P01", "55P03", None])
def test_what_ends_a_stream_otherwise_is_told_as_it_is(sqlstate: str | None) -> None:
    error = from_sqlstate(sqlstate, "the reason")
    assert stream_error(error, lsn="0/1A", filtered=[]) is error
