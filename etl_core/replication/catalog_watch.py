"""The watch over what the WAL does not say: compares the catalog with what each table was copied from.

It looks when a pipeline is prepared, when a stream begins, and every so often while it runs, in a thread and on a
connection of its own, so the stream never waits for it. What it finds is a table's state: copied again (INIT), or
stopped (ERRORED) for as long as the table is not published.
It also says where the source has come to refuse UPDATE and DELETE because of the publication: that is no table's state.

A file that was replaced without any other trace is what TRUNCATE leaves, which the stream carries, and what SET
UNLOGGED and SET LOGGED leave, which nobody carries. So the verdict waits until the stream has passed the look: then
it has read the truncation, or there was none.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import psycopg

from etl_core.errors import (
    COPIED_AGAIN,
    CopiedAgain,
    CopyNeeded,
    EtlError,
    StateConflict,
    TableAbsent,
    TransientError,
    where,
)
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.replication.failpoints import GAP_STORED, TABLE_SET_BACK, reach
from etl_core.replication.followed import Followed, note_renamed
from etl_core.replication.observer import Observer, tell_shortened
from etl_core.replication.table_errors import absent_update, is_absent
from etl_core.schema.fingerprint import Fingerprint, is_altered, new_files, what_changed
from etl_core.schema.table import TableSchema
from etl_core.source.absence import left_out, missing
from etl_core.source.connection import Connection
from etl_core.source.fingerprint import Look, candidates, has_old_row, look
from etl_core.source.publication import add_tables_statement, told_harms
from etl_core.source.sqlstate import translate
from etl_core.state.store import Remembered, StateStore, TableStatus, TableUpdate
from etl_core.state.table_state import COPIED, TableState
from etl_core.table_pattern import TableSelection

_log = logging.getLogger(__name__)

LOOK_EVERY = 15.0
"""Seconds between two looks while a stream runs, or more for so many tables that a look takes long."""
_SHARE = 50
"""A look may take this part of the time: 10,000 tables take 0.7 s, so they are looked at every 35 s."""
_TIMEOUTS = (
    "SELECT pg_catalog.set_config('lock_timeout', '1s', false), pg_catalog.set_config('statement_timeout', '8s', false)"
)
_PATIENCE = 5.0
"""Seconds that the end of a stream waits for a look."""
_WAS_NOT_PUBLISHED = "it was not published for a while, and its changes of that time were not sent"
_WAS_AWAY = "the source did not offer it for a while"
_REWRITTEN = "its rows were computed anew or it was unlogged for a while, and neither was sent"


@dataclass(frozen=True, slots=True)
class _Open:
    """A table whose file is another one, to be judged when the stream has passed the look that saw it."""

    seen: Fingerprint
    lsn: Lsn


class CatalogWatch:
    """Watches the tables of one pipeline in one process. `look_now` may be called from any thread.

    `register` is called with the connection when there may be tables that are published and not known.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        publication: str,
        store: StateStore,
        observer: Observer,
        register: Callable[[Connection], None],
        selection: TableSelection | None = None,
    ) -> None:
        """`selection` are the configured tables: one of them that has another name now is followed."""
        self._connect = connect
        self._publication = publication
        self._store = store
        self._observer = observer
        self._register = register
        self._selection = selection
        self._lock = threading.RLock()
        self._open: dict[TableId, _Open] = {}
        self._truncated: dict[TableId, Lsn] = {}
        self._waiting: set[TableId] = set()
        """Tables of which something earlier is remembered, until the stream has come further."""
        self._candidates: set[TableId] = set()
        self._told_harms: set[str] = set()
        self._position: Lsn | None = None
        self._applied: Callable[[TableId], TableSchema | None] = lambda _: None
        self._note_names: Callable[[Mapping[TableId, TableName], Lsn], None] = lambda *_: None
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.every = LOOK_EVERY
        """Seconds between two looks."""

    # --- looking ----------------------------------------------------------------------------------------------

    def look_now(self, connection: Connection) -> Look:
        """One look, and what follows from it. Raises what the source or the store has against it."""
        with self._lock:
            statuses = {status.table_id: status for status in self._store.tables()}
            remembered = self._store.fingerprints()
            found = look(connection, self._publication, statuses.keys() | remembered.keys())
            for status in statuses.values():
                # Copied again or moved by somebody else meanwhile: the next look sees it.
                with contextlib.suppress(StateConflict):
                    self._examine(connection, status, remembered.get(status.table_id), found)
            self._note_names(found.names, found.lsn)
            return found

    def copied_from(self, table_id: TableId) -> Remembered | None:
        """The table's fingerprint of the latest moment that the stream is known to have passed."""
        remembered = self._store.fingerprint(table_id)
        return None if remembered is None else remembered.passed

    def tell_harms(self, connection: Connection, published: Sequence[TableName]) -> None:
        """Says what the publication does to changes of these tables: a key may be dropped while they are streamed.

        Each sentence once, and again if it came true again.
        """
        sentences = told_harms(connection, self._publication, published)
        with self._lock:
            new = [sentence for sentence in sentences if sentence not in self._told_harms]
            self._told_harms = set(sentences)
        tell_shortened(self._observer, new)

    def _examine(self, connection: Connection, status: TableStatus, remembered: Remembered | None, found: Look) -> None:
        now = found.tables.get(status.table_id)
        is_left_out = False
        if now is not None and now.name != status.name:
            is_left_out = self._selection is not None and self._selection.leaves_out(now.name)
            if not is_left_out and status.state is not TableState.DATA_SYNC:
                status = self._follow(status, now.name)
        if now is not None and now.is_published and not is_left_out:
            if is_absent(status):
                self._copy_again(status, _WAS_AWAY)
            elif not _is_continued(status):
                return  # a copy that failed is tried again at its own time
            elif remembered is not None and remembered.has_gap:
                self._copy_again(status, _WAS_NOT_PUBLISHED)
            else:
                self._compare(connection, status, remembered, now, found.lsn)
            return
        if remembered is not None and not remembered.has_gap:
            # First: a table that is stopped must also be known to come back by itself.
            self._store.save_fingerprint(status.table_id, replace(remembered, has_gap=True))
            reach(GAP_STORED)
        if _is_continued(status):
            self._stop_table(status, self._not_offered(connection, status, now, found))

    def _follow(self, status: TableStatus, name: TableName) -> TableStatus:
        note_renamed(self._store, self._selection, status, name)
        renamed = self._store.add_table(status.table_id, name)
        if self._selection is not None and name not in self._selection:
            self._observer.on_notice(str(Followed(status.table_id, status.name, name)))
        return renamed

    def _compare(
        self, connection: Connection, status: TableStatus, remembered: Remembered | None, now: Fingerprint, lsn: Lsn
    ) -> None:
        table_id = status.table_id
        if remembered is None:
            # Copied by a version that remembered nothing: what came before cannot be told.
            self._store.save_fingerprint(table_id, Remembered(now, lsn))
            return
        before = remembered.fingerprint
        if lsn < remembered.lsn:
            return
        if now == before:
            settled = self._settled(table_id, remembered)
            if settled is not remembered:
                self._store.save_fingerprint(table_id, settled)
            return
        change = what_changed(before, now)
        if change is not None:
            self._copy_again(status, change)
            return
        try:
            is_same = self._is_same_rows(connection, table_id, remembered, now)
        except TransientError:
            return  # somebody has locked the table: judged at the next look
        if is_same:
            self._keep(table_id, remembered, now, lsn)
        elif is_altered(before, now) and not _sends_truncations(before):
            self._refuse(status)
        elif is_altered(before, now):
            self._copy_again(status, _REWRITTEN)
        elif table_id not in self._open or self._open[table_id].seen.files != now.files:
            self._open[table_id] = _Open(now, lsn)
            self._judge_open()

    def _is_same_rows(
        self, connection: Connection, table_id: TableId, remembered: Remembered, now: Fingerprint
    ) -> bool:
        """Whether the files hold the rows of before, or those that the stream has carried since."""
        before = remembered.fingerprint
        # A truncation explains new files, but not together with an ALTER TABLE that may have come after it.
        if self._is_truncated(table_id, remembered) and not is_altered(before, now):
            return True
        if not _sends_truncations(before) and not is_altered(before, now):
            return True  # a truncated table is to stay as it is: see docs/delivery.md
        return all(has_old_row(connection, oid, before.horizon) for oid in new_files(before, now))

    def _is_truncated(self, table_id: TableId, remembered: Remembered) -> bool:
        """Whether the stream has read a truncation that the remembered files do not show yet."""
        truncated = self._truncated.get(table_id)
        # A commit record that begins where the look was belongs to what came after it.
        return truncated is not None and truncated >= remembered.lsn

    def _keep(self, table_id: TableId, remembered: Remembered, now: Fingerprint, lsn: Lsn) -> None:
        """What changed is harmless: the next look is compared with `now`.

        Until the stream has come so far, what was before is kept besides: it tells which columns its messages mean, and
        what older rows hold in new ones.
        """
        self._open.pop(table_id, None)
        earlier = self._settled(table_id, remembered).passed
        self._store.save_fingerprint(table_id, self._settled(table_id, Remembered(now, lsn, earlier=earlier)))

    def _settled(self, table_id: TableId, remembered: Remembered) -> Remembered:
        """Without what was before, if the stream needs it no more."""
        if remembered.earlier is None:
            return remembered
        if self._has_passed(table_id, remembered.earlier.fingerprint, remembered):
            self._waiting.discard(table_id)
            return replace(remembered, earlier=None)
        self._waiting.add(table_id)
        return remembered

    def _has_passed(self, table_id: TableId, before: Fingerprint, remembered: Remembered) -> bool:
        """Whether the stream has come to where the table is as remembered, and knows all columns it is sent."""
        applied = self._applied(table_id)
        if applied is None or self._position is None or self._position < remembered.lsn:
            return False
        known = {column.attnum for column in applied.columns}
        now = remembered.fingerprint
        new = (each for each in now.attributes if each.name and each.attnum > before.last_attnum)
        return all(each.attnum in known for each in new if now.sends(each))

    # --- while it streams -------------------------------------------------------------------------------------

    def start(
        self,
        applied: Callable[[TableId], TableSchema | None],
        note_names: Callable[[Mapping[TableId, TableName], Lsn], None],
    ) -> None:
        """Begins to look from time to time, beside a stream; `applied` gives the schema it has for a table.

        `note_names` is told what the tables are called in each look; see `renames.py`.
        """
        # Without the lock: a look of an earlier stream may have it.
        self._applied, self._note_names, self._position = applied, note_names, None
        # Its own: the thread of an earlier stream may still wait for an answer.
        self._stop, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(self._stop, self._wake), name="catalog-watch", daemon=True
        )
        self._thread.start()

    def passed(self, position: Lsn) -> None:
        """The stream has cut its last batch at `position`: every truncation before was told."""
        self._position = position
        if self._open and any(waiting.lsn <= position for waiting in list(self._open.values())):
            self._wake.set()

    def truncated(self, tables: Iterable[TableId], lsn: Lsn) -> None:
        """The stream has read a truncation of `tables`, committed at `lsn`."""
        self._truncated.update(dict.fromkeys(tables, lsn))

    def wake(self) -> None:
        """Has the thread look soon."""
        self._wake.set()

    def finish(self, position: Lsn) -> None:
        """The stream has ended at `position`. What it read is not read again, so it is made use of."""
        self._position = position
        if self._truncated or self._waiting:
            with contextlib.suppress(EtlError), contextlib.closing(self.connect()) as connection:
                self.look_now(connection)

    def close(self) -> None:
        """Ends the thread. What waited for the stream is judged as far as it came. Idempotent."""
        self._stop.set()
        self._wake.set()
        thread, self._thread = self._thread, None
        if thread is None:
            return
        thread.join(_PATIENCE)
        if thread.is_alive():
            return  # it waits for the source or the store, and ends when they answer
        with self._lock, contextlib.suppress(EtlError):
            self._judge_open()

    def _run(self, stop: threading.Event, wake: threading.Event) -> None:
        connection: Connection | None = None
        wait = self.every
        while True:
            wake.wait(wait)
            wake.clear()
            if stop.is_set():
                break
            began = time.monotonic()
            try:
                with self._lock:
                    self._judge_open()
                if connection is None or connection.closed:
                    connection = self.connect()
                found = self.look_now(connection)
                self._find_new_tables(connection, found)
                self.tell_harms(connection, [now.name for now in found.tables.values() if now.is_published])
            except EtlError as error:
                self._observer.on_retry(error, wait)
                _close(connection)
            except Exception as error:
                _log.error("the watch over the catalog ended with %s\n%s", type(error).__name__, where(error))
                _close(connection)
            wait = max(self.every, _SHARE * (time.monotonic() - began))
        _close(connection)

    def connect(self) -> Connection:
        """A connection whose statements give up before anybody waits for them."""
        connection = self._connect()
        try:
            connection.execute(_TIMEOUTS)
        except psycopg.Error as error:
            connection.close()
            raise translate(error) from None
        return connection

    def _find_new_tables(self, connection: Connection, found: Look) -> None:
        if found.publishing is None:
            return
        published = candidates(connection, found.publishing)
        if not published <= self._candidates | found.tables.keys():
            self._register(connection)
            self._candidates = published  # what is not wanted is not asked for again

    def _judge_open(self) -> None:
        position = self._position
        if position is None:
            return
        for table_id, waiting in list(self._open.items()):
            if waiting.lsn > position:
                continue
            del self._open[table_id]
            status, remembered = self._store.table(table_id), self._store.fingerprint(table_id)
            if status is None or remembered is None or not _is_continued(status) or remembered.lsn >= waiting.lsn:
                continue
            with contextlib.suppress(StateConflict):
                if self._is_truncated(table_id, remembered):
                    self._keep(table_id, remembered, waiting.seen, waiting.lsn)
                else:
                    self._copy_again(status, _REWRITTEN)

    # --- what follows -----------------------------------------------------------------------------------------

    def _copy_again(self, status: TableStatus, why: str, *, is_requested: bool = False) -> None:
        error = CopiedAgain(f"{status.name} is copied again: {why}", table=str(status.name), hint=COPIED_AGAIN)
        update = TableUpdate(error=str(error), hint=error.hint, is_requested=is_requested)
        self._store.transition(status, TableState.INIT, update)
        reach(TABLE_SET_BACK)
        self._open.pop(status.table_id, None)
        self._waiting.discard(status.table_id)
        self._observer.on_state(status.name, TableState.INIT)
        self._observer.on_table_error(status.name, error)

    def _refuse(self, status: TableStatus) -> None:
        """Rows that were computed anew, or rows that were truncated and are to be kept: a new copy could lose these."""
        error = CopyNeeded(
            f"{status.name} was altered, and its rows are in another file: computed anew, or truncated, which "
            f"publication {self._publication} does not send",
            table=str(status.name),
            hint=f"etl resync {status.name} copies it again, without rows that were truncated at the source; to keep "
            "those, save them first",
        )
        self._open.pop(status.table_id, None)
        self._waiting.discard(status.table_id)
        self._store.transition(
            status, TableState.ERRORED, TableUpdate(error=str(error), hint=error.hint, attempts=status.attempts + 1)
        )
        self._observer.on_state(status.name, TableState.ERRORED)
        self._observer.on_table_error(status.name, error)

    def set_back(self, reasons: Mapping[TableId, str]) -> None:
        """Has these tables copied again, if they were copied, each for its reason: a person changed their settings."""
        with self._lock:
            for status in self._store.tables():
                if status.table_id in reasons and _is_continued(status):
                    with contextlib.suppress(StateConflict):  # somebody else was faster; the stream looks again
                        self._copy_again(status, reasons[status.table_id], is_requested=True)

    def set_back_all(self, why: str) -> None:
        """Has every table copied again that was copied, before its publication is created again."""
        with self._lock:
            for status in self._store.tables():
                if _is_continued(status):
                    self._copy_again(status, why)

    def _stop_table(self, status: TableStatus, error: TableAbsent) -> None:
        self._open.pop(status.table_id, None)
        self._waiting.discard(status.table_id)
        self._store.transition(status, TableState.ERRORED, absent_update(error))
        self._observer.on_state(status.name, TableState.ERRORED)
        self._observer.on_table_error(status.name, error)

    def _not_offered(
        self, connection: Connection, status: TableStatus, now: Fingerprint | None, found: Look
    ) -> TableAbsent:
        """What happened and what to do."""
        if now is None:
            return missing(status.name)
        if now.is_published and now.name != status.name:
            return left_out(status.name, now.name)
        missed = "its changes no longer arrive, and those made meanwhile are not kept"
        back = "it is copied again by itself as soon as it is published again"
        if found.publishing is None:
            what = f"{status.name}: publication {self._publication} does not exist, so {missed}"
            hint = "start etl run again, which creates a publication for source.tables, or create it yourself"
        elif now.persistence != "p":
            what, hint = f"{status.name} is unlogged, so {missed}", f"ALTER TABLE {now.name} SET LOGGED"
        else:
            what = f"{status.name} is no longer published by {self._publication}, so {missed}"
            hint = add_tables_statement(connection, self._publication, [now.name])
        return TableAbsent(what, table=str(status.name), hint=f"{hint}; {back}")


def _sends_truncations(fingerprint: Fingerprint) -> bool:
    return fingerprint.publishing is None or fingerprint.publishing.says("pubtruncate")


def _is_continued(status: TableStatus) -> bool:
    """Whether the table goes on from what the destination has: it is streamed, or its changes are kept for that."""
    return status.state in COPIED or (status.state is TableState.ERRORED and status.sync_slot is not None)


def _close(connection: Connection | None) -> None:
    if connection is not None:
        connection.close()
