"""The reserved names under which rows wait whose table's name was taken by another table.

Two tables that swap their names are renamed one after the other, each with the first row after its rename. The first
one finds its new name taken by the second, which is then put aside, with its rows and its watermark, until its own new
name is known. Nobody reads it meanwhile, and no table shows another one's rows.
"""

from __future__ import annotations

from etl_core.identifiers import TableId, TableName

_PREFIX = "etl$aside$"
_LONGEST = 63
"""PostgreSQL cuts longer names."""


def aside_name(pipeline: str, table_id: TableId, namespace: str) -> TableName:
    """Where the table waits: in the namespace it was in, as some products cannot move a table to another one."""
    name = f"{_PREFIX}{pipeline}${table_id}"
    if len(name) > _LONGEST:  # the longest name of a pipeline with the largest of ids
        name = f"{_PREFIX}{pipeline}{table_id}"
    return TableName(namespace, name)


def is_aside(name: TableName) -> bool:
    """Whether it is a name that `aside_name` gives."""
    return name.name.startswith(_PREFIX)
