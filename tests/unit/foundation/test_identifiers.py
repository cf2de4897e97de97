"""Names as people write them, and the names of what a pipeline creates."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from etl_core.errors import ConfigError
from etl_core.identifiers import TableId, TableName, check_pipeline_name, main_slot_name, sync_slot_name

_PART = st.text(st.characters(blacklist_characters="\x00", blacklist_categories=["Cs"]), min_size=1, max_size=20)


@example("0", "\xa0")
@given(_PART, _PART)
def test_every_name_reads_as_it_prints(namespace: str, name: str) -> None:
    table = TableName(namespace, name)
    assert TableName.parse(str(table)) == table


@pytest.mark.parametrize(
    ("text", "namespace", "name"),
    [
        ("public.orders", "public", "orders"),
        ("orders", "public", "orders"),
        ("Sales.Orders", "sales", "orders"),
        ('"Sales"."Order Items"', "Sales", "Order Items"),
        ('a."b.c"', "a", "b.c"),
        ('a."say ""hi"""', "a", 'say "hi"'),
    ],
)
def test_reads_names_as_postgresql_does(text: str, namespace: str, name: str) -> None:
    assert TableName.parse(text) == TableName(namespace, name)


@pytest.mark.parametrize("text", ["", ".", "a.", ".a", "a.b.c", 'a."b', '""', "a..b", 'a"b"'])
def test_refuses_what_is_not_a_name(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TableName.parse(text)
    assert caught.value.hint


@pytest.mark.parametrize("name", ["shop", "a", "shop_2", "a" * 43])
def test_slot_names_of_a_pipeline_fit(name: str) -> None:
    assert check_pipeline_name(name) == name
    assert main_slot_name(name) == f"etl_{name}"
    longest, other = (sync_slot_name(name, TableId(2**32 - 1), copy) for copy in ("4f09ac", "4f09ad"))
    assert len(longest) <= 63
    assert re.fullmatch("[a-z0-9_]+", longest)
    assert longest != other
    assert longest != sync_slot_name(name, TableId(2**32 - 2), "4f09ac")


@pytest.mark.parametrize("name", ["", "Shop", "2shop", "shop-2", "shöp", "a" * 44, "shop;drop"])
def test_refuses_what_cannot_be_part_of_a_slot_name(name: str) -> None:
    with pytest.raises(ConfigError):
        check_pipeline_name(name)
