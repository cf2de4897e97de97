"""`etl status --schema T`: the versions of a table's schema by LSN, and what changed from one to the next."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

from etl_core.cli.exit_status import DONE
from etl_core.cli.texts import columns, put
from etl_core.control import PipelineControl
from etl_core.identifiers import TableName
from etl_core.schema.alterations import alterations
from etl_core.schema.pg_types import format_type
from etl_core.schema.table import TableSchema
from etl_core.state.store import SchemaVersion


def schema_status(pipeline: PipelineControl, name: TableName, *, as_json: bool) -> int:
    """Raises ConfigError for a table that is not the pipeline's."""
    table = pipeline.find(name)
    versions = pipeline.store.schema_versions(table.table_id)
    if as_json:
        put(json.dumps(versions_object(table.name, versions), indent=2, ensure_ascii=False))
        return DONE
    for line in versions_lines(table.name, versions):
        put(line)
    return DONE


def versions_lines(name: TableName, versions: Sequence[SchemaVersion]) -> list[str]:
    """What changed in each version, then the columns of the newest."""
    if not versions:
        return [f"{name} has not been copied yet, so that no schema of it is known"]
    rows = [("VERSION", "SINCE", "SAVED", "CHANGE")]
    for version, changes in zip(versions, _changes(versions), strict=True):
        head = (str(version.version), str(version.lsn), f"{version.saved_at.astimezone():%Y-%m-%d %H:%M:%S}")
        rows += [(*(("", "", "") if number else head), change) for number, change in enumerate(changes)]
    newest = versions[-1].schema
    described = [("COLUMN", "TYPE", "")]
    described += [(column.name, format_type(column), _notes(newest, column.name)) for column in newest.columns]
    return [str(name), "", *columns(rows), "", *columns(described)]


def versions_object(name: TableName, versions: Sequence[SchemaVersion]) -> dict[str, object]:
    """The object that `--json` prints; LSNs and times are as in `status_json`."""
    return {
        "table": str(name),
        "versions": [
            {
                "version": version.version,
                "lsn": str(version.lsn),
                "saved_at": version.saved_at.isoformat(),
                "changes": changes,
                "key": list(version.schema.key),
                "columns": [
                    {"name": column.name, "type": format_type(column), "nullable": column.nullable}
                    for column in version.schema.columns
                ],
            }
            for version, changes in zip(versions, _changes(versions), strict=True)
        ],
    }


def _changes(versions: Sequence[SchemaVersion]) -> list[list[str]]:
    told = [["copied" if version.version == 1 else "as it was before"] for version in versions[:1]]
    for before, after in itertools.pairwise(versions):
        steps = [str(step) for step in alterations(before.schema, after.schema)]
        told.append(steps or ["nullability, a comment or the replica identity changed"])
    return told


def _notes(schema: TableSchema, name: str) -> str:
    notes = ["key"] if name in schema.key else []
    if not schema.column(name).nullable:
        notes.append("NOT NULL")
    return ", ".join(notes)
