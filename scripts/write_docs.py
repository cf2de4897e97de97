"""Writes the parts of the docs that are made from code.

The options of destinations, as a page and as a JSON Schema, and what each PostgreSQL type becomes in them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from etl_core.destination.reference import destination_schema, options_page
from etl_core.destination.registry import built_in_types
from etl_core.destination.type_reference import types_page

DOCS = Path(__file__).parent.parent / "docs"


def written_docs() -> Mapping[Path, str]:
    """Each file, and what should be in it."""
    types = built_in_types()
    schema = json.dumps(destination_schema(types), indent=2, ensure_ascii=False)
    return {
        DOCS / "destinations" / "options.md": options_page(types),
        DOCS / "destinations" / "types.md": types_page(types),
        DOCS / "destinations" / "destination.schema.json": f"{schema}\n",
    }


if __name__ == "__main__":
    for file, text in written_docs().items():
        file.write_text(text, encoding="utf-8")
