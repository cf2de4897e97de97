"""Which tables names and patterns select."""

from __future__ import annotations

import pytest

from etl_core.errors import ConfigError
from etl_core.identifiers import TableName
from etl_core.table_pattern import TableSelection, read_selection

ALL = ("public.orders", "public.audit_2024", "sales.orders", "sales.old", 'public."a*b"', '"Se.cret".pay')


def selected(*given: str) -> set[str]:
    selection = read_selection("source.tables", given, instead="say so")
    return {name for name in ALL if TableName.parse(name) in selection}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("public.*",), {"public.orders", "public.audit_2024", 'public."a*b"'}),
        (("*",), {"public.orders", "public.audit_2024", 'public."a*b"'}),
        (("*.orders",), {"public.orders", "sales.orders"}),
        (("public.*", "!public.audit_*"), {"public.orders", 'public."a*b"'}),
        (("!public.audit_*", "public.*"), {"public.orders", 'public."a*b"'}),
        (("!audit_*", "!sales.old"), {"public.orders", "sales.orders", 'public."a*b"', '"Se.cret".pay'}),
        (("sales.*", "!sales.*"), set()),
        (("sales.old", "sales.*", "!sales.*"), {"sales.old"}),
        (("orders", "SALES.*"), {"public.orders", "sales.orders", "sales.old"}),
        (('"a*b"',), {'public."a*b"'}),
        (('"Se.cret".*',), {'"Se.cret".pay'}),
        (("*.*", '!"Se.cret".*', "!sales.*"), {"public.orders", "public.audit_2024", 'public."a*b"'}),
        (('*."a*b"',), {'public."a*b"'}),
        (
            ("*.*", '!public."a*b"'),
            {"public.orders", "public.audit_2024", "sales.orders", "sales.old", '"Se.cret".pay'},
        ),
    ],
)
def test_a_name_beats_what_is_left_out_and_that_beats_a_pattern(given: tuple[str, ...], expected: set[str]) -> None:
    assert selected(*given) == expected


def test_a_list_of_names_is_closed_and_patterns_are_open() -> None:
    assert TableSelection().is_open
    assert not read_selection("t", ["orders"], instead="").is_open
    assert read_selection("t", ["orders", "sales.*"], instead="").is_open
    only_left_out = read_selection("t", ["!orders"], instead="")
    assert (only_left_out.is_open, only_left_out.asks_catalog) == (True, False)


@pytest.mark.parametrize(
    ("given", "field", "message"),
    [
        ((), "source.tables", "is empty"),
        (("orders", "public.orders"), "source.tables[1]", "public.orders is listed twice"),
        (("a.*", "a.*"), "source.tables[1]", "a.* is listed twice"),
        (("a.*", "!a.b", "!a.b"), "source.tables[2]", "!a.b is listed twice"),
        (("orders", "!audit"), "source.tables[1]", "leaves out of a list of names what is not in it"),
        (("a.b.*",), "source.tables[0]", "'a.b.*' is not a table name"),
        (("!",), "source.tables[0]", "'' is not a table name"),
    ],
)
def test_what_says_nothing_is_refused(given: tuple[str, ...], field: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_selection("source.tables", given, instead="leave it out")
    assert caught.value.field == field
    assert message in str(caught.value)
