"""Enums that are enums at the destination: their values are labels that the catalog has told."""

from __future__ import annotations

import pyarrow.compute as pc

from etl_core.errors import COPIED_AGAIN, CopiedAgain
from etl_core.identifiers import TableName
from etl_core.schema.pg_types import format_type
from etl_core.schema.table import Column, PgType
from etl_core.values.text import Array, text_array


def check_labels(labels: Array, enum: PgType, column: Column, table: TableName) -> None:
    """Raises CopiedAgain for a label of a string array that the enum did not have when the catalog was asked.

    Nothing in the WAL tells of one that was added or renamed.
    """
    if pc.all(pc.is_in(labels.drop_null(), value_set=text_array(enum.labels))).as_py() is False:
        raise CopiedAgain(
            f"the labels of {format_type(column)}, the type of column {column.name} of {table}, were changed",
            table=str(table),
            hint=COPIED_AGAIN,
        )
