"""Options as they are declared: what each kind is written and read as, and how each mistake is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from etl_core.destination.options import Kind, Option, masked, read_options
from etl_core.errors import ConfigError

SECRET = "hunter/2 é"


def option(kind: Kind, **more: Any) -> Option:
    return Option("it", "What it is.", kind=kind, choices=("fast", "small") if kind == "choice" else (), **more)


@pytest.mark.parametrize(
    ("kind", "written", "read"),
    [
        ("text", "a", "a"),
        ("path", "out/x", Path("/etc/shop/out/x")),
        ("path", "/srv/x", Path("/srv/x")),
        ("path", "C:x", Path("/etc/shop/C:x")),
        ("path", Path("x"), Path("/etc/shop/x")),
        ("integer", 5, 5),
        ("integer", "5", 5),
        ("size", "64MiB", 64 * 2**20),
        ("size", 100, 100),
        ("duration", "500ms", 0.5),
        ("duration", 2, 2.0),
        ("duration", "0.01ms", 0.00001),
        ("flag", True, True),
        ("flag", "false", False),
        ("choice", "small", "small"),
        ("mapping", {"a": "b"}, {"a": "b"}),
    ],
)
def test_every_kind_is_read_once_and_for_all(kind: Kind, written: object, read: object) -> None:
    once = read_options("mine", [option(kind)], {"it": written}, Path("/etc/shop"))
    assert once == {"it": read}
    assert type(once["it"]) is type(read) or isinstance(read, Path)
    assert read_options("mine", [option(kind)], once) == once


@pytest.mark.parametrize(
    ("kind", "written", "sentence"),
    [
        ("text", 5, "destination.it: must be text, not a number"),
        ("text", "", "destination.it: is empty"),
        ("path", "", "destination.it: is empty"),
        ("path", "md:shop", "destination.it: must be a file or folder of this machine, and begins with md:"),
        ("path", ":memory:", "destination.it: must be a file or folder of this machine, and begins with :"),
        ("integer", True, "destination.it: must be a whole number, not true or false"),
        ("integer", "five", "destination.it: must be a whole number, not text"),
        ("size", "5 stones", "destination.it: '5 stones' is not a size"),
        ("duration", [], "destination.it: must be a number with a unit, not a list"),
        ("flag", "yes", "destination.it: must be true or false, not text"),
        ("choice", "smal", "destination.it: must be one of fast, small, not 'smal'"),
        ("choice", 5, "destination.it: must be one of fast, small"),
        ("mapping", {"a": 1}, "destination.it: must be a mapping of text to text"),
        ("mapping", "a", "destination.it: must be a mapping of text to text"),
    ],
)
def test_what_is_of_another_kind_is_refused(kind: Kind, written: object, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_options("mine", [option(kind)], {"it": written})
    assert str(caught.value) == sentence
    assert caught.value.field == "destination.it"


def test_defaults_are_read_as_they_are_written() -> None:
    declared = [
        option("duration", default="10m"),
        Option("also", "Also.", kind="size"),
        Option("labels", "Labels.", kind="mapping"),
    ]
    assert read_options("mine", declared, {}) == {"it": 600.0, "also": None, "labels": {}}


def test_a_missing_option_is_shown_as_it_would_be_written() -> None:
    with pytest.raises(ConfigError, match="destination type mine needs the option 'it'") as caught:
        read_options("mine", [option("path", required=True, example="shop.files")], {})
    assert caught.value.hint == "write for example: destination: {type: mine, it: shop.files}"


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"name": "type"}, "cannot name an option"),
        ({"name": "Path"}, "cannot name an option"),
        ({"required": True, "default": "x"}, "required, so it has no default"),
        ({"choices": ("a",)}, "choices belong to kind choice"),
        ({"kind": "choice"}, "choices belong to kind choice"),
        ({"kind": "size", "secret": True}, "a secret is text"),
    ],
)
def test_a_declaration_that_contradicts_itself_is_refused(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Option(**{"name": "it", "help": "What it is.", **wrong})


def test_a_default_of_another_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="not a duration"):
        option("duration", default="soon")


def test_secrets_are_masked_however_they_are_repeated() -> None:
    declared = [Option("token", "A secret.", secret=True), Option("path", "A folder.", kind="path")]
    given = {"token": SECRET, "path": "/srv"}
    text = f"{SECRET} {SECRET!r} hunter%2F2%20%C3%A9 hunter/2%20%C3%A9 in /srv"
    assert masked(text, declared, given) == "*** '***' *** *** in /srv"
    assert masked(text, None, {"nested": [{"a": SECRET}], "path": "/srv", "n": 5}) == "*** '***' *** *** in ***"
