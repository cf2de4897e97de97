"""`make chaos`: many seeds on a server of its own; prints a line for each, and how to replay what went wrong.

python -m tests.chaos --seeds 1-20 --minutes 30 --rounds 8
"""

# ruff: noqa: T201 what it prints is its result

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from etl_core.testing.postgres import find_binaries, temporary_postgres
from tests.chaos.campaign import Campaign


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0 if every seed that was begun ended exact."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--seeds", default="1-20", help="such as 7 or 1-20 or 3,8,9 (1-20)")
    parser.add_argument("--minutes", type=float, default=60.0, help="no seed is begun after so many minutes (60)")
    parser.add_argument("--rounds", type=int, default=8, help="rounds of faults for each seed (8)")
    arguments = parser.parse_args(argv)
    ends = time.monotonic() + arguments.minutes * 60
    failed: list[int] = []
    done = 0
    binaries = find_binaries()
    print(f"PostgreSQL {binaries.version}, {arguments.rounds} rounds for each seed", flush=True)
    for seed in _seeds(arguments.seeds):
        if time.monotonic() > ends:
            break
        done += 1
        directory = Path(tempfile.mkdtemp(prefix=f"etl-chaos-{seed}-"))
        with temporary_postgres(binaries) as server:
            try:
                result = Campaign(server, directory, seed, lambda line: print(line, flush=True)).run(arguments.rounds)
            except Exception as error:
                failed.append(seed)
                print(f"seed {seed} FAILED: {error}", flush=True)
                print("".join(traceback.format_tb(error.__traceback__)[-2:]), file=sys.stderr)
                print(f"  its files are kept in {directory}", flush=True)
                print(f"  → make chaos SEEDS={seed} ROUNDS={arguments.rounds}", flush=True)
                continue
        shutil.rmtree(directory)
        stopped = f"; stopped with an error, cured by etl resync: {'; '.join(result.stopped)}" if result.stopped else ""
        print(
            f"seed {seed} exact: {len(result.faults)} rounds in {result.seconds:.0f} s,"
            f" {result.invariant_checks} looks at the invariant,"
            f" {result.history_checks} tables compared with the source at their watermark{stopped}",
            flush=True,
        )
    print(f"{done} seeds, {len(failed)} failed{': ' + ', '.join(map(str, failed)) if failed else ''}", flush=True)
    return 1 if failed else 0


def _seeds(text: str) -> list[int]:
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        seeds.extend(range(int(first), int(last or first) + 1))
    return seeds


if __name__ == "__main__":
    sys.exit(main())
