"""Where transactions begin and end in a run of frames, found in columns.

Whatever a server sends, nothing is taken for whole that is not: a change outside of a transaction, a Commit without its
Begin, a Begin inside a transaction and positions that run backwards are refused.
https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from etl_core.errors import MalformedMessage
from etl_core.lsn import Lsn
from etl_core.protocol.segment import BEGIN, COMMIT, FINAL_LSN, Indices, big_endian_64
from etl_core.protocol.walsender import XLOG_DATA
from etl_core.protocol.walsender import XLOG_DATA_HEADER_LENGTH as MESSAGE

_SHORTEST_FRAME = MESSAGE + 8
"""Tag, relation, kind of tuple, number of columns."""
_BEGIN_FRAME = MESSAGE + 21
"""Tag, final LSN, commit time, transaction id."""
_COMMIT_FRAME = MESSAGE + 26
"""Tag, flags, commit LSN, end LSN, commit time."""
_FLAGS = MESSAGE + 1
_COMMIT_LSN = MESSAGE + 2


@dataclass(frozen=True, slots=True)
class Transactions:
    """What a run of frames holds. Counts of frames, bytes and rows are from its beginning.

    `whole_*` reach to the end of the last transaction that ends in it, and are 0 if none does; `end_lsn` and
    `commit_time` are that one's. `open_lsn` and `open_time` are the commit LSN and time of the transaction that is open
    at the end. `row_time` is the commit time of the transaction of the first row. The last two are None also where that
    transaction began before the run. Times are as on the wire. `is_cut` says that a transaction at or beyond the limit
    comes next, where the run ends.
    """

    frames: int
    size: int
    rows: int
    whole_frames: int
    whole_size: int
    whole_rows: int
    end_lsn: Lsn | None
    commit_time: int | None
    open_lsn: Lsn | None
    open_time: int | None
    row_time: int | None
    is_cut: bool


def find_transactions(
    data: NDArray[np.uint8], bounds: Indices, *, open_lsn: Lsn | None, after: Lsn, limit: Lsn | None = None
) -> Transactions:
    """Looks through at least one frame, up to the first transaction whose commit record is at or beyond `limit`.

    `open_lsn` is the commit LSN of the transaction that is open before the first frame; `after` the end of the last one
    that ended. Raises MalformedMessage for what no server sends.
    """
    start = bounds[:-1]
    lengths = bounds[1:] - start
    if int(lengths.min()) < _SHORTEST_FRAME:
        raise MalformedMessage("a row message too short for its tuple", offset=0)
    if bool((data[start] != XLOG_DATA).any()):
        raise MalformedMessage("a row message that is not in a message of WAL data", offset=0)
    tags = data[start + MESSAGE]
    is_begin, is_commit = tags == BEGIN, tags == COMMIT
    begins, commits = np.flatnonzero(is_begin), np.flatnonzero(is_commit)
    _check_places(tags, begins, commits, open_lsn)
    if bool((lengths[begins] != _BEGIN_FRAME).any()) or bool((lengths[commits] != _COMMIT_FRAME).any()):
        raise MalformedMessage("a Begin or Commit of a wrong length", offset=1)
    begun = big_endian_64(data, start[begins] + FINAL_LSN, 2)
    ended = big_endian_64(data, start[commits] + _COMMIT_LSN, 3)
    if bool(data[start[commits] + _FLAGS].any()):
        raise MalformedMessage("Commit: unknown flags", offset=1)
    _check_positions(begun[:, 0], ended[:, 0], ended[:, 1], open_lsn, after)

    count, is_cut = tags.size, False
    if limit is not None:
        beyond = int(np.searchsorted(begun[:, 0], np.uint64(limit)))
        is_cut = beyond < begins.size
        if is_cut:
            count = int(begins[beyond])
            begins, commits = begins[:beyond], commits[: beyond + (open_lsn is not None)]
    whole_frames = int(commits[-1]) + 1 if commits.size else 0
    whole_rows = whole_frames - 2 * commits.size + (open_lsn is not None) if commits.size else 0
    rows = count - begins.size - commits.size
    is_open = begins.size + (open_lsn is not None) > commits.size
    last_begun = begun[begins.size - 1] if begins.size else None
    last_end = ended[commits.size - 1] if commits.size else None
    return Transactions(
        frames=count,
        size=int(bounds[count] - bounds[0]),
        rows=rows,
        whole_frames=whole_frames,
        whole_size=int(bounds[whole_frames] - bounds[0]),
        whole_rows=whole_rows,
        end_lsn=None if last_end is None else Lsn(int(last_end[1])),
        commit_time=None if last_end is None else int(last_end[2].astype(np.int64)),
        open_lsn=None if not is_open else open_lsn if last_begun is None else Lsn(int(last_begun[0])),
        open_time=None if last_begun is None or not is_open else int(last_begun[1].astype(np.int64)),
        row_time=_row_time(~(is_begin | is_commit), begins, begun) if rows else None,
        is_cut=is_cut,
    )


def _row_time(is_row: NDArray[np.bool_], begins: Indices, begun: NDArray[np.uint64]) -> int | None:
    number = int(np.searchsorted(begins, np.argmax(is_row))) - 1
    return None if number < 0 else int(begun[number, 1].astype(np.int64))


def _check_places(tags: NDArray[np.uint8], begins: Indices, commits: Indices, open_lsn: Lsn | None) -> None:
    """A transaction begins where none is open, that is at the start or behind a Commit, and nowhere else."""
    if (tags[0] == BEGIN) != (open_lsn is None):
        raise _misplaced(int(tags[0]))
    behind = tags[commits[: np.searchsorted(commits, tags.size - 1)] + 1]
    if (wrong := behind != BEGIN).any():
        raise _misplaced(int(behind[wrong][0]))
    before = tags[begins[np.searchsorted(begins, 1) :] - 1]
    if (before != COMMIT).any():
        raise _misplaced(BEGIN)


def _misplaced(tag: int) -> MalformedMessage:
    if tag == BEGIN:
        return MalformedMessage("a transaction begins inside another", offset=0)
    if tag == COMMIT:
        return MalformedMessage("a commit does not match its begin", offset=2)
    return MalformedMessage("a change outside of a transaction", offset=0)


def _check_positions(
    final_lsn: NDArray[np.uint64],
    commit_lsn: NDArray[np.uint64],
    end_lsn: NDArray[np.uint64],
    open_lsn: Lsn | None,
    after: Lsn,
) -> None:
    begun = final_lsn if open_lsn is None else _behind(open_lsn, final_lsn)
    if not begun.all():
        raise MalformedMessage("Begin: the final LSN is 0/0", offset=1)
    if bool((begun[: commit_lsn.size] != commit_lsn).any()):
        raise MalformedMessage("a commit does not match its begin", offset=2)
    if bool((end_lsn <= commit_lsn).any()):
        raise MalformedMessage("a transaction ends before its commit record", offset=10)
    if bool((begun < _behind(after, end_lsn)[: begun.size]).any()):
        raise MalformedMessage("a transaction was committed before the one that was sent before it", offset=1)


def _behind(first: Lsn, others: NDArray[np.uint64]) -> NDArray[np.uint64]:
    joined = np.empty(others.size + 1, np.uint64)
    joined[0], joined[1:] = first, others
    return joined
