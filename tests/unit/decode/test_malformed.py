"""Damaged row messages: refused as malformed, or read as changes of the right shape; nothing else happens."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from etl_core.batch import TableChanges
from etl_core.decode import decoder
from etl_core.decode.decoder import decode_frames
from etl_core.errors import MalformedMessage, TableError
from etl_core.identifiers import TableId
from etl_core.lsn import ZERO, Lsn
from etl_core.protocol.segment import PADDING, Segment
from etl_core.protocol.transactions import find_transactions
from etl_core.protocol.walsender import XLOG_DATA_HEADER_LENGTH
from etl_core.schema.table import ReplicaIdentity, TableSchema
from etl_core.testing.destination_model import check_changes
from etl_core.testing.source_model import SourceModel, SourceTable


def build_frames() -> tuple[TableSchema, list[bytes]]:
    """Every form of row message of one table: key and old tuples, NULL, unchanged, empty text."""
    source = SourceModel()
    columns = {"note": "text", "id": "int4", "body": "text", "at": "timestamptz", "price": "numeric", "on": "bool"}
    table = source.create("orders", columns, key=("id",), toasted=("body",))
    source.insert(table, id=1, note="", body="long", at="2024-02-29 12:00:00+00", price="1.50", on="t")
    source.insert(table, id=2, body="long")
    source.update(table, (1,), note="new")
    source.update(table, (1,), id=3)
    source.delete(table, (2,))
    full = SourceTable(table.schema, table.toasted, table.rows)
    full.schema = TableSchema(table.table_id, table.schema.name, table.schema.columns, ("id",), ReplicaIdentity.FULL)
    source.update(full, (3,), note=None)
    source.delete(full, (3,))
    source.commit()
    return table.schema, [item for item in source.stream() if isinstance(item, bytes)]


HEAD = b"w" + bytes(XLOG_DATA_HEADER_LENGTH - 1)
SCHEMA, FRAMES = build_frames()
LENGTHS = [len(frame) for frame in FRAMES]


def decode(
    frames: list[bytes], on_table_error: Callable[[TableId, TableError], None] | None = None
) -> list[TableChanges]:
    segment = Segment()
    for frame in frames:
        segment.append(frame)
    bounds = segment.bounds(0, 0)
    find_transactions(np.frombuffer(segment.data, np.uint8), bounds, open_lsn=Lsn(1), after=ZERO)
    found, _ = segment.split(len(frames), segment.size, Lsn(1), frozenset())
    return list(decode_frames(found, {SCHEMA.table_id: SCHEMA}, {SCHEMA.table_id: ZERO}, on_table_error))


def decode_or_refuse(frames: list[bytes]) -> None:
    try:
        parts = decode(frames)
    except (MalformedMessage, TableError):
        return
    for changes in parts:
        assert changes.counts.rows <= len(frames)
        # A text may have become invalid UTF-8, which the decoder leaves to the destination.
        with contextlib.suppress(UnicodeDecodeError, pa.ArrowInvalid):
            check_changes(changes)


def test_the_frames_decode_as_they_are() -> None:
    (changes,) = decode(FRAMES)
    check_changes(changes)
    assert (changes.counts.inserted, changes.counts.updated, changes.counts.deleted) == (2, 3, 2)


def test_an_update_of_a_row_that_has_gone_stops_its_table() -> None:
    leaves, updates = FRAMES[3], FRAMES[2]
    with pytest.raises(TableError, match=r"^public\.orders: an update follows the delete of its row") as raised:
        decode([leaves, updates])
    assert raised.value.table == "public.orders"
    assert raised.value.hint

    told: list[tuple[TableId, str]] = []
    assert decode([leaves, updates], lambda table_id, error: told.append((table_id, str(error)))) == []
    assert told == [(SCHEMA.table_id, str(raised.value))]


def test_an_internal_error_stops_its_table_and_shows_no_value(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    value = "hunter2"

    def fail(*_: object, **__: object) -> TableChanges:
        raise KeyError(value)

    monkeypatch.setattr(decoder, "_plan_table", fail)
    with pytest.raises(
        TableError, match=r"internal error while decoding changes of public\.orders: KeyError"
    ) as raised:
        decode(FRAMES)
    assert raised.value.__suppress_context__
    assert value not in str(raised.value) + caplog.text
    assert "test_malformed.py" in caplog.text, "the log says where"


@given(number=st.integers(0, len(FRAMES) - 1), cut=st.integers(1, max(LENGTHS)), alone=st.booleans())
@settings(max_examples=500)
def test_a_frame_cut_short_is_malformed(number: int, cut: int, alone: bool) -> None:
    frame = FRAMES[number]
    short = frame[: -(1 + cut % len(frame))] if cut % len(frame) else frame[:-1]
    frames = [short] if alone else [*FRAMES[:number], short, *FRAMES[number + 1 :]]
    with pytest.raises(MalformedMessage):
        decode(frames)


@given(
    number=st.integers(0, len(FRAMES) - 1),
    position=st.integers(XLOG_DATA_HEADER_LENGTH, max(LENGTHS) - 1),
    flip=st.integers(1, 255),
    alone=st.booleans(),
)
@settings(max_examples=1000)
def test_a_flipped_byte_is_refused_or_read(number: int, position: int, flip: int, alone: bool) -> None:
    frame = bytearray(FRAMES[number])
    frame[XLOG_DATA_HEADER_LENGTH + (position - XLOG_DATA_HEADER_LENGTH) % (len(frame) - XLOG_DATA_HEADER_LENGTH)] ^= (
        flip
    )
    frames = [bytes(frame)] if alone else [*FRAMES[:number], bytes(frame), *FRAMES[number + 1 :]]
    decode_or_refuse(frames)


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=4))
@example([b"N\x00\x06"])
@settings(max_examples=500)
def test_any_bytes_behind_the_relation(bodies: list[bytes]) -> None:
    head = HEAD
    relation = struct.pack("!I", SCHEMA.table_id)
    decode_or_refuse(
        [head + tag + relation + body for tag, body in zip((b"I", b"U", b"D", b"U"), bodies, strict=False)]
    )


def malformed(frame: bytes, *, match: str) -> int:
    with pytest.raises(MalformedMessage, match=match) as caught:
        decode([frame])
    return caught.value.offset


def insert(*tuple_bytes: bytes) -> bytes:
    head = HEAD + b"I" + struct.pack("!I", SCHEMA.table_id)
    return head + b"N" + struct.pack("!H", len(tuple_bytes)) + b"".join(tuple_bytes)


def test_a_length_beyond_the_buffer_in_the_last_column_of_the_last_frame() -> None:
    null = b"n"
    frame = insert(null, b"t\0\0\0\x011", null, null, null, b"t\x7f\xff\xff\xfft")
    malformed(frame, match="does not end with its message")


@pytest.mark.parametrize("beyond", range(1, 2 * len(PADDING)))
def test_a_length_that_ends_in_the_padding(beyond: int) -> None:
    null = b"n"
    frame = insert(null, b"t\0\0\0\x011", null, null, null, b"t" + struct.pack("!I", 1 + beyond) + b"t")
    malformed(frame, match="does not end with its message")


def test_a_length_one_too_long_ends_in_the_next_frame() -> None:
    null = b"n"
    frame = insert(null, b"t\0\0\0\x011", null, null, null, b"t\0\0\0\x02t")
    with pytest.raises(MalformedMessage, match="does not end with its message"):
        decode([frame, FRAMES[0]])


def test_another_number_of_columns_says_where() -> None:
    assert malformed(insert(b"n", b"n"), match="does not have 6 columns") == 6


def test_a_binary_value_is_not_expected() -> None:
    assert malformed(insert(b"b\0\0\0\x01\x01", *[b"n"] * 5), match="unknown kind of column value") == 8


@pytest.mark.parametrize(("tag", "kind"), [(b"I", b"K"), (b"I", b"O"), (b"D", b"N"), (b"X", b"N"), (b"U", b"X")])
def test_a_tuple_that_does_not_belong_to_its_message(tag: bytes, kind: bytes) -> None:
    frame = bytearray(FRAMES[0])
    frame[XLOG_DATA_HEADER_LENGTH : XLOG_DATA_HEADER_LENGTH + 1] = tag
    frame[XLOG_DATA_HEADER_LENGTH + 5 : XLOG_DATA_HEADER_LENGTH + 6] = kind
    assert malformed(bytes(frame), match="not an insert, update or delete") == 5


def test_an_update_with_only_a_key_tuple() -> None:
    delete = next(frame for frame in FRAMES if frame[XLOG_DATA_HEADER_LENGTH : XLOG_DATA_HEADER_LENGTH + 1] == b"D")
    update = delete[:XLOG_DATA_HEADER_LENGTH] + b"U" + delete[XLOG_DATA_HEADER_LENGTH + 1 :]
    malformed(update, match="an update without a new tuple")


def test_a_relation_no_message_described() -> None:
    frame = bytearray(FRAMES[0])
    frame[XLOG_DATA_HEADER_LENGTH + 1] ^= 0x80
    assert malformed(bytes(frame), match="relation 2147500032, which no message has described") == 1


def test_a_truncation_of_a_relation_no_message_described() -> None:
    frames, _ = Segment().split(0, 0, Lsn(1), frozenset({TableId(7)}))
    with pytest.raises(MalformedMessage, match="relation 7"):
        list(decode_frames(frames, {SCHEMA.table_id: SCHEMA}, {TableId(7): ZERO}))


def test_changes_outside_of_a_transaction() -> None:
    segment = Segment(bytearray(FRAMES[0]), [len(FRAMES[0])], len(FRAMES[0]))
    frames, _ = segment.split(1, segment.size, None, frozenset())
    with pytest.raises(MalformedMessage, match="outside of a transaction"):
        list(decode_frames(frames, {SCHEMA.table_id: SCHEMA}, {SCHEMA.table_id: ZERO}))


def test_a_frame_too_short_for_a_relation() -> None:
    with pytest.raises(MalformedMessage, match="too short"):
        decode([FRAMES[0][: XLOG_DATA_HEADER_LENGTH + 1]])
