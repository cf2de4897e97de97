"""What every report of a replicated table says, so that its page says the same after a copy, a report of the stream and
a heartbeat: Dagster's pages show the last report alone.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

import dagster as dg

from etl_core.errors import EtlError
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.write_mode import WriteMode

if TYPE_CHECKING:
    from etl_core.batch import ChangeCounts
    from etl_core.schema.table import TableSchema
    from etl_core.shape.shape import Shape
    from etl_core.source.connection import Connection
    from etl_dagster.destination_resource import DestinationResource
    from etl_dagster.resources import PostgresReplicationResource

COLUMN_SCHEMA = "dagster/column_schema"
ROW_COUNT = "dagster/row_count"
LAST_CHANGE = "etl/last_change"
_SIZE_TIMEOUT = 3


@dataclass(frozen=True, slots=True)
class TableFacts:
    """What is known of a table as of `lsn`; None where it is not known exactly, and then it is not reported.

    `size` is in bytes on the source's disk, without indexes. `last_change` is when the last batch with a change of the
    table was committed at the source.
    """

    lsn: Lsn
    shape: "Shape | None" = None
    rows: int | None = None
    size: int | None = None
    last_change: datetime | None = None


def table_metadata(
    destination: "DestinationResource", table: TableName, source: dg.AssetKey | None, facts: TableFacts, summary: str
) -> dict[str, Any]:
    """Metadata of a report. `source` is the asset that the columns come from, None for no column lineage.

    `summary` says in a few words what the report is about; a step's materialisation cannot have a description.
    """
    metadata: dict[str, Any] = {
        "etl/summary": summary,
        "dagster/uri": destination.table_uri(table),
        "etl/lsn": str(facts.lsn),
    }
    name = destination.table_name(table)
    if name is not None:
        metadata["dagster/table_name"] = name
    if facts.shape is not None:
        target = facts.shape.target
        metadata[COLUMN_SCHEMA] = column_schema(target, destination.column_types(target))
        if source is not None:
            metadata["dagster/column_lineage"] = dg.TableColumnLineage(
                {name: [dg.TableColumnDep(source, origin)] for name, origin in facts.shape.origins.items()}
            )
        if facts.shape.write_mode is not WriteMode.MIRROR:
            metadata["etl/write_mode"] = facts.shape.write_mode.value
        if target.comment:
            metadata["etl/comment"] = target.comment
    if facts.rows is not None:
        metadata[ROW_COUNT] = facts.rows
    if facts.size is not None:
        metadata["etl/bytes"] = facts.size
    if facts.last_change is not None:
        metadata[LAST_CHANGE] = dg.MetadataValue.timestamp(facts.last_change)
    return metadata


def column_schema(schema: "TableSchema", types: Sequence[str]) -> dg.TableSchema:
    """The columns as Dagster shows them: `types` by their position, comments, and what PostgreSQL enforces."""
    is_single = len(schema.key) == 1
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                column.name,
                type_,
                description=column.comment,
                constraints=dg.TableColumnConstraints(
                    nullable=column.nullable,
                    unique=is_single and column.name in schema.key,
                    other=["key"] if column.name in schema.key else [],
                ),
            )
            for column, type_ in zip(schema.columns, types, strict=True)
        ],
        constraints=dg.TableConstraints(other=[] if len(schema.key) < 2 else [f"key ({', '.join(schema.key)})"]),
    )


def reported_columns(metadata: Mapping[str, Any]) -> dg.TableSchema | None:
    """The columns that an earlier report showed."""
    value = metadata.get(COLUMN_SCHEMA)
    return value.schema if isinstance(value, dg.TableSchemaMetadataValue) else None


def schema_change(
    key: dg.AssetKey, metadata: Mapping[str, Any], before: dg.TableSchema | None
) -> dg.AssetObservation | None:
    """The event that the columns in `metadata` differ from those reported `before`; None if they do not."""
    after = metadata.get(COLUMN_SCHEMA)
    differences = [] if before is None or after is None else column_differences(before, after)
    if not differences:
        return None
    return dg.AssetObservation(
        key,
        description=f"columns changed: {'; '.join(differences)}",
        metadata={
            COLUMN_SCHEMA: after,
            "etl/column_differences": dg.MetadataValue.md("\n".join(f"- {each}" for each in differences)),
            "etl/lsn": metadata["etl/lsn"],
        },
    )


def source_observation(
    key: dg.AssetKey, table: TableName, schema: "TableSchema", size: int | None
) -> dg.AssetObservation:
    """What the table at the source is like: its columns with PostgreSQL's types. `size` is in bytes on its disk."""
    from etl_core.schema.pg_types import format_type

    columns = column_schema(schema, [format_type(column) for column in schema.columns])
    # Of the standard key Dagster's page shows that of the last materialisation, and the table at the source has none.
    metadata: dict[str, Any] = {COLUMN_SCHEMA: columns, "etl/columns": columns}
    if schema.comment:
        metadata["etl/comment"] = schema.comment
    if size is not None:
        metadata["etl/bytes"] = size
    return dg.AssetObservation(key, description=f"the columns of {table}", metadata=metadata)


