"""Catch-up: one table reads its own sync slot until it is where the main stream is.

Runs in a thread of its own, beside the main stream, from the snapshot of the table's initial copy on. It writes to
the destination as the main stream does, under the same watermark rule, so it may be killed and begun again anywhere.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from etl_core.config import BatchConfig
from etl_core.identifiers import TableId
from etl_core.lsn import ZERO, Lsn
from etl_core.replication.applier import Applier
from etl_core.replication.assembler import Assembler
from etl_core.replication.batching import batch_is_due, bytes_per_read
from etl_core.replication.failpoints import CATCHUP_WRITTEN, reach
from etl_core.source.replication_stream import Pause, ReplicationStream

_WAIT = 0.1
_MARK_EVERY = 64 << 20
"""Bytes of WAL without changes of the table after which the destination is told that it is complete so far. The slot is
confirmed no further than that, so that one that is confirmed beyond the destination has been read by someone else."""
_MEMORY_SHARE = 4
"""A catch-up takes a quarter of the memory of the main stream: several may run beside it."""


@dataclass(frozen=True, slots=True)
class LastWrite:
    """How long the destination took for a batch, in seconds, and how many bytes of WAL it was ahead by it."""

    seconds: float
    step: int


class CatchUp:
    """The catch-up of one table. `applier` has just that table active; `on_end` is called when the thread ends."""

    def __init__(
        self,
        table_id: TableId,
        snapshot_lsn: Lsn,
        open_stream: Callable[[], ReplicationStream],
        build_assembler: Callable[[Lsn], Assembler],
        applier: Applier,
        limits: BatchConfig,
        on_end: Callable[[], None],
    ) -> None:
        self.table_id = table_id
        self._open_stream = open_stream
        self._build_assembler = build_assembler
        self.applier = applier
        self._limits = limits
        self._on_end = on_end
        self._stop = threading.Event()
        self._is_finishing = False
        self._reading: ReplicationStream | None = None
        self._condition = threading.Condition()
        self._through = snapshot_lsn
        self._wanted: Lsn | None = None
        self._batch_since: float | None = None
        self._last_write = LastWrite(0.0, 0)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"catch-up-{table_id}", daemon=True)
        self._thread.start()

    @property
    def through(self) -> Lsn:
        """The table is complete in the destination up to here."""
        with self._condition:
            return self._through

    @property
    def last_write(self) -> LastWrite:
        """Zeros before the first."""
        with self._condition:
            return self._last_write

    @property
    def error(self) -> BaseException | None:
        """What ended it before it was finished."""
        with self._condition:
            return self._error

    def wait_through(self, position: Lsn, seconds: float) -> bool:
        """Waits until the table is complete up to `position`; False if it is not yet, or has failed.

        What has been read up to `position` is written at once from now on, however little it is.
        """
        with self._condition:
            self._wanted = position
            self._condition.wait_for(lambda: self._through >= position or self._error is not None, seconds)
            return self._through >= position and self._error is None

    def finish(self, busy_wait: Callable[[], object]) -> Lsn:
        """Stops, and says in the destination how far the table is complete. Returns that; raises if it failed.

        The destination may take its time: `busy_wait` is called again and again meanwhile.
        """
        self._is_finishing = True
        self._stop.set()
        while self._thread.is_alive():
            self._thread.join(_WAIT)
            busy_wait()
        if self._error is not None:
            raise self._error
        return self._through

    def stop(self) -> None:
        """Stops after what is being read or written; what fails then is not tried again."""
        self._stop.set()
        self.applier.give_up()
        self._thread.join()

    def leave(self) -> None:
        """Lets go of the server at once, in the middle of whatever is being written."""
        self._stop.set()
        stream = self._reading
        if stream is not None:
            stream.cut()

    def _run(self) -> None:
        try:
            with self._open_stream() as stream:
                self._reading = stream
                stream.read_bytes = bytes_per_read(self._limits)
                self._stream(stream)
            if self._is_finishing:
                self.applier.move_watermark(self.table_id, self._through)
        except BaseException as error:
            with self._condition:
                self._error = error
                self._condition.notify_all()
        finally:
            self._on_end()

    def _stream(self, stream: ReplicationStream) -> None:
        assembler = self._build_assembler(ZERO)
        try:
            while not self._stop.is_set():
                message = stream.receive(assembler.segment, _WAIT)
                assembler.scan()
                if not isinstance(message, Pause):
                    assembler.on_message(message)
                self._after_read(stream, assembler, quiet=message is Pause.QUIET)
                stream.keep_alive()
        finally:
            assembler.discard()

    def _after_read(self, stream: ReplicationStream, assembler: Assembler, *, quiet: bool) -> None:
        if assembler.has_changes:
            if not self._is_due(assembler, quiet=quiet):
                return
            began = time.monotonic()
            with contextlib.closing(assembler.take()) as batch:
                self.applier.apply(batch)
            self._batch_since = None
            reach(CATCHUP_WRITTEN, stream)
            with self._condition:
                self._last_write = LastWrite(time.monotonic() - began, assembler.end_lsn - self._through)
        position = assembler.end_lsn
        if not assembler.in_transaction:
            position = max(position, stream.server_lsn)
        mark = self.applier.watermark(self.table_id)
        if position - min(position, mark) > _MARK_EVERY:
            self.applier.move_watermark(self.table_id, position)
            mark = position
        stream.confirm(min(position, mark))
        with self._condition:
            if position > self._through:
                self._through = position
                self._condition.notify_all()
        if quiet:
            stream.send_status(reply_requested=True)

    def _is_due(self, assembler: Assembler, *, quiet: bool) -> bool:
        if self._wanted is not None and assembler.end_lsn >= self._wanted > self._through:
            return True
        now = time.monotonic()
        self._batch_since = self._batch_since or now
        return batch_is_due(
            self._limits,
            rows=assembler.rows,
            size=assembler.size * _MEMORY_SHARE,
            age=now - self._batch_since,
            quiet=quiet,
            writer_idle=True,
            last_write=self._last_write.seconds,
        )
