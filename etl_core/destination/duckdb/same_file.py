"""That the file at a path stays the one this process began with: people restore, move and remove files.

DuckDB makes a new, empty database where a file is missing, and removes a write-ahead log that is left without its file.
Both would destroy what the restart needs to find out which tables are no longer as the pipeline left them.
"""

from __future__ import annotations

from pathlib import Path

from etl_core.errors import DestinationUnusable

_AGAIN = "start again: the tables that are not as they were written are named then; copy them: etl resync TABLE"


def wal_path(path: Path) -> Path:
    """The write-ahead log that DuckDB keeps beside a file."""
    return path.with_name(path.name + ".wal")


class SameFile:
    """The identity of the file at `path` (device and inode), taken note of when it is first opened."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: tuple[int, int] | None = None

    def exists(self) -> bool:
        """Whether there is a file. Raises DestinationUnusable if there was one before, or if its log is there alone."""
        return self._check() is not None

    def opened(self) -> None:
        """Takes note of the file that was just opened. Raises DestinationUnusable if it is another one than before."""
        self._known = self._check()

    def written(self) -> tuple[int, int]:
        """Changes when DuckDB writes into the file itself, not into its log. Raises DestinationUnusable as `opened`."""
        self._check()
        found = self._path.stat()
        return found.st_size, found.st_mtime_ns

    def _check(self) -> tuple[int, int] | None:
        found = self._find()
        if found is None and self._known is not None:
            raise DestinationUnusable(
                f"{self._path} was removed while this process worked with it; its tables are gone",
                hint=f"put the file and its .wal back, or {_AGAIN}",
            )
        if self._known is not None and found != self._known:
            raise DestinationUnusable(
                f"{self._path} was replaced by another file while this process worked with it;"
                " its tables may be older than what was written",
                hint=_AGAIN,
            )
        if found is None and wal_path(self._path).exists() and self._find() is None:  # else both were just made
            raise DestinationUnusable(
                f"{self._path} is missing, but its write-ahead log {wal_path(self._path).name} is there",
                hint=f"restore the file that belongs to the .wal; without one, move the .wal away and {_AGAIN}",
            )
        return found

    def _find(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return None
        except OSError:
            return self._known  # DuckDB's own message says what is the matter
        return found.st_dev, found.st_ino
