"""Writes the parts of the docs that are made from code.

The options of destinations, as a page and as a JSON Schema, what each PostgreSQL type becomes in them, and what each of
them can do, which is in the README too; and the JSON Schema of the whole configuration, which is installed with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etl_core.config_file import SCHEMA_FILE
from etl_core.config_schema import configuration_schema
from etl_core.destination.reference import capabilities_table, destination_schema, options_page
from etl_core.destination.registry import built_in_types
from etl_core.destination.type_reference import types_page

DOCS = Path(__file__).parent.parent / "docs"
_BEGIN, _END = "<!-- written by `make docs` from the declarations: do not edit -->", "<!-- end -->"


def written_docs() -> Mapping[Path, str]:
    """Each file, and what should be in it."""
    types = built_in_types()
    return {
        **{page: _with_table(page, capabilities_table(types)) for page in _WITH_CAPABILITIES},
        DOCS / "destinations" / "options.md": options_page(types),
        DOCS / "destinations" / "types.md": types_page(types),
        DOCS / "destinations" / "destination.schema.json": _json(destination_schema(types)),
        SCHEMA_FILE: _json(configuration_schema(types)),
    }


_WITH_CAPABILITIES = (DOCS.parent / "README.md", DOCS / "destinations" / "README.md")


def _json(schema: Mapping[str, Any]) -> str:
    return f"{json.dumps(schema, indent=2, ensure_ascii=False)}\n"


def _with_table(page: Path, table: Sequence[str]) -> str:
    """The page as it is, with the table between its two marks."""
    before, _, rest = page.read_text(encoding="utf-8").partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return "\n".join([f"{before}{_BEGIN}", *table, f"{_END}{after}"])


if __name__ == "__main__":
    for file, text in written_docs().items():
        file.write_text(text, encoding="utf-8")
