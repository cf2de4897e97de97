"""A keyed 128-bit hash of each value of a text column, computed in columns.

A value of up to 256 bytes is hashed by SipHash-2-4 with 128 bits of output (https://www.aumasson.jp/siphash/), a
pseudorandom function whose few operations on 64-bit words suit numpy; a longer one by keyed BLAKE2b (RFC 7693), which
`hashlib` has. Both keys follow from the person's. Without the key nobody can tell which value a hash is of, but by
guessing the key; two values of one hash are not to be expected among 2^50 of them.

Measured with addresses of 20 bytes: 0.31 µs of CPU a value, Arrow to Arrow; `hashlib.blake2b` called for each 0.8 µs.
A column costs 0.2 ms a batch besides, however few values are in it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from etl_core.values.text import Array, Positions, text_bytes, variable_width

Words = NDArray[np.uint64]

_LONG = 256
"""Bytes from which on a value costs less by BLAKE2b."""
_BLOCK = 1 << 12
"""Values at a time: their state stays in the processor's cache."""
_DIGEST = 16
_HEX = np.frombuffer(b"".join(b"%02x" % byte for byte in range(256)), np.uint16)
_INITIAL = [0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573]


def _bits(*lines: int) -> tuple[Words, Words]:
    left = np.array(lines, np.uint64).reshape(-1, 1)
    return left, np.uint64(64) - left


_FIRST, _SECOND = _bits(13, 16), _bits(21, 17)
_HALF = np.full(1, 32, np.uint64), np.full(1, 32, np.uint64)


@dataclass(frozen=True, slots=True, repr=False)
class HashKey:
    """What follows from a person's key: `short` (two words) for SipHash, `long` for BLAKE2b.

    `check` tells whether two keys are the same, and may be stored beside hashes.
    """

    short: tuple[int, int]
    long: bytes
    check: str

    @classmethod
    def of(cls, key: str) -> HashKey:
        short = _derived(key, b"etl short")
        words = int.from_bytes(short[:8], "little"), int.from_bytes(short[8:], "little")
        return cls(words, _derived(key, b"etl long"), _derived(key, b"etl check")[:8].hex())

    def hash_text(self, text: bytes) -> str:
        """The hash of one value, in hexadecimal."""
        return str(self.hash_column(variable_width(pa.string(), *_one(text), None))[0].as_py())

    def hash_column(self, text: Array) -> Array:
        """A string array: the hash of each value of a string or binary array, 32 hexadecimal digits; NULL of NULL."""
        found = text_bytes(text)
        lengths = np.diff(found.offsets)
        digests = np.empty((len(found), 2), "<u8")
        starts = found.offsets[:-1]
        data = found.data if found.data.size >= 8 else np.concatenate([found.data, np.zeros(8, np.uint8)])
        for first in range(0, len(found), _BLOCK):
            some = slice(first, first + _BLOCK)
            digests[some] = _siphash(self.short, data, starts[some], np.minimum(lengths[some], _LONG))
        for at in np.flatnonzero(lengths > _LONG).tolist():
            value = found.data[starts[at] : starts[at] + lengths[at]]
            digest = hashlib.blake2b(value.data, key=self.long, digest_size=_DIGEST).digest()
            digests[at] = np.frombuffer(digest, "<u8")
        shown = _HEX[digests.view(np.uint8)].view(np.uint8).reshape(-1)
        width = np.full(len(found), 2 * _DIGEST, np.int64)
        if found.valid is not None:
            shown = shown.reshape(len(found), 2 * _DIGEST)[found.valid].reshape(-1)
            width[~found.valid] = 0
        offsets = np.zeros(len(found) + 1, np.int64)
        np.cumsum(width, out=offsets[1:])
        return variable_width(pa.string(), shown, offsets, found.valid)


def _derived(key: str, purpose: bytes) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=16, person=purpose).digest()


def _one(text: bytes) -> tuple[NDArray[np.uint8], Positions]:
    return np.frombuffer(text, np.uint8), np.array([0, len(text)], np.int64)


def _siphash(key: tuple[int, int], data: NDArray[np.uint8], starts: Positions, lengths: Positions) -> Words:
    """Two words for each value `data[start:start + length]`, at most 256 bytes long."""
    words: Words = np.ndarray((data.size - 7,), "<u8", data, strides=(1,))
    counts = (lengths >> 3).astype(np.uint8)
    # Those with the most words first, so that the ones that are done drop out at the end.
    order = np.argsort(counts, kind="stable")[::-1]
    at, counts, lengths = starts[order], counts[order], lengths[order]
    state = _State(key, at.size)
    last = _last_words(words, at, lengths)
    most = int(counts[0]) if counts.size else 0
    for number in range(most):
        live = int(np.searchsorted(-counts.astype(np.int16), -number, "left"))
        state.take(words[at[:live] + 8 * number], live)
    state.take(last, at.size)
    digests = np.empty((at.size, 2), np.uint64)
    digests[order] = state.finish()
    return digests


def _last_words(words: Words, starts: Positions, lengths: Positions) -> Words:
    """The bytes after the last whole word of each value, and its length in the highest byte."""
    ends = starts + lengths
    first = np.maximum(ends - 8, 0)
    last: Words = words[first]
    early = np.flatnonzero(ends < 8)
    last[early] <<= (np.minimum(8 - ends[early], 7) * 8).astype(np.uint64)
    last >>= ((7 - (lengths & 7)) * 8).astype(np.uint64)
    last >>= np.uint64(8)
    last |= lengths.astype(np.uint64) << np.uint64(56)
    return last


class _State:
    """The four words of SipHash, for so many values at once: v0 and v2 in `_even`, v1 and v3 in `_odd`.

    Both lines of a step are done by one call, as for few values calls cost more than what they do.
    """

    def __init__(self, key: tuple[int, int], count: int) -> None:
        self._even, self._odd = (np.empty((2, count), np.uint64) for _ in range(2))
        for line in range(2):
            self._even[line] = _INITIAL[2 * line] ^ key[0]
            self._odd[line] = _INITIAL[2 * line + 1] ^ key[1]
        self._odd[0] ^= np.uint64(0xEE)
        self._scratch = np.empty((2, count), np.uint64)

    def take(self, words: Words, live: int) -> None:
        """One more word of each of the first `live` values."""
        self._odd[1, :live] ^= words
        self._rounds(2, live)
        self._even[0, :live] ^= words

    def finish(self) -> Words:
        count = self._scratch.shape[1]
        digests = np.empty((count, 2), np.uint64)
        self._even[1] ^= np.uint64(0xEE)
        self._rounds(4, count)
        digests[:, 0] = self._folded()
        self._odd[0] ^= np.uint64(0xDD)
        self._rounds(4, count)
        digests[:, 1] = self._folded()
        return digests

    def _folded(self) -> Words:
        both = self._even ^ self._odd
        folded: Words = both[0] ^ both[1]
        return folded

    def _rounds(self, number: int, live: int) -> None:
        even, odd, scratch = self._even[:, :live], self._odd[:, :live], self._scratch[:, :live]
        for _ in range(number):
            for bits, line in ((_FIRST, 0), (_SECOND, 1)):
                even += odd
                _rotate(odd, bits, scratch)
                odd ^= even
                _rotate(even[line], _HALF, scratch[0])
                odd = odd[::-1]


def _rotate(words: Words, bits: tuple[Words, Words], scratch: Words) -> None:
    """To the left, in place, by so many bits; what is left of 64 beside them."""
    left, right = bits
    np.right_shift(words, right, out=scratch)
    np.left_shift(words, left, out=words)
    words |= scratch
