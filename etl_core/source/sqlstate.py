"""PostgreSQL's errors → ours: which of them pass, which need a person, and what that person should do.

Decided by SQLSTATE, as messages are translated by the server's `lc_messages`. Only the failure to connect has none
(libpq keeps its text alone), see `connection.py`.
https://www.postgresql.org/docs/current/errcodes-appendix.html
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import psycopg

from etl_core.errors import (
    EtlError,
    SlotInUse,
    SourceChanged,
    SourceLocked,
    SourceRefused,
    SourceUnavailable,
    StreamBlocked,
)
from etl_core.silence import SilentServer

# The server's message may quote a row's value in these classes: data exception, constraint violation, and what
# a person's own function raises.
_VALUE_CLASSES = frozenset({"22", "23", "P0"})

# The server went away or is about to: 57P01 to 57P05, and the timeouts that end a session.
_CONNECTION_LOST = frozenset({"57P01", "57P02", "57P03", "57P04", "57P05", "25P03", "25P04"})
_TRY_AGAIN = frozenset({"40001", "40P01", "57014"})
_LOCK_NOT_AVAILABLE = "55P03"

MISSING_RIGHT_HINT = "grant the right; etl doctor prints the SQL"

# A value whose bytes are no text, or that has no equivalent in UTF-8.
_NO_UTF8 = frozenset({"22021", "22P05"})
_WORDS_ALONE = re.compile(r"[^\W\d_]+(?:[ ,'-]+[^\W\d_]+)*")
_NAMED = 5

# "could not open relation with OID 16400": the catalog had it a moment before. OID stays OID in translations.
_DROPPED = re.compile(r"\bOID \d+")
_ACTIVE_PID = re.compile(r"\bPID (\d+)")


def translate(error: psycopg.Error) -> EtlError:
    """The error to raise for `error`, which an established connection reported: `raise translate(error) from None`.

    `from None`, because PostgreSQL's details, and psycopg's text with them, can quote a row.
    """
    if isinstance(error, SilentServer):
        return SourceUnavailable(
            f"the connection to PostgreSQL was given up: {error}",
            hint="nothing to do if it works again by itself; else check the network, a tunnel or load balancer in it",
        )
    return from_sqlstate(error.sqlstate, error.diag.message_primary or _first_line(error))


def from_sqlstate(sqlstate: str | None, message: str) -> EtlError:
    """The error for a five-character SQLSTATE (None: the connection broke) and its primary message."""
    if sqlstate is None or sqlstate[:2] == "08" or sqlstate in _CONNECTION_LOST:
        return SourceUnavailable(
            f"the connection to PostgreSQL was lost: {message}" if message else "the connection to PostgreSQL was lost",
            hint="nothing to do if the server was restarted; else look into its log",
        )
    if sqlstate in _NO_UTF8:
        return SourceRefused(
            f"a value cannot be sent as UTF-8: its bytes are no text in the database's encoding (SQLSTATE {sqlstate})",
            hint="the server's log names the bytes; correct the value, or delete its row",
        )
    if sqlstate[:2] in _VALUE_CLASSES:
        return SourceRefused(
            f"PostgreSQL could not compute a value{_harmless(sqlstate, message)} (SQLSTATE {sqlstate})",
            hint="check the publication's row filter and the functions it calls; the server's log has the statement",
        )
    if sqlstate == _LOCK_NOT_AVAILABLE:
        return SourceLocked(f"PostgreSQL could not do it now: {message}")
    if sqlstate in _TRY_AGAIN:
        return SourceUnavailable(f"PostgreSQL could not do it now: {message}")
    if sqlstate[:2] == "53":
        return SourceUnavailable(f"PostgreSQL is out of a resource: {message}", hint=_resource_hint(message))
    return _refused(sqlstate, message)


def is_dropped(sqlstate: str | None, message: str) -> bool:
    """Whether a statement failed because a table was dropped after it had found it in the catalog."""
    return sqlstate == "XX000" and _DROPPED.search(message) is not None


def _harmless(sqlstate: str, message: str) -> str:
    """The server's own sentence if it cannot quote a value: a quoted one stands in quotes or behind a colon, numbers
    have digits, and what a person's function raises (P0) or a constraint names (23) may be anything."""
    return f": {message}" if sqlstate[:2] == "22" and _WORDS_ALONE.fullmatch(message) else ""


