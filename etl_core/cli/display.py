"""What is shown while a long command works. This one is the quietest, `--quiet`: only what went wrong."""

from __future__ import annotations

import logging
import threading
from types import TracebackType
from typing import Self

from etl_core.cli.failures import say
from etl_core.errors import CopiedAgain, DecisionNeeded, EtlError
from etl_core.identifiers import TableName
from etl_core.replication.observer import Flush, Observer
from etl_core.state.table_state import TableState

_log = logging.getLogger(__name__)


class Display(Observer):
    """An observer that shows progress within its `with` block. `rows` counts the changes that were made durable."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Shows what is still to be shown, and gives the terminal back."""

    def say(self, sentence: str) -> None:
        """Shows a sentence at once."""
        say(sentence)

    def begin(self, work: str) -> None:
        """Something that takes time begins, such as `comparing 8 tables`."""

    def on_state(self, table: TableName, state: TableState) -> None:
        _log.debug("%s is in state %s", table, state.name)

    def on_flush(self, flush: Flush) -> None:
        _log.debug("wrote %d row changes up to %s in %.3f s", flush.rows, flush.end_lsn, flush.seconds)
        with self._lock:
            self.rows += flush.rows

    def on_notice(self, sentence: str) -> None:
        self.say(sentence)

    def on_table_error(self, table: TableName, error: EtlError) -> None:
        self.say(table_error(table, error))


def table_error(table: TableName, error: EtlError) -> str:
    what = str(error) if isinstance(error, CopiedAgain | DecisionNeeded) else f"{table} failed: {error}"
    return what + (f" → {error.hint}" if error.hint else "")
