"""pgoutput: what is built is parsed back, and bytes that are not a message raise MalformedMessage or parse."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl_core.errors import MalformedMessage
from etl_core.identifiers import TableId
from etl_core.lsn import Lsn
from etl_core.protocol.messages import (
    NULL,
    UNCHANGED,
    Begin,
    BeginPrepare,
    ColumnKind,
    Commit,
    CommitPrepared,
    Delete,
    Insert,
    LogicalDecodingMessage,
    Message,
    Origin,
    Prepare,
    Relation,
    RelationColumn,
    RollbackPrepared,
    StreamAbort,
    StreamCommit,
    StreamPrepare,
    StreamStart,
    StreamStop,
    Truncate,
    TupleColumn,
    TupleData,
    Type,
    Update,
)
from etl_core.protocol.pgoutput import parse_message
from etl_core.schema.table import ReplicaIdentity
from etl_core.testing.pgoutput import build_message, build_tuple

uint32 = st.integers(0, 2**32 - 1)
table_ids = uint32.map(TableId)
times = st.integers(-(2**63), 2**63 - 1)
lsns = st.integers(0, 2**64 - 1).map(Lsn)
positions = st.integers(1, 2**64 - 1).map(Lsn)
names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
namespaces = names.map(lambda name: name or "pg_catalog")
tuples = st.builds(
    TupleData,
    st.lists(
        st.just(NULL)
        | st.just(UNCHANGED)
        | st.builds(TupleColumn, st.sampled_from([ColumnKind.TEXT, ColumnKind.BINARY]), st.binary(max_size=12)),
        max_size=5,
    ).map(tuple),
)
columns = st.builds(RelationColumn, st.booleans(), names, uint32, st.integers(-(2**31), 2**31 - 1))


def changes(xid: st.SearchStrategy[int | None]) -> st.SearchStrategy[Message]:
    relation = st.builds(
        Relation,
        xid,
        table_ids,
        namespaces,
        names,
        st.sampled_from(ReplicaIdentity),
        st.lists(columns, max_size=4).map(tuple),
    )
    return st.one_of(
        st.builds(LogicalDecodingMessage, xid, st.booleans(), lsns, names, st.binary(max_size=12)),
        relation,
        st.builds(Type, xid, uint32, namespaces, names),
        st.builds(Insert, xid, table_ids, tuples),
        st.builds(Update, xid, table_ids, st.none(), st.none(), tuples),
        st.builds(Update, xid, table_ids, tuples, st.none(), tuples),
        st.builds(Update, xid, table_ids, st.none(), tuples, tuples),
        st.builds(Delete, xid, table_ids, tuples, st.none()),
        st.builds(Delete, xid, table_ids, st.none(), tuples),
        st.builds(Truncate, xid, st.booleans(), st.booleans(), st.lists(table_ids, max_size=4).map(tuple)),
    )


since_1 = st.one_of(
    st.builds(Begin, positions, times, uint32),
    st.builds(Commit, positions, positions, times),
    st.builds(Origin, lsns, names),
)
since_2 = st.one_of(
    st.builds(StreamStart, uint32, st.booleans()),
    st.builds(StreamStop),
    st.builds(StreamCommit, uint32, positions, positions, times),
    st.builds(StreamAbort, uint32, uint32, st.none(), st.none()),
)
since_3 = st.one_of(
    st.builds(BeginPrepare, positions, positions, times, uint32, names),
    st.builds(Prepare, positions, positions, times, uint32, names),
    st.builds(CommitPrepared, positions, positions, times, uint32, names),
    st.builds(RollbackPrepared, positions, positions, times, times, uint32, names),
    st.builds(StreamPrepare, positions, positions, times, uint32, names),
)
since_4 = st.builds(StreamAbort, uint32, uint32, lsns, times)

# message, the protocol version that has it, whether it stands in a streamed block
messages: st.SearchStrategy[tuple[Message, int, bool]] = st.one_of(
    st.tuples(changes(st.none()), st.integers(1, 4), st.just(False)),
    st.tuples(changes(uint32), st.integers(2, 4), st.just(True)),
    st.tuples(since_1, st.integers(1, 4), st.booleans()),
    st.tuples(since_2, st.integers(2, 4), st.booleans()),
    st.tuples(since_3, st.integers(3, 4), st.booleans()),
    st.tuples(since_4, st.just(4), st.booleans()),
)


def parses_or_is_malformed(data: bytes, version: int, in_stream: bool) -> None:
    """Any other exception fails the test."""
    with suppress(MalformedMessage):
        parse_message(data, protocol_version=version, in_stream=in_stream)


@given(messages)
def test_what_is_built_is_parsed_back(sample: tuple[Message, int, bool]) -> None:
    message, version, in_stream = sample
    data = build_message(message)
    assert parse_message(data, protocol_version=version, in_stream=in_stream) == message
    assert parse_message(memoryview(data), protocol_version=version, in_stream=in_stream) == message


@given(messages)
def test_a_message_cut_at_any_byte_is_malformed(sample: tuple[Message, int, bool]) -> None:
    message, version, in_stream = sample
    data = build_message(message)
    for length in range(len(data)):
        if isinstance(message, StreamAbort) and message.abort_lsn is not None and length == 9:
            continue  # a whole Stream Abort without its optional position
        with pytest.raises(MalformedMessage) as caught:
            parse_message(data[:length], protocol_version=version, in_stream=in_stream)
        assert caught.value.offset <= length


@given(messages, st.integers(1, 255))
def test_a_flipped_byte_is_malformed_or_another_message(sample: tuple[Message, int, bool], flip: int) -> None:
    message, version, in_stream = sample
    data = bytearray(build_message(message))
    for at in range(len(data)):
        data[at] ^= flip
        parses_or_is_malformed(bytes(data), version, in_stream)
        data[at] ^= flip


@settings(max_examples=500)
@given(st.sampled_from(b"BMCORYIUDTSEcAbPKrp"), st.binary(max_size=60), st.integers(1, 4), st.booleans())
def test_any_bytes_are_malformed_or_a_message(tag: int, rest: bytes, version: int, in_stream: bool) -> None:
    parses_or_is_malformed(bytes([tag]) + rest, version, in_stream)


@given(messages, st.binary(min_size=1, max_size=4))
def test_a_message_is_consumed_to_its_last_byte(sample: tuple[Message, int, bool], extra: bytes) -> None:
    message, version, in_stream = sample
    data = build_message(message)
    with pytest.raises(MalformedMessage):
        parse_message(data + extra, protocol_version=version, in_stream=in_stream)


@given(since_2, st.just(1))
@settings(max_examples=20)
def test_streaming_messages_need_version_2(message: Message, version: int) -> None:
    with pytest.raises(MalformedMessage, match="protocol version 1") as caught:
        parse_message(build_message(message), protocol_version=version)
    assert caught.value.offset == 0


@given(since_3, st.integers(1, 2))
@settings(max_examples=20)
def test_two_phase_messages_need_version_3(message: Message, version: int) -> None:
    with pytest.raises(MalformedMessage, match=f"protocol version {version}"):
        parse_message(build_message(message), protocol_version=version)


@given(since_4, st.integers(2, 3))
@settings(max_examples=20)
def test_the_position_of_an_abort_needs_version_4(message: Message, version: int) -> None:
    with pytest.raises(MalformedMessage, match=r"trailing bytes \(16\) at byte 9"):
        parse_message(build_message(message), protocol_version=version)


@pytest.mark.parametrize("version", [0, 5, -1])
def test_there_are_four_protocol_versions(version: int) -> None:
    with pytest.raises(ValueError, match="versions 1 to 4"):
        parse_message(b"E", protocol_version=version)


LONG = (2**64 - 1).to_bytes(8, "big")

WRONG = {
    "empty": (b"", 0),
    "unknown tag": (b"Z", 0),
    "commit flags": (b"C\x01" + b"\x01" * 24, 1),
    "begin at 0/0": (b"B" + bytes(8) + b"\x01" * 12, 1),
    "commit that ends at 0/0": (b"C\x00" + b"\x01" * 8 + bytes(8) + b"\x01" * 8, 10),
    "message flags": (b"M\x02" + bytes(13), 1),
    "message longer than its frame": (b"M\x01" + LONG + b"p\0" + b"\x7f\xff\xff\xff" + b"x", 16),
    "negative length": (b"I\0\0\0\x01N\0\x01t\xff\xff\xff\xff", 9),
    "length beyond the message": (b"I\0\0\0\x01N\0\x01t\0\0\0\x02x", 13),
    "unknown column kind": (b"I\0\0\0\x01N\0\x01x", 8),
    "insert of a key": (b"I\0\0\0\x01K\0\0", 5),
    "update with two new tuples": (b"U\0\0\0\x01N\0\0N\0\0", 8),
    "update with key and old": (b"U\0\0\0\x01K\0\0O\0\0N\0\0", 8),
    "delete of a new tuple": (b"D\0\0\0\x01N\0\0", 5),
    "string without end": (b"O" + LONG + b"name", 9),
    "string that is not UTF-8": (b"O" + LONG + b"na\xff\0", 11),
    "replica identity": (b"R\0\0\0\x01s\0t\0x\0\0", 9),
    "column flags": (b"R\0\0\0\x01s\0t\0d\0\x01\x02c\0" + bytes(8), 12),
    "truncate options": (b"T\0\0\0\x00\x04", 5),
    "four thousand million relations": (b"T\xff\xff\xff\xff\x00", 1),
}


@pytest.mark.parametrize(("data", "offset"), WRONG.values(), ids=WRONG.keys())
def test_the_error_names_the_first_wrong_byte(data: bytes, offset: int) -> None:
    with pytest.raises(MalformedMessage, match=f"at byte {offset}$") as caught:
        parse_message(data)
    assert caught.value.offset == offset


def test_an_error_never_holds_row_values() -> None:
    data = build_message(Insert(None, TableId(1), build_tuple("secret", "more secret")))
    with pytest.raises(MalformedMessage) as caught:
        parse_message(data[:-1])
    assert "secret" not in str(caught.value)
    assert str(caught.value).startswith("Insert: ")


def test_values_from_the_manual_byte_by_byte() -> None:
    """One update written by hand, so that builder and parser cannot agree on the same mistake."""
    data = bytes.fromhex("55 00000309 ffffffff 4b 0002 74 00000001 31 6e 4e 0002 75 62 00000002 0001")
    assert parse_message(data, protocol_version=2, in_stream=True) == Update(
        xid=777,
        table_id=TableId(2**32 - 1),
        key=TupleData((TupleColumn(ColumnKind.TEXT, b"1"), NULL)),
        old=None,
        new=TupleData((UNCHANGED, TupleColumn(ColumnKind.BINARY, b"\0\x01"))),
    )


def test_an_empty_namespace_is_pg_catalog() -> None:
    assert parse_message(b"Y\0\0\0\x19\0text\0") == Type(None, 25, "pg_catalog", "text")
