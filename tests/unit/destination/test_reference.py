"""What is made of the declarations: a page, which must be current, and a JSON Schema, which must agree with them."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from etl_core.destination.declaration import DestinationType
from etl_core.destination.null import NullDestination
from etl_core.destination.options import Option
from etl_core.destination.reference import destination_schema, options_table
from etl_core.destination.registry import FoundType, built_in_types
from etl_core.errors import ConfigError
from scripts.write_docs import written_docs

TYPES = {
    **built_in_types(),
    "mine": DestinationType(
        build=lambda *_: NullDestination(),
        options=(
            Option("path", "A folder.", kind="path", required=True, example="out"),
            Option("token", "A secret.", secret=True),
            Option("size", "So large.", kind="size", default="64MiB"),
            Option("keep", "For so long.", kind="duration"),
            Option("workers", "So many.", kind="integer", default=4),
            Option("fast", "Or not.", kind="flag", default=False),
            Option("how", "How: a | b.", kind="choice", choices=("well", "badly")),
            Option("labels", "Labels.", kind="mapping"),
        ),
    ),
}
LEAST = {"type": "mine", "path": "out"}


@pytest.mark.parametrize("file", written_docs(), ids=lambda file: file.name)
def test_the_docs_are_current(file: Any) -> None:
    assert file.read_text(encoding="utf-8") == written_docs()[file], "run: make docs"


def test_every_option_has_a_line() -> None:
    lines = options_table(TYPES["mine"])
    assert "| `path` | path | required | A folder. For example `out`. |" in lines
    assert "| `token` | text, secret | none | A secret. |" in lines
    assert "| `size` | size | `64MiB` | So large. |" in lines
    assert "| `fast` | flag | `false` | Or not. |" in lines
    assert "| `how` | choice | none | How: a \\| b. `well`, `badly`. |" in lines


@pytest.mark.parametrize(
    ("section", "right"),
    [
        (LEAST, True),
        ({"type": "duckdb", "path": "x.duckdb"}, True),
        ({"type": "bigquery", "project": "p", "method": "auto", "max_staleness": "10m", "labels": {"a": "b"}}, True),
        ({"type": "null"}, True),
        ({**LEAST, "token": "t", "size": 100, "keep": 1.5, "workers": 2, "fast": True, "how": "well"}, True),
        ({**LEAST, "size": "64 MB", "keep": "500ms", "workers": "2", "fast": "true", "labels": {}}, True),
        ({"type": "mine"}, False),
        ({"type": "duckdb"}, False),
        ({"type": "null", "path": "x"}, False),
        ({**LEAST, "pth": "x"}, False),
        ({**LEAST, "path": ""}, False),
        ({**LEAST, "path": 5}, False),
        ({**LEAST, "token": 5}, False),
        ({**LEAST, "size": "large"}, False),
        ({**LEAST, "size": [5]}, False),
        ({**LEAST, "keep": "5 days"}, False),
        ({**LEAST, "workers": "two"}, False),
        ({**LEAST, "workers": True}, False),
        ({**LEAST, "fast": "yes"}, False),
        ({**LEAST, "fast": 1}, False),
        ({**LEAST, "how": "so"}, False),
        ({**LEAST, "how": 5}, False),
        ({**LEAST, "labels": {"a": 1}}, False),
        ({**LEAST, "labels": "a"}, False),
    ],
    ids=str,
)
def test_the_schema_takes_what_is_read_and_nothing_else(section: dict[str, Any], right: bool) -> None:
    schema = destination_schema(TYPES)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert jsonschema.Draft202012Validator(schema).is_valid(section) is right
    options = {name: value for name, value in section.items() if name != "type"}
    assert reads(section["type"], options) is right


def reads(name: str, options: dict[str, Any]) -> bool:
    try:
        FoundType(name, "a test", TYPES[name]).read_options(options)
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize("name", ["size", "keep", "workers", "fast", "how", "path"])
def test_a_variable_of_the_environment_may_stand_anywhere(name: str) -> None:
    validator = jsonschema.Draft202012Validator(destination_schema(TYPES))
    assert validator.is_valid({**LEAST, name: "${SHOP_VALUE}"})


def test_other_types_may_have_any_options() -> None:
    validator = jsonschema.Draft202012Validator(destination_schema(TYPES))
    assert validator.is_valid({"type": "etl_mine:MINE", "anything": [1]})
    assert not validator.is_valid({"path": "x"})


def test_it_may_be_a_url() -> None:
    validator = jsonschema.Draft202012Validator(destination_schema(TYPES))
    assert all(map(validator.is_valid, ("duckdb:x", "${SHOP_WAREHOUSE}", "postgresql://u@h/d")))
    assert not validator.is_valid("shop.duckdb")
