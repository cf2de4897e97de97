"""Another process that writes into a lake: `python -m tests.lakes.writing FOLDER CATALOG PIPELINE BATCHES [killed]`.

It brings one table, a copy and so many batches of one row each. `killed` kills it within the last, before the commit.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from etl_core.batch import TableChanges
from etl_core.testing.destination_tables import batch, changes, orders, publish
from tests.lakes.lake import lake

TABLE_ID = 16_500


def main(folder: str, catalog: str, pipeline: str, batches: str, killed: str = "") -> None:
    destination = lake(Path(folder), pipeline, catalog)
    destination.prepare()
    schema = orders(TABLE_ID, f"of_{pipeline}")
    publish(destination, schema, [(0, "a", "b", 0)])

    def parts(at: int) -> Iterator[TableChanges]:
        yield changes(schema, inserts=[(at, "c", "d", at)])
        if killed and at == int(batches):
            os.kill(os.getpid(), signal.SIGKILL)

    for at in range(1, int(batches) + 1):
        made = batch(expected=99 + at, new=100 + at, tables=[schema.table_id])
        destination.write(made.__class__(parts(at), made.watermarks, made.stream))
    destination.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
