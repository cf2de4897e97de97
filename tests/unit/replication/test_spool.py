"""Spooled segments: the same when read back, nothing left behind, a full disk said clearly."""

from __future__ import annotations

import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from etl_core.identifiers import TableId
from etl_core.protocol.segment import Segment
from etl_core.replication.spool import Spool, SpooledSegment, SpoolUnavailable


def build_segment(size: int) -> Segment:
    data = bytearray(range(256)) * (size // 256)
    return Segment(data, [0, size // 2], [(0, 7), (1, 8)], frozenset({TableId(5)}), len(data))


@pytest.fixture
def file_size_limit() -> Iterator[None]:
    """No file may grow beyond 64 KiB: what a full disk looks like to the one who writes."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("sealed", [False, True])
def test_reads_back_the_same_every_time(sealed: bool, tmp_path: Path) -> None:
    segment = build_segment(1 << 20)
    if sealed:
        segment.seal()
    with closing(Spool(tmp_path).put(segment)) as spooled:
        assert (spooled.rows, spooled.size) == (2, 1 << 20)
        for _ in range(2):
            loaded = spooled.load()
            assert loaded.data == segment.data[: segment.size]
            assert (loaded.offsets, loaded.transactions) == (segment.offsets, segment.transactions)
            assert (loaded.truncated, loaded.size) == (segment.truncated, segment.size)
            loaded.seal()


def test_a_segment_that_only_truncates() -> None:
    with closing(Spool().put(Segment(truncated=frozenset({TableId(5)})))) as spooled:
        assert spooled.load().truncated == {5}


def test_the_file_has_no_name(tmp_path: Path) -> None:
    with closing(Spool(tmp_path).put(build_segment(1024))):
        assert list(tmp_path.iterdir()) == []


def test_closing_twice_is_allowed() -> None:
    spooled = Spool().put(build_segment(1024))
    spooled.close()
    spooled.close()


@pytest.mark.usefixtures("file_size_limit")
def test_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(SpoolUnavailable, match=r"cannot write 1048576 bytes in the spool .*: File too large") as caught:
        Spool(tmp_path).put(build_segment(1 << 20))
    assert caught.value.hint is not None
    assert "TMPDIR" in caught.value.hint


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SpoolUnavailable, match="cannot create a file in the spool"):
        Spool(tmp_path / "missing")


def test_all_segments_of_a_batch_are_in_one_file_which_goes_with_the_last(tmp_path: Path) -> None:
    """A file each ended at `ulimit -n`, at 16 GiB of one transaction."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    segments = [build_segment(size) for size in (512, 1024, 2048)] * 100
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 20, hard))
    try:
        spool = Spool(tmp_path)
        spooled = [spool.put(segment) for segment in segments]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for segment, held in reversed(list(zip(segments, spooled, strict=True))):
        loaded = held.load()
        assert (loaded.data, loaded.offsets) == (segment.data, segment.offsets)
        held.close()
    with pytest.raises(ValueError, match="closed file"):
        spool.read(0, 1)


def test_what_a_spooled_segment_keeps_in_memory_does_not_grow_with_its_rows() -> None:
    data = bytearray(1 << 20)
    segment = Segment(data, list(range(0, len(data), 16)), [(0, 7)], frozenset(), len(data))
    with closing(Spool().put(segment)) as spooled:
        held = [getattr(spooled, name) for name in SpooledSegment.__slots__]
        assert sum(sys.getsizeof(value) for value in held) < 1000
        assert spooled.load().offsets == segment.offsets