def stream_error(error: EtlError, *, lsn: str | None, filtered: Sequence[str]) -> EtlError:
    """The error that ended a stream, as `from_sqlstate` has it, told as what it means for the stream.

    `lsn` is where the server met it, `filtered` the tables with a row filter, one of which it may be. What PostgreSQL
    cannot compute or convert is computed again, with the publication as it was then, at every try; the others pass,
    or tell by themselves what to do.
    """
    if not isinstance(error, SourceRefused):
        return error
    where = f" at {lsn}" if lsn else ""
    message = f"the server cannot send the transaction{where}, and no table gets what was committed after it: {error}"
    return StreamBlocked(message, hint=_way_out(error, filtered))


def _way_out(error: SourceRefused, filtered: Sequence[str]) -> str:
    after = (
        "the WAL keeps the publication as it was, so after the cause is corrected that transaction still cannot be "
        "sent: end the run, then etl teardown and etl run copy every table again"
    )
    if "could not compute" not in str(error):
        return f"{error.hint}; {after}" if error.hint else after
    tables = ", ".join(filtered[:_NAMED]) + (" …" if len(filtered) > _NAMED else "")
    which = f"the row filter of {tables}" if tables else "the publication's row filter"
    return f"{which} fails for a row: change it with ALTER PUBLICATION … SET TABLE … WHERE (…); {after}"


def _refused(sqlstate: str, message: str) -> EtlError:
    match sqlstate:
        case "55006" if "slot" in message:
            pid = _ACTIVE_PID.search(message)
            return SlotInUse(
                f"PostgreSQL refused: {message}",
                active_pid=int(pid.group(1)) if pid else None,
                hint="another run of this pipeline reads the slot; stop it, or wait until the server notices its death",
            )
        case "55000" if "wal_level" in message:
            return SourceRefused(
                f"PostgreSQL refused: {message}", hint="ALTER SYSTEM SET wal_level = 'logical'; then restart the server"
            )
        case "55000" if "slot" in message:
            return SourceChanged(
                f"the replication slot has lost WAL: {message}",
                hint="its changes are gone; drop the slot and copy the tables again",
            )
        case "58P01":
            return SourceChanged(f"WAL is missing: {message}", hint="its changes are gone; copy the tables again")
        case "42704" if "slot" in message:
            return SourceChanged(
                f"PostgreSQL refused: {message}", hint="without its slot changes are missing; copy the tables again"
            )
        case "42704" if "publication" in message:
            return SourceUnavailable(
                f"PostgreSQL refused: {message}",
                hint="start again, which creates a publication for source.tables: every table is then copied again",
            )
        case _ if is_dropped(sqlstate, message):
            return SourceUnavailable(f"a table was dropped while PostgreSQL looked at it: {message}")
        case "42501" if "row-level security" in message or "row security" in message:
            return SourceRefused(
                f"PostgreSQL refused: {message}",
                hint="row-level security would hide rows: ALTER ROLE … BYPASSRLS for the replication user",
            )
        case "42501":
            return SourceRefused(f"PostgreSQL refused: {message}", hint=MISSING_RIGHT_HINT)
    return SourceRefused(f"PostgreSQL refused (SQLSTATE {sqlstate}): {message}")


def _resource_hint(message: str) -> str:
    if "slot" in message:
        return "raise max_replication_slots (restart needed), or drop slots that nobody reads"
    if "max_locks_per_transaction" in message or "shared memory" in message:
        return "raise max_locks_per_transaction (restart needed)"
    return "free connections or raise max_connections and max_wal_senders; copy with fewer connections"


def _first_line(error: psycopg.Error) -> str:
    """libpq's own text for a broken connection; the server's errors come through `diag`."""
    return str(error).partition("\n")[0].strip()
