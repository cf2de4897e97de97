"""`python -m tests.integration.replication.refusing` is `etl`, and its DuckDB files refuse the changes of table `bad`.

They do so while the file that ETL_TEST_REFUSES names exists. It says how: "named", with an error that names the table,
or "unnamed", with one that does not, as of a defect.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

from etl_core.batch import WriteBatch
from etl_core.cli import main
from etl_core.destination.duckdb.destination import DuckDBDestination
from etl_core.errors import DestinationError, TableError

VARIABLE = "ETL_TEST_REFUSES"

_write = DuckDBDestination.write


def _write_or_refuse(destination: DuckDBDestination, batch: WriteBatch) -> None:
    parts = list(batch.parts)
    file = Path(os.environ[VARIABLE])
    if any(part.schema.name.name == "bad" for part in parts) and file.exists():
        if file.read_text() == "named":
            raise TableError("a value that cannot be written", table="public.bad")
        raise DestinationError("a value that cannot be written")
    _write(destination, replace(batch, parts=parts))


if __name__ == "__main__":
    DuckDBDestination.write = _write_or_refuse  # type: ignore[method-assign, assignment]
    sys.exit(main())
