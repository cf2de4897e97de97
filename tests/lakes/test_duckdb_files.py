"""Files that the DuckDB of `etl` wrote, opened by an older one: that of dbt, of a BI tool, or of these tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import duckdb
import pytest

from etl_core.destination.duckdb.destination import DuckDBDestination
from etl_core.destination.duckdb.location import STORAGE_VERSIONS
from etl_core.errors import DestinationUnusable
from etl_core.testing.destination_history_suite import assert_shown
from etl_core.testing.destination_tables import batch, changes, comparable, contents, rows
from tests.lakes.writing_file import EVERY_TYPE, ITEMS, LONG, TEXTS, VALUES, VERSIONS


def _written(path: Path, *storage_version: str) -> Path:
    """A file of the DuckDB that is installed beside that of these tests, which is newer."""
    here = Path(duckdb.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if Path(p).resolve() != here)}
    command = [sys.executable, "-m", "tests.lakes.writing_file", str(path), *storage_version]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    assert int(said.partition(".")[0]) >= 2
    assert path.with_name(f"{path.name}.wal").exists()
    return path


@pytest.mark.parametrize("given", [(), STORAGE_VERSIONS[:1]], ids=["default", "oldest"])
def test_a_file_of_a_newer_duckdb(tmp_path: Path, given: tuple[str, ...]) -> None:
    path = _written(tmp_path / "it's.duckdb", *given)
    with duckdb.connect(path, read_only=True) as reading:
        assert reading.execute("SELECT count(*) FROM public.every_type").fetchall() == [(len(VALUES),)]
        assert reading.execute("SELECT count(*) FROM public.items_history").fetchall() == [(len(VERSIONS.versions),)]
        assert reading.execute("SELECT * FROM public.long ORDER BY id").fetchall() == TEXTS
    destination = DuckDBDestination(path, "shop")
    assert_shown(destination, ITEMS, VERSIONS)
    assert contents(destination, EVERY_TYPE) == Counter(comparable(rows(EVERY_TYPE, VALUES)))
    destination.write(batch(changes(LONG, deletes=[(0,)]), expected=100, new=200))
    destination.close()
    assert contents(destination, LONG) == Counter(comparable(rows(LONG, TEXTS[1:])))
    assert destination.positions().tables == {
        EVERY_TYPE.table_id: 200,
        LONG.table_id: 200,
        ITEMS.table_id: VERSIONS.lsn,
    }


def test_the_latest_version_is_for_a_duckdb_as_new(tmp_path: Path) -> None:
    path = _written(tmp_path / "shop.duckdb", "latest")
    before = path.read_bytes()
    with pytest.raises(DestinationUnusable, match="newer DuckDB"):
        DuckDBDestination(path, "shop").prepare()
    assert path.read_bytes() == before
