"""A DuckDB file with every type, a log with its views, and a write-ahead log that is left beside it, written by the
DuckDB of the process: `python -m tests.lakes.writing_file PATH [STORAGE_VERSION]` prints that DuckDB's version.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta

import duckdb

from etl_core.config import DestinationConfig
from etl_core.destination.protocol import LoggedCopy
from etl_core.destination.registry import build_destination
from etl_core.schema.table import Column
from etl_core.testing.destination_history_suite import Model, history
from etl_core.testing.destination_log_suite import THEN, append_copy
from etl_core.testing.destination_tables import INT8, Row, batch, changes, orders, publish, table
from etl_core.testing.destination_values_suite import CASES

EVERY_TYPE = table("every_type", Column("id", INT8), *(column for column, _ in CASES), table_id=16_700)
VALUES: list[Row] = [
    (at, *([*values, None][at % (len(values) + 1)] for _, values in CASES))
    for at in range(1 + max(len(values) for _, values in CASES))
]
LONG = orders(16_701, "long")
TEXTS: list[Row] = [(at, "short", f"{at} " * 4_000, at) for at in range(2_500)]
ITEMS, VERSIONS = history(), Model()


def _log() -> list[Row]:
    """A row is copied, then moved without its large value; another one comes and goes."""
    VERSIONS.copy({1: ("a", "b")})
    VERSIONS.begin()
    VERSIONS.insert(2, "c", "d")
    VERSIONS.update(1, 3, "e", None, "big")
    VERSIONS.begin()
    VERSIONS.delete(2)
    return VERSIONS.log


CHANGES = _log()


def main(path: str, *storage_version: str) -> None:
    given = dict(zip(("storage_version",), storage_version, strict=False))
    destination = build_destination(DestinationConfig("duckdb", {"path": path, **given}), "shop")
    destination.prepare()
    publish(destination, EVERY_TYPE, VALUES[:2])
    publish(destination, LONG, TEXTS)
    append_copy(destination, ITEMS, [(1, "a", "b")], 110, LoggedCopy(THEN + timedelta(seconds=1)))
    destination.close()
    destination.write(batch(changes(EVERY_TYPE, inserts=VALUES[2:]), expected=100, new=200))
    destination.write(batch(changes(ITEMS, inserts=CHANGES), expected=110, new=VERSIONS.lsn))
    sys.stdout.write(duckdb.__version__)
    sys.stdout.flush()
    os._exit(0)  # killed: nothing is closed


if __name__ == "__main__":
    main(*sys.argv[1:])
