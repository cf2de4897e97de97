"""Spooled frames: the same when read back, nothing left behind, a full disk said clearly."""

from __future__ import annotations

import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from etl_core.identifiers import TableId
from etl_core.lsn import Lsn
from etl_core.protocol.segment import PADDING, Frames
from etl_core.replication.spool import Spool, SpooledFrames, SpoolUnavailable


def build_frames(size: int, *, frame: int | None = None) -> Frames:
    data = np.frombuffer(bytes(range(256)) * (size // 256) + PADDING, np.uint8)
    return Frames(data, np.arange(0, size + 1, frame or size // 2), Lsn(7), frozenset({TableId(5)}))


def check_equal(one: Frames, other: Frames) -> None:
    assert one.size == other.size
    assert one.data[: one.size].tobytes() == other.data[: other.size].tobytes()
    assert one.data.size >= one.size + len(PADDING)
    assert one.bounds.tolist() == other.bounds.tolist()
    assert (one.open_lsn, one.truncated) == (other.open_lsn, other.truncated)


@pytest.fixture
def file_size_limit() -> Iterator[None]:
    """No file may grow beyond 64 KiB: what a full disk looks like to the one who writes."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, handler)


def test_reads_back_the_same_every_time(tmp_path: Path) -> None:
    frames = build_frames(1 << 20)
    with closing(Spool(tmp_path).put(frames)) as spooled:
        assert spooled.size == 1 << 20
        for _ in range(2):
            check_equal(spooled.load(), frames)


def test_what_is_sealed_reads_back_and_cannot_be_read_on_the_disk(tmp_path: Path) -> None:
    pieces = [build_frames(size) for size in (512, 3 << 20, 512)]
    spool = Spool(tmp_path, is_sealed=True)
    spooled = [spool.put(frames) for frames in pieces]
    frames = [bytes(spool.read(held._start, held.size)) for held in spooled]
    assert all(bytes(range(64)) not in sealed for sealed in frames)
    assert frames[0] != frames[2], "what is the same has another keystream"
    for piece, held in zip(pieces, spooled, strict=True):
        for _ in range(2):
            check_equal(held.load(), piece)
        held.close()


def test_frames_that_only_truncate() -> None:
    frames = Frames(np.frombuffer(PADDING, np.uint8), np.zeros(1, np.int64), Lsn(7), frozenset({TableId(5)}))
    with closing(Spool().put(frames)) as spooled:
        check_equal(spooled.load(), frames)


def test_the_file_has_no_name(tmp_path: Path) -> None:
    with closing(Spool(tmp_path).put(build_frames(1024))):
        assert list(tmp_path.iterdir()) == []


def test_closing_twice_is_allowed() -> None:
    spooled = Spool().put(build_frames(1024))
    spooled.close()
    spooled.close()


@pytest.mark.usefixtures("file_size_limit")
def test_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(SpoolUnavailable, match=r"cannot write 1048576 bytes in the spool .*: File too large") as caught:
        Spool(tmp_path).put(build_frames(1 << 20))
    assert caught.value.hint is not None
    assert "TMPDIR" in caught.value.hint


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SpoolUnavailable, match="cannot create a file in the spool"):
        Spool(tmp_path / "missing")


def test_all_pieces_of_a_batch_are_in_one_file_which_goes_with_the_last(tmp_path: Path) -> None:
    """A file each ended at `ulimit -n`, at 16 GiB of one transaction."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    pieces = [build_frames(size) for size in (512, 1024, 2048)] * 100
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 20, hard))
    try:
        spool = Spool(tmp_path)
        spooled = [spool.put(frames) for frames in pieces]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for frames, held in reversed(list(zip(pieces, spooled, strict=True))):
        check_equal(held.load(), frames)
        held.close()
    with pytest.raises(ValueError, match="closed file"):
        spool.read(0, 1)


def test_what_spooled_frames_keep_in_memory_does_not_grow_with_their_rows() -> None:
    frames = build_frames(1 << 20, frame=16)
    with closing(Spool().put(frames)) as spooled:
        held = [getattr(spooled, name) for name in SpooledFrames.__slots__]
        assert sum(sys.getsizeof(value) for value in held) < 1000
        check_equal(spooled.load(), frames)
