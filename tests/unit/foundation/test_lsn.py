"""LSNs: PostgreSQL's text form, unsigned 64 bits, compared as numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl_core.lsn import ZERO, Lsn


@given(st.integers(0, 2**64 - 1))
def test_text_and_back(value: int) -> None:
    assert Lsn.parse(str(Lsn(value))) == value


def test_prints_as_pg_lsn() -> None:
    assert str(Lsn(0x16_B374D848)) == "16/B374D848"
    assert repr(ZERO) == "Lsn('0/0')"


def test_compares_as_a_number_not_as_text() -> None:
    assert Lsn.parse("9/0") < Lsn.parse("10/0")
    assert Lsn.parse("0/FFFFFFFF") < Lsn.parse("1/0")


@pytest.mark.parametrize(
    "text", ["", "/", "0", "0/", "/0", "0/G", "1_0/0", "+1/0", " 0/0", "123456789/0", "0/0/0", "0/-1"]
)
def test_refuses_what_is_not_an_lsn(text: str) -> None:
    with pytest.raises(ValueError, match="not an LSN"):
        Lsn.parse(text)


@pytest.mark.parametrize("value", [-1, 2**64])
def test_refuses_what_does_not_fit(value: int) -> None:
    with pytest.raises(ValueError, match="64-bit"):
        Lsn(value)
