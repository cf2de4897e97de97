"""Numbers, sizes, times; results as lines."""

from __future__ import annotations

import pytest

from etl_core.batch import ChangeCounts
from etl_core.cli.doctor import finding_lines
from etl_core.cli.replicate import failure_lines
from etl_core.cli.texts import columns, counts, duration, plural, rate, size, told_ignored
from etl_core.cli.verify import comparison_lines
from etl_core.errors import StateConflict, TableError
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.replication.compare import Comparison, KeyRange
from etl_core.source.finding import Finding, Severity
from etl_core.state.store import TableStatus
from etl_core.state.table_state import TableState


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (119.4, "119 s"),
        (120, "2 min"),
        (200, "3 min 20 s"),
        (7199, "119 min 59 s"),
        (18725, "5 h 12 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**30, "1.0 GiB"), (2**50, "1,024.0 TiB"), (-2048, "-2.0 KiB")],
)
def test_size(value: int, text: str) -> None:
    assert size(value) == text


def test_small_words() -> None:
    assert counts(ChangeCounts(1200, 3, 0)) == "+1,200 ~3"
    assert counts(ChangeCounts(truncated=1)) == "emptied"
    assert counts(ChangeCounts()) == "0"
    assert plural(1, "row") == "1 row"
    assert plural(1000, "batch", "batches") == "1,000 batches"
    assert rate(10, 0) == "0 rows/s"
    assert told_ignored(["column a (added)", "column b (dropped)"]) == "ignored: column a (added), column b (dropped)"
    assert columns([("a", "bb", ""), ("ccc", "d", "e")]) == ["a    bb", "ccc  d   e"]


def test_findings_are_grouped_the_worst_first() -> None:
    lines = finding_lines(
        [
            Finding(Severity.OK, "version", "PostgreSQL 18"),
            Finding(Severity.UNSAFE, "rights", "one", "GRANT a;"),
            Finding(Severity.WARNING, "limit", "low"),
            Finding(Severity.UNSAFE, "rights", "two", "GRANT b"),
        ]
    )
    assert [line.split() for line in lines[:-1]] == [
        ["UNSAFE", "rights", "one"],
        ["GRANT", "a;"],
        ["two"],
        ["GRANT", "b;"],
        ["warning", "limit", "low"],
        ["ok", "version", "PostgreSQL", "18"],
        [],
    ]
    assert lines[-1] == "not safe to replicate: fix the 2 findings marked UNSAFE first (1 warning)"
    assert finding_lines([])[-1] == "ready to replicate"


def test_failures_are_told_once_each() -> None:
    orders = TableStatus(
        TableId(1), TableName("public", "orders"), TableState.ERRORED, 1, error="it is broken", hint="mend it"
    )
    errors = [TableError("it is broken", table="public.orders", hint="mend it"), StateConflict("someone was first")]
    assert failure_lines([orders], errors) == [
        "public.orders  failed: it is broken",
        "  → mend it",
        "someone was first",
    ]
    assert failure_lines([], []) == []


def test_comparisons() -> None:
    orders, items, carts = (TableName("public", name) for name in ("orders", "items", "carts"))
    equal = Comparison(orders, 1000, 1000, "00ff", is_equal=True, lsn=Lsn(0x10))
    assert comparison_lines([equal]) == [
        "public.orders  equal  1,000 rows  content 00ff  at 0/10",
        "equal: 1 table, 1,000 rows",
    ]
    different = Comparison(
        items, 3, 2, "aa", False, missing=2, extra=1, ranges=(KeyRange("1", "1", 1), KeyRange("5", "9", 2))
    )
    lines = comparison_lines([equal, different, Comparison(carts, 0, 0, "", False, problem="not compared: why")])
    assert lines[1].split()[:4] == ["public.items", "differs", "3", "rows"]
    assert lines[2:5] == [
        "    3 rows in the source, 2 in the destination: 2 missing, 1 extra, 0 changed",
        "    key 1: 1 row",
        "    key 5 … 9: 2 rows",
    ]
    assert lines[5:] == [
        "public.carts   not compared",
        "    not compared: why",
        "1 table differs, 1 table not compared, 1 equal",
    ]
