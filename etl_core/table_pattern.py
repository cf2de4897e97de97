"""Patterns for tables' names, and which tables a pipeline replicates by them. Nothing here knows a table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self

from etl_core.config_values import config_error, in_field
from etl_core.identifiers import TableName

_NOT, _QUOTE = "!", '"'
_PART = re.compile(r'"(?:[^"]|"")*"|[^."]+')
"""Of a name that can be parsed."""


@dataclass(frozen=True, slots=True)
class TablePattern:
    """A table's name as in SQL, or with `*` for any characters in the schema or the name: `public.*`, `"Sales".*`.

    Without a dot it is about the schema `public`, as a name is. In double quotes `*` is part of a name. With `excludes`
    it says which tables are left out.
    """

    text: str
    excludes: bool = False

    def __post_init__(self) -> None:
        self._parts()

    @property
    def has_star(self) -> bool:
        """Whether it may match several tables."""
        return any("*" in part for part in _PART.findall(self.text) if not part.startswith(_QUOTE))

    def matches(self, name: TableName) -> bool:
        return all(
            re.fullmatch(part, text, re.DOTALL) is not None
            for part, text in zip(self._parts(), (name.namespace, name.name), strict=True)
        )

    def __str__(self) -> str:
        return f"{_NOT if self.excludes else ''}{self.text}"

    def _parts(self) -> tuple[str, str]:
        """Regular expressions for schema and name. Raises ConfigError."""
        name = TableName.parse(self.text)
        *before, last = _PART.findall(self.text)
        return _expression(name.namespace, before[0] if before else ""), _expression(name.name, last)


def _expression(name: str, written: str) -> str:
    """The regular expression for a part of a name that was written so."""
    escaped = re.escape(name)
    return escaped if written.strip().startswith(_QUOTE) else escaped.replace(r"\*", ".*")


@dataclass(frozen=True, slots=True)
class TableSelection:
    """Which tables are replicated: `names`, and what a pattern matches that none with `excludes` matches.

    Without names and such patterns, everything that the publication publishes but what is excluded.
    """

    names: tuple[TableName, ...] = ()
    patterns: tuple[TablePattern, ...] = ()

    @classmethod
    def of(cls, entries: Iterable[TableName | TablePattern]) -> Self:
        names, patterns = [], []
        for entry in entries:
            if isinstance(entry, TablePattern):
                patterns.append(entry)
            else:
                names.append(entry)
        return cls(tuple(names), tuple(patterns))

    @property
    def entries(self) -> tuple[TableName | TablePattern, ...]:
        return (*self.names, *self.patterns)

    @property
    def asks_catalog(self) -> bool:
        """Whether it has patterns of which the source's catalog tells the tables."""
        return any(not pattern.excludes for pattern in self.patterns)

    @property
    def is_open(self) -> bool:
        """Whether a table that nobody has named may be one of them."""
        return self.asks_catalog or not self.names

    def leaves_out(self, name: TableName) -> bool:
        """Whether a `!` is about the table. Others that are not in it are those that nobody has selected."""
        return name not in self.names and any(pattern.excludes and pattern.matches(name) for pattern in self.patterns)

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, TableName) or name in self.names:
            return isinstance(name, TableName)
        said = [pattern.excludes for pattern in self.patterns if pattern.matches(name)]
        return not any(said) and (bool(said) if self.asks_catalog else self.is_open)

    def __str__(self) -> str:
        return ", ".join(map(str, self.entries))


def read_selection(where: str, given: Sequence[str], *, instead: str) -> TableSelection:
    """What a list of names and patterns selects; `!` before a name or pattern leaves out what it matches.

    `where` is its dotted field, and `instead` says how all tables are selected. Raises ConfigError for an empty list,
    for what is no name, is there twice or says nothing.
    """
    names: list[TableName] = []
    patterns: list[TablePattern] = []
    excluding = ""
    for index, text in enumerate(given):
        field = f"{where}[{index}]"
        excludes = text.startswith(_NOT)
        pattern = replace(in_field(field, TablePattern, text.removeprefix(_NOT)), excludes=excludes)
        if excludes or pattern.has_star:
            is_new = pattern not in patterns
            patterns.append(pattern)
        else:
            name = TableName.parse(text)
            is_new = name not in names
            names.append(name)
        if not is_new:
            raise config_error(field, f"{text} is listed twice")
        excluding = field if excludes else excluding
    if not names and not patterns:
        raise config_error(where, "is empty", hint=f"name a table, or {instead}")
    selection = TableSelection(tuple(names), tuple(patterns))
    if excluding and not selection.is_open:
        raise config_error(
            excluding,
            "leaves out of a list of names what is not in it",
            hint="use ! beside a pattern such as public.*, or without any name, for all that is published but these",
        )
    return selection
