"""Copies of a campaign's destination and state store, taken and put back while no process runs."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from pathlib import Path


class Backups:
    """Of a DuckDB file and of a state store in SQLite, next to them."""

    def __init__(self, destination: Path, store: Path) -> None:
        self._destination = destination
        self._store = store
        self._old_destination = destination.with_name("old.duckdb")
        self._old_store = store.with_name("old_state.db")
        self.is_store_restored = False

    def take(self) -> None:
        if self._destination.exists():
            shutil.copyfile(self._destination, self._old_destination)
        with (
            contextlib.closing(sqlite3.connect(self._store)) as store,
            contextlib.closing(sqlite3.connect(self._old_store)) as kept,
        ):
            store.backup(kept)

    def restore_destination(self) -> None:
        """Nothing before the first backup; so for the store."""
        if self._old_destination.exists():
            shutil.copyfile(self._old_destination, self._destination)
            self._destination.with_name(self._destination.name + ".wal").unlink(missing_ok=True)

    def restore_store(self) -> None:
        if self._old_store.exists():
            self.is_store_restored = True
            for suffix in ("-wal", "-shm"):
                self._store.with_name(self._store.name + suffix).unlink(missing_ok=True)
            shutil.copyfile(self._old_store, self._store)
