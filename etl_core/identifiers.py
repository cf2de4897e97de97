"""Names: tables as people write them, and the names of what a pipeline creates on the source."""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from typing import NewType, Self

from etl_core.errors import ConfigError

TableId = NewType("TableId", int)
"""A relation OID: unsigned 32 bits. Survives a rename, not a drop and re-creation."""

_FOLD = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
# NAMEDATALEN - 1 is 63; `etl_`, `_s`, an OID in 7 characters, `_` and a copy's 6 leave 43 for the pipeline.
_NAME_LENGTH = 63
_PIPELINE = re.compile(r"[a-z][a-z0-9_]{0,42}")
_BARE = re.compile(r"[a-z_\x80-\U0010ffff][a-z0-9_$\x80-\U0010ffff]*")
_PART = re.compile(r'"(?:[^"\x00]|"")+"|[^".\x00]+')


@dataclass(frozen=True, slots=True, order=True)
class TableName:
    """A table's namespace (PostgreSQL's schema) and name, exactly as in the catalog, unquoted."""

    namespace: str
    name: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `public.orders`, `orders` (in `public`) or `"My Schema"."Orders"`.

        Unquoted parts are folded to lower case as PostgreSQL folds them. Raises ConfigError.
        """
        parts: list[str] = []
        at, more = 0, True
        while more:
            match = _PART.match(text, at)
            if match is None:
                break
            parts.append(_unquoted(match.group()))
            more = match.end() < len(text) and text[match.end()] == "."
            at = match.end() + more
        if at != len(text) or more or not 1 <= len(parts) <= 2 or not all(parts):
            raise ConfigError(
                f"{text!r} is not a table name",
                hint='write namespace.table, with double quotes around a part that needs them: sales."Order"',
            )
        return cls(*parts) if len(parts) == 2 else cls("public", parts[0])

    def __str__(self) -> str:
        return f"{_quoted(self.namespace)}.{_quoted(self.name)}"


def _unquoted(part: str) -> str:
    if part[0] == '"':
        return part[1:-1].replace('""', '"')
    # PostgreSQL folds ASCII letters only, in a UTF-8 database; to it, other white space than ASCII's is a letter.
    return part.strip(string.whitespace).translate(_FOLD)


def _quoted(part: str) -> str:
    return part if _BARE.fullmatch(part) else '"' + part.replace('"', '""') + '"'


def check_pipeline_name(name: str) -> str:
    """Returns `name` if it can be part of a slot name (lower case, digits, `_`), else raises ConfigError."""
    if not _PIPELINE.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot name a pipeline",
            field="pipeline",
            hint="use up to 43 lower-case letters, digits and underscores, beginning with a letter",
        )
    return name


def main_slot_name(pipeline: str) -> str:
    """The slot the stream reads: `etl_shop`."""
    return f"etl_{pipeline}"


def sync_slot_name(pipeline: str, table_id: TableId, copy: str) -> str:
    """The slot that one copy of a table creates and its catch-up reads: `etl_shop_sync_16412_4f09ac`.

    `copy` is what tells it from the table's other copies, 6 characters: a process that comes too late, with the name of
    an older copy's slot, finds none. A long pipeline name is followed by `_s` and the OID in base 36.
    """
    name = f"etl_{pipeline}_sync_{table_id}_{copy}"
    return name if len(name) <= _NAME_LENGTH else f"etl_{pipeline}_s{_base_36(table_id)}_{copy}"


def _base_36(number: int) -> str:
    digits = string.digits + string.ascii_lowercase
    text = ""
    while number or not text:
        number, digit = divmod(number, 36)
        text = digits[digit] + text
    return text
