"""Hints name what is there: in Dagster a job or a button, never a command that needs a file a Dagster user has not."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import etl_core
from etl_core.errors import COPIED_AGAIN, ConfigError, SourceChanged
from etl_core.replication import identity
from etl_dagster.failures import failure_of
from etl_dagster.hints import in_dagster

_COMMAND = re.compile(r"\betl (?:run|sync|stream|resync|approve|pause|resume|verify|status|teardown|backup)\b")


@pytest.mark.parametrize(
    ("hint", "said"),
    [
        (
            identity._START_AGAIN,
            "if that is intended: launch job shop_control with reset, which has every table copied again "
            "behind the swap",
        ),
        (
            "copy it again: etl resync public.orders",
            "copy it again: launch job shop_control with resync: {{tables: [{}]}}",
        ),
        (
            "to apply it: etl approve public.orders; or wait",
            "to apply it: launch job shop_control with approve: {{tables: [{}]}}; or wait",
        ),
        ('then: etl resync public."Line Items"', "then: launch job shop_control with resync: {{tables: [{}]}}"),
        (COPIED_AGAIN, "the sensor copies it by itself, a materialisation does at once; readers keep the old copy"),
        ("raise max_wal_senders", "raise max_wal_senders"),
    ],
)
def test_a_command_becomes_what_a_person_launches(hint: str, said: str) -> None:
    table = "'public.\"Line Items\"'" if "Line" in hint else "public.orders"
    assert in_dagster(hint, "shop") == said.format(table)


def test_a_failure_says_what_to_do_where_alerts_show_it() -> None:
    failure = failure_of(SourceChanged("the slot is gone", hint=identity._START_AGAIN), "shop")
    assert str(failure.description).startswith("the slot is gone → if that is intended: launch job shop_control")
    assert str(failure.metadata["hint"].value) in str(failure.description)
    assert failure_of(ConfigError("no table is named")).description == "no table is named"


def _hints() -> Iterator[tuple[str, str]]:
    """The texts of the engine in which a command is named, with what a table's name stands for filled in."""
    root = Path(etl_core.__file__).parent
    for path in sorted(root.rglob("*.py")):
        if {"cli", "testing"} & set(path.relative_to(root).parts):
            continue
        tree = ast.parse(path.read_text())
        documented = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            if id(node) in documented | parts:
                continue
            if isinstance(node, ast.JoinedStr):
                text = "".join(str(p.value) if isinstance(p, ast.Constant) else "public.orders" for p in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            else:
                continue
            if _COMMAND.search(text):
                yield f"{path.name}:{node.lineno}", text


def test_no_hint_of_the_engine_keeps_a_command() -> None:
    hints = dict(_hints())
    assert len(hints) > 20, "the search finds nothing any more"
    left = {where: said for where, text in hints.items() if _COMMAND.search(said := in_dagster(text, "shop"))}
    assert left == {}