class SourceSizes:
    """The tables' sizes on the source's disk, asked on one connection, which the end of the `with` block closes."""

    def __init__(self, replication: "PostgresReplicationResource") -> None:
        self._replication = replication
        self._connection: Connection | None = None
        self._open = ExitStack()

    def of(self, table_id: TableId) -> int | None:
        """In bytes; None where the source cannot say it within a few seconds."""
        from etl_core.source.sizes import table_sizes

        try:
            if self._connection is None:
                connecting = self._replication.connect("size", timeout=_SIZE_TIMEOUT)
                self._connection = self._open.enter_context(connecting)
            return table_sizes(self._connection, [table_id]).get(table_id)
        except EtlError:
            self._close()
            return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        self._connection = None
        self._open.close()


def column_differences(before: dg.TableSchema, after: dg.TableSchema) -> list[str]:
    """Each difference as a sentence, in the order of the columns."""
    old, new = ({column.name: column for column in schema.columns} for schema in (before, after))
    found = [f"{name} ({new[name].type}) was added" for name in new if name not in old]
    found += [f"{name} ({old[name].type}) was dropped" for name in old if name not in new]
    for name in (name for name in new if name in old):
        was, now = old[name], new[name]
        if was.type != now.type:
            found.append(f"{name} changed from {was.type} to {now.type}")
        if was.constraints.nullable != now.constraints.nullable:
            found.append(f"{name} is {'nullable' if now.constraints.nullable else 'NOT NULL'} now")
        if (was.description or "") != (now.description or ""):
            found.append(f"the comment of {name} changed")
    keys = [
        [column.name for column in schema.columns if "key" in column.constraints.other] for schema in (before, after)
    ]
    if keys[0] != keys[1]:
        found.append(f"the key changed from ({', '.join(keys[0])}) to ({', '.join(keys[1])})")
    return found


def copied_text(rows: int, lsn: Lsn) -> str:
    """The description of a copy's materialisation."""
    return f"copied {_plural(rows, 'row')} at {lsn}"


def found_text(rows: int | None, lsn: Lsn) -> str:
    """The same of a table that was copied before."""
    return f"up to date at {lsn}, not copied again" + ("" if rows is None else f": {_plural(rows, 'row')}")


def changes_text(counts: "ChangeCounts", lsn: Lsn) -> str:
    """The description of the stream's materialisation: how many row changes came since the last report."""
    kinds = {"inserted": counts.inserted, "updated": counts.updated, "deleted": counts.deleted}
    parts = [f"{number:,} {kind}" for kind, number in kinds.items() if number]
    if counts.truncated:
        parts.append("emptied")
    return f"{_plural(counts.rows, 'change')} up to {lsn}" + (f": {', '.join(parts)}" if parts else "")


def quiet_text(lsn: Lsn) -> str:
    """The description of a heartbeat."""
    return f"no change since {lsn}: the stream is alive"


def _plural(number: int, one: str) -> str:
    return f"{number:,} {one}{'' if number == 1 else 's'}"
