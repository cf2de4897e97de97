"""Which position of the stream is an older one, and where the next write moves it."""

from __future__ import annotations

import pytest

from etl_core.batch import StreamMove, StreamPosition
from etl_core.lsn import Lsn
from etl_core.replication.stream_fence import StreamFence

OURS, OTHER = "7/1/0/10", "8/1/0/10"


def at(lsn: int, incarnation: str | None = OURS) -> StreamPosition:
    return StreamPosition(Lsn(lsn), incarnation)


@pytest.mark.parametrize(
    ("written", "found", "older"),
    [
        (None, None, False),
        (None, at(5), False),
        (None, at(5, None), False),
        (None, at(500, OTHER), True),
        (50, None, True),
        (50, at(49), True),
        (50, at(50), False),
        (50, at(60), False),  # a crash between written and stored
        (50, at(49, None), True),
        (50, at(50, None), False),
        (50, at(500, OTHER), True),
    ],
)
def test_what_is_older_at_the_start(written: int | None, found: StreamPosition | None, older: bool) -> None:
    fence = StreamFence(OURS, None if written is None else Lsn(written))
    assert fence.is_older(found) is older
    assert str(fence.told(found))


def test_what_was_seen_once_is_expected_from_then_on() -> None:
    fence = StreamFence(OURS, None)
    fence.expect(at(10))
    assert fence.is_older(None)
    assert fence.is_older(at(9))
    assert not fence.is_older(at(10))
    move = fence.move(Lsn(20))
    assert move == StreamMove(at(10), at(20))
    fence.moved(move)
    assert fence.is_older(at(19))
    assert fence.move(Lsn(15)) == StreamMove(at(20), at(20))  # read again, and cut before where it was


def test_positions_of_another_incarnation_do_not_count() -> None:
    fence = StreamFence(OURS, Lsn(50))
    fence.expect(at(500, OTHER))  # once its tables have been stopped
    assert fence.move(Lsn(40)) == StreamMove(at(500, OTHER), at(50))
    fence.expect(at(500, None))  # of bookkeeping without incarnations
    assert fence.move(Lsn(40)) == StreamMove(at(500, None), at(500))
