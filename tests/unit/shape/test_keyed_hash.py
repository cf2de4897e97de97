"""The keyed hash: the published vectors, and every way to the same value."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from etl_core.shape.keyed_hash import HashKey, _siphash

KEY = HashKey.of("correct horse battery staple")
# https://github.com/veorq/SipHash/blob/master/vectors.h (vectors_sip128): the key 00 01 … 0f, the message 00 01 … of
# so many bytes. Those beyond 63 bytes are `openssl mac -macopt hexkey:… SIPHASH` of OpenSSL 3.0.
VECTORS = {
    0: "a3817f04ba25a8e66df67214c7550293",
    1: "da87c1d86b99af44347659119b22fc45",
    7: "a1f1ebbed8dbc153c0b84aa61ff08239",
    8: "3b62a9ba6258f5610f83e264f31497b4",
    9: "264499060ad9baabc47f8b02bb6d71ed",
    15: "5493e99933b0a8117e08ec0f97cfc3d9",
    16: "6ee2a4ca67b054bbfd3315bf85230577",
    63: "5150d1772f50834a503e069a973fbd7c",
    64: "1eaf077dc0d4cd3f8cad4d383658a74b",
    255: "1c9bb67528165f8e468248e3799b0eab",
    256: "67a00304d3834c4612eaee7b5f579acb",
}


def test_the_published_vectors_all_at_once() -> None:
    messages = [bytes(at & 255 for at in range(length)) for length in VECTORS]
    data = np.frombuffer(b"".join(messages), np.uint8)
    lengths = np.array([len(message) for message in messages])
    key = int.from_bytes(bytes(range(8)), "little"), int.from_bytes(bytes(range(8, 16)), "little")
    found = _siphash(key, data, np.cumsum(lengths) - lengths, lengths)
    assert [row.tobytes().hex() for row in found.astype("<u8")] == list(VECTORS.values())


TEXTS = st.lists(st.one_of(st.none(), st.text(max_size=20), st.text("aé", min_size=120, max_size=300)), max_size=40)


@settings(deadline=None)
@given(TEXTS, st.integers(0, 3))
def test_a_value_has_one_hash_wherever_it_stands(texts: list[str | None], skipped: int) -> None:
    hashed = KEY.hash_column(pa.array(texts, pa.string()).slice(skipped)).to_pylist()
    assert hashed == [None if text is None else KEY.hash_text(text.encode()) for text in texts[skipped:]]
    assert len(set(hashed)) == len(set(texts[skipped:]))
    assert all(value is None or (len(value) == 32 and set(value) <= set("0123456789abcdef")) for value in hashed)


def test_a_long_value_is_hashed_by_blake2b() -> None:
    text = b"x" * 257
    assert KEY.hash_text(text) == hashlib.blake2b(text, key=KEY.long, digest_size=16).hexdigest()


def test_a_hidden_value_beneath_a_null_makes_no_difference() -> None:
    texts = pa.array(["a", "secret", "b"])
    hiding = pa.Array.from_buffers(pa.string(), 3, [pa.py_buffer(b"\x05"), *texts.buffers()[1:]])
    assert KEY.hash_column(hiding).to_pylist() == KEY.hash_column(pa.array(["a", None, "b"])).to_pylist()


def test_the_hash_is_for_ever() -> None:
    """Whoever changes these changes what every table in the world holds."""
    assert KEY.hash_text(b"ada@example.com") == "17d5d6c92740db99a3133bc12a03bdde"
    assert KEY.hash_text(b"ada@example.com" * 20) == "dd4349b042997bad084468f322b35425"


def test_another_key_gives_another_hash_and_another_check() -> None:
    other = HashKey.of("correct horse battery staples")
    assert other.hash_text(b"a") != KEY.hash_text(b"a")
    assert other.check != KEY.check
    assert "staple" not in repr(KEY)
    assert KEY.long.hex() not in repr(KEY)
