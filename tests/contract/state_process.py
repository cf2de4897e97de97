"""A process of its own on a state store, for tests that race processes or kill one: `state_process.py ROLE URL`.

Prints `ready`, waits for a line on standard input, then plays its role and prints what came of it.
"""

from __future__ import annotations

import sys
from itertools import count

from etl_core.errors import StateConflict
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.state.sql_store import open_store
from etl_core.state.store import ReplicationProgress, StateStore
from etl_core.state.table_state import TableState

TABLE = TableId(1)


def migrate(store: StateStore) -> None:
    wait()
    store.migrate()
    say(str(store.progress()))


def take(store: StateStore) -> None:
    """Tries to be the one that moves the table on."""
    status = store.table(TABLE)
    if status is None:
        raise LookupError("the table must be there before the race")
    wait()
    try:
        store.transition(status, TableState.DATA_SYNC)
    except StateConflict:
        say("lost")
    else:
        say("won")


def write(store: StateStore) -> None:
    """Writes until it is killed, saying after each write what is stored by then."""
    status = store.add_table(TABLE, TableName("public", "orders"))
    progress = store.progress()
    wait()
    for number in count(int(progress.flushed_lsn) + 1 if progress else 1):
        store.save_progress(ReplicationProgress(Lsn(number)))
        status = store.transition(status, TableState.INIT)
        say(f"{number} {status.version}")


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 (how it talks to the test)


def wait() -> None:
    say("ready")
    sys.stdin.readline()


if __name__ == "__main__":
    role, url = sys.argv[1:]
    {"migrate": migrate, "take": take, "write": write}[role](open_store(url, "shop"))
