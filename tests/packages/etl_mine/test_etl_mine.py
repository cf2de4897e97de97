"""The package keeps the contract of a destination, and its promise when its process is killed."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from etl_core.errors import WatermarkConflict
from etl_core.lsn import Lsn
from etl_core.testing.destination_counting_suite import CountingSuite
from etl_core.testing.destination_suite import DestinationSuite
from etl_core.testing.destination_tables import batch, changes, contents, orders, publish
from etl_core.testing.destination_watermark_suite import MakeDestination
from etl_mine.destination import ArrowFiles

KILLED = """
import os, sys
from pathlib import Path
from etl_core.testing.destination_tables import batch, changes, orders
from etl_mine.destination import ArrowFiles

rename = Path.replace

def die(file, target):
    if sys.argv[2] == "after":
        rename(file, target)
    os.kill(os.getpid(), 9)

Path.replace = die
ArrowFiles(Path(sys.argv[1]), "shop").write(
    batch(changes(orders(), inserts=[(2, "second", "", 2)], deletes=[(1,)]), expected=100, new=200, stream=200)
)
"""


class TestArrowFiles(CountingSuite, DestinationSuite):
    @pytest.fixture
    def make_destination(self, tmp_path: Path) -> MakeDestination:
        return lambda pipeline: ArrowFiles(tmp_path / "tables", pipeline, "zstd")


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_process_killed_at_the_rename_leaves_all_of_a_batch_or_nothing(tmp_path: Path, when: str) -> None:
    destination = ArrowFiles(tmp_path, "shop")
    destination.prepare()
    publish(destination, orders(), [(1, "first", "", 1)])
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), when], check=False).returncode == -9

    destination = ArrowFiles(tmp_path, "shop")
    destination.prepare()
    again = batch(changes(orders(), inserts=[(2, "second", "", 2)], deletes=[(1,)]), expected=100, new=200, stream=200)
    if when == "before":
        assert contents(destination, orders()) == Counter([(1, "first", "", 1)])
        destination.write(again)
    else:
        with pytest.raises(WatermarkConflict):
            destination.write(again)
    assert destination.positions().tables == {orders().table_id: Lsn(200)}
    assert contents(destination, orders()) == Counter([(2, "second", "", 2)])
    assert len(list((tmp_path / "data").iterdir())) == 1
