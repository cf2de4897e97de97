"""`etl config schema`: the JSON Schema of the configuration, as it is installed."""

from __future__ import annotations

from etl_core.cli.arguments import Arguments
from etl_core.cli.exit_status import DONE
from etl_core.cli.texts import put
from etl_core.config_file import SCHEMA_FILE


def config_schema(_: Arguments) -> int:
    put(SCHEMA_FILE.read_text(encoding="utf-8").rstrip("\n"))
    return DONE
