"""The settings of a pipeline's tables: patterns, what is refused, and when a table must be copied again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from etl_core.config import PipelineConfig, SourceConfig, StateConfig
from etl_core.config_tables import read_tables
from etl_core.errors import ConfigError, CopiedAgain, TableError
from etl_core.identifiers import TableName
from etl_core.schema.table import Column, TableSchema
from etl_core.shape.rules import Rules
from etl_core.shape.shapes import Shapes
from etl_core.testing.destination_tables import INT8, TEXT, table
from etl_core.write_mode import WriteMode

KEY = "correct horse battery staple"


def schema(name: str, *columns: str, table_id: int = 16_400) -> TableSchema:
    typed = [Column(column, TEXT, attnum=at) for at, column in enumerate(columns, 2)]
    return table(name, Column("id", INT8, attnum=1), *typed, table_id=table_id)


def shapes(tables: Mapping[str, Any], key: str | None = KEY) -> Shapes:
    given = {pattern: {"columns": columns} for pattern, columns in tables.items()}
    return Shapes.checked(read_tables("tables", given), key)


def refused(tables: Mapping[str, Any], key: str | None = KEY) -> str:
    with pytest.raises(ConfigError) as raised:
        shapes(tables, key)
    assert str(raised.value).startswith(f"{raised.value.field}: ")
    return str(raised.value)


def test_patterns_match_as_names_are_written() -> None:
    def matching(pattern: str) -> set[str]:
        [entry] = read_tables("tables", {pattern: {"columns": {"hash": ["a"]}}})
        names = {"public.users": "users", "public.user": "user", "Audit.Users": "Users", "public.a*b": "a*b"}
        return {shown for shown, name in names.items() if entry.matches(TableName(shown.partition(".")[0], name))}

    assert matching("public.users") == matching("users") == matching("PUBLIC.Users") == {"public.users"}
    assert matching("public.user*") == matching("user*") == {"public.users", "public.user"}
    assert matching("*.*") == {"public.users", "public.user", "Audit.Users", "public.a*b"}
    assert matching('"Audit"."Users"') == {"Audit.Users"}
    assert matching('"a*b"') == {"public.a*b"}
    assert matching("p*c.u*s") == {"public.users"}


def test_the_later_of_two_entries_decides_about_a_column() -> None:
    found = shapes({"public.*": {"exclude": ["note", "email"]}, "public.users": {"hash": ["email"]}})
    target = found.of(schema("users", "email", "note", "name")).target
    assert target.column_names == ("id", "email", "name")
    assert found.of(schema("others", "email", "note", "name", table_id=2)).target.column_names == ("id", "name")


WRONG: dict[str, tuple[Mapping[str, Any], str]] = {
    "transform": ({"users": {"hsah": ["a"]}}, "tables.users.columns.hsah: is unknown"),
    "argument missing": ({"users": {"truncate": ["a"]}}, "truncate: needs a mapping of columns to numbers"),
    "argument too much": ({"users": {"hash": {"a": 3}}}, "hash.a: needs a list of columns"),
    "zero": ({"users": {"truncate": {"a": 0}}}, "truncate.a: must be greater than 0"),
    "text": ({"users": {"truncate": {"a": "x"}}}, "truncate.a: must be a whole number, not text"),
    "no list": ({"users": {"hash": "email"}}, "hash: must be a list, not text"),
    "twice": ({"users": {"hash": ["a", "a"]}}, r"hash[1]: column a is listed twice"),
    "two ways": ({"users": {"hash": ["a"], "mask": ["a"]}}, "mask[0]: column a is in hash[0] too"),
    "left out and hashed": ({"users": {"exclude": ["a"], "hash": ["a"]}}, "hash[0]: column a is in exclude[0] too"),
    "both lists": ({"users": {"include": ["a"], "exclude": ["b"]}}, "exclude: there is an include beside it"),
    "nothing included": ({"users": {"include": []}}, "include: is empty"),
    "left out and renamed": ({"users": {"exclude": ["a"], "rename": {"a": "b"}}}, "rename.a: column a is excluded"),
    "no name": ({"users": {"rename": {"a": ""}}}, "rename.a: must not be empty"),
    "pattern": ({"a.b.c": {"hash": ["a"]}}, "tables.a.b.c: 'a.b.c' is not a table name"),
}


@pytest.mark.parametrize(("tables", "what"), WRONG.values(), ids=WRONG.keys())
def test_wrong_settings_are_refused_with_their_field(tables: Mapping[str, Any], what: str) -> None:
    assert what in refused(tables)


def test_hashing_needs_a_key_that_is_long_enough() -> None:
    assert "needs a hash_key" in refused({"users": {"hash": ["a"]}}, None)
    shapes({"users": {"mask": ["a"]}}, None)
    source = SourceConfig("p", host="db")
    with pytest.raises(ConfigError, match="hash_key: must have 16 characters") as raised:
        PipelineConfig("shop", source, destination(), StateConfig("sqlite:///x"), hash_key="hunter2")
    assert "hunter2" not in str(raised.value)
    config = PipelineConfig("shop", source, destination(), StateConfig("sqlite:///x"), hash_key=KEY)
    assert KEY not in repr(config)


def destination() -> Any:
    from etl_core.config import DestinationConfig

    return DestinationConfig("memory")


def test_what_fits_no_table_is_found() -> None:
    tables = [schema("users", "email", table_id=1), schema("orders", "note", table_id=2)]

    def problems(settings: Mapping[str, Any], *known: str) -> list[str]:
        return [str(error) for error in shapes(settings).check(tables, [TableName("public", one) for one in known])]

    assert problems({"users": {"hash": ["email"]}, "*": {"exclude": ["email", "note"]}}) == []
    assert problems({"user": {"hash": ["email"]}}) == ["tables.user: no table of the pipeline has that name"]
    assert problems({"audit_*": {"hash": ["email"]}}) == ["tables.audit_*: no table of the pipeline has that name"]
    assert problems({"users": {"hash": ["emial"]}}) == [
        "tables.users.columns.hash[0]: emial is no published column of public.users"
    ]
    assert "any table that the pattern matches" in problems({"*": {"truncate": {"x": 1}}})[0]
    assert problems({"user": {"hash": ["email"]}}, "user") == [], "its columns are not known now"
    assert "in the key" in problems({"users": {"mask": ["id"]}})[0]


def test_a_table_is_copied_again_where_its_settings_come_to_something_else() -> None:
    users = schema("users", "email", "note")
    before = shapes({"users": {"hash": ["email"]}})
    stored = before.stored(users)
    assert KEY not in stored

    def is_same(settings: Mapping[str, Any], key: str | None = KEY, of: TableSchema = users) -> bool:
        return shapes(settings, key).is_as_copied(stored, of)

    assert is_same({"users": {"hash": ["email"]}})
    assert is_same({"user*": {"hash": ["email", "phone"]}}), "there is no such column"
    assert is_same({"users": {"hash": ["email"], "rename": {"email": "email"}}})
    assert is_same({"users": {"mask": ["email"]}}, of=schema("users", "note")), "dropped since"
    assert not is_same({})
    assert not is_same({"users": {"mask": ["email"]}})
    assert not is_same({"users": {"hash": ["email"], "exclude": ["note"]}})
    assert not is_same({"users": {"hash": ["email"], "rename": {"email": "mail"}}})
    assert not is_same({"users": {"hash": ["email"], "include": ["id", "email"]}})
    assert not is_same({"users": {"hash": ["email"]}}, KEY + "!"), "another key, other hashes"
    assert not before.is_as_copied(None, users), "what is not known is not guessed"
    assert not before.is_as_copied("{", users)
    assert shapes({}).is_as_copied(Rules().to_json(), users)
    assert shapes({}, None).is_as_copied(shapes({}).stored(users), users), "a key that is not used does not count"


def test_the_number_of_a_truncation_counts() -> None:
    users = schema("users", "zip")
    stored = shapes({"users": {"truncate": {"zip": 3}}}).stored(users)
    assert shapes({"users": {"truncate": {"zip": 3}}}).is_as_copied(stored, users)
    assert not shapes({"users": {"truncate": {"zip": 4}}}).is_as_copied(stored, users)


def test_what_is_hidden_by_its_name_is_not_shown_under_another() -> None:
    users = schema("users", "email", "note")
    mail = renamed(users, "email", "mail")
    people = replace(users, name=TableName("public", "people"))
    for columns in ({"hash": ["email"]}, {"exclude": ["email"]}, {"null": ["email"]}, {"include": ["id", "email"]}):
        found = shapes({"users": columns})
        found.check_carried(users, users)
        for check in (found.check_named, found.check_carried):
            with pytest.raises(TableError, match="column email was renamed to mail, and the settings have it by"):
                check(users, mail)
        if "include" not in columns:
            with pytest.raises(TableError, match=r"public.users.email was renamed to public.people.email"):
                found.check_carried(users, people)
        found.check_carried(users, replace(users, columns=users.columns[:1]))  # dropped
    shapes({"users": {"hash": ["email"]}, "people": {"hash": ["email"]}}).check_carried(users, people)
    shapes({"users": {"include": ["id", "note"]}}).check_carried(users, mail)  # it is left out as before
    shapes({"users": {"rename": {"email": "e"}}}).check_carried(users, mail)
    shapes({"user*": {"mask": ["email", "mail"]}}).check_carried(users, mail)


def test_a_new_copy_goes_by_what_was_said_when_the_table_was_copied() -> None:
    users = schema("users", "ssn", "note")
    renamed_one, swapped = renamed(users, "ssn", "tax"), renamed(users, "ssn", "x")
    swapped = renamed(renamed(swapped, "note", "ssn"), "x", "note")
    hidden = shapes({"users": {"exclude": ["ssn"]}})
    stored = hidden.stored(users)
    for now in (renamed_one, swapped):
        for unchanged in (hidden, shapes({"users": {"exclude": ["ssn"], "rename": {"id": "key"}}})):
            with pytest.raises(TableError, match=r"column ssn was renamed to .*, and the settings have it by its old"):
                unchanged.check_shown(users, now, stored)
    shapes({"users": {"exclude": ["tax"]}}).check_shown(users, renamed_one, stored)
    shapes({"users": {"exclude": ["note"]}}).check_shown(users, swapped, stored)
    shapes({}).check_shown(users, renamed_one, stored)  # it is to be seen
    with pytest.raises(TableError, match="column ssn was renamed"):
        hidden.check_shown(users, renamed_one, None)  # nothing is known of before
    named = shapes({"users": {"include": ["id", "ssn"]}})
    corrected = shapes({"users": {"include": ["id", "tax"]}})
    corrected.check_shown(users, renamed_one, named.stored(users))


def test_deleted_rows_that_are_kept_by_the_old_name_are_not_removed_under_a_new_one() -> None:
    orders = schema("orders", "email")
    renamed_one = replace(orders, name=TableName("public", "orders_v2"))

    def modes(default: WriteMode = WriteMode.MIRROR, **tables: str) -> Shapes:
        return Shapes.checked(
            read_tables("tables", {name: {"write_mode": m} for name, m in tables.items()}), "", default
        )

    kept = modes(orders="soft_delete")
    stored = kept.stored(orders)
    for check in (
        kept.check_named,
        kept.check_carried,
        lambda before, now: kept.check_shown(before, now, stored),
        lambda before, now: kept.check_shown(before, now, None),
    ):
        check(orders, orders)
        with pytest.raises(
            TableError, match=r"public.orders was renamed to public.orders_v2, .* soft_delete"
        ) as raised:
            check(orders, renamed_one)
        assert not isinstance(raised.value, CopiedAgain)
        assert raised.value.hint is not None
        assert raised.value.hint.startswith("write its new name into the settings")
    for corrected in (
        modes(orders_v2="soft_delete"),
        modes(WriteMode.SOFT_DELETE),
        modes(WriteMode.SOFT_DELETE, orders_v2="mirror"),  # it is said
        modes(orders="soft_delete", orders_v2="mirror"),
        modes(),
    ):
        corrected.check_named(orders, renamed_one)
        corrected.check_shown(orders, renamed_one, stored)
    kept.check_shown(orders, renamed_one, modes().stored(orders))  # nothing was kept by then


def test_rules_with_a_transform_that_nobody_has_any_more_are_not_known() -> None:
    users = schema("users", "email")
    stored = shapes({"users": {"hash": ["email"]}}).stored(users)
    assert not shapes({"users": {"hash": ["email"]}}).is_as_copied(stored.replace('"hash"', '"lower"'), users)


def test_a_column_that_gets_a_hidden_name_is_copied_again() -> None:
    """What is there of it was seen."""
    users = schema("users", "email", "note")
    found = shapes({"users": {"hash": ["mail"]}})
    found.check_named(users, renamed(users, "email", "mail"))
    with pytest.raises(CopiedAgain, match="column email was renamed to mail, and the settings are about mail"):
        found.check_carried(users, renamed(users, "email", "mail"))


def renamed(table_: TableSchema, before: str, now: str) -> TableSchema:
    return replace(table_, columns=tuple(replace(c, name=now) if c.name == before else c for c in table_.columns))


def test_hides() -> None:
    assert not shapes({}).hides
    assert not shapes({"users": {"rename": {"a": "b"}}}).hides
    assert shapes({"users": {"include": ["a"]}}).hides
    assert shapes({"users": {"null": ["a"]}}).hides
