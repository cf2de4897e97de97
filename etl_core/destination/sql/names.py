"""Which tables cannot be kept in one database: those whose names are the same to it, such as where it folds case.

Also what guards a person's own data: a table that no pipeline made is never replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from etl_core.destination.sql.dialect import Dialect
from etl_core.destination.sql.stored_tables import StoredTable
from etl_core.errors import TableError
from etl_core.identifiers import TableName
from etl_core.schema.change_log import is_old
from etl_core.schema.table import TableSchema


def check_columns(dialect: Dialect, schema: TableSchema) -> None:
    """Raises TableError for a table without columns or with two that the product cannot tell apart."""
    if not schema.columns:
        raise TableError(
            f"{schema.name} has no columns, which {dialect.product} does not allow",
            table=str(schema.name),
            hint="remove the table from the publication",
        )
    longest = dialect.longest_name
    for column in schema.columns:
        if longest is not None and len(column.name.encode(errors="surrogateescape")) > longest:
            what = "its name (append keeps a key's old value under a longer one)" if is_old(column) else "its name"
            raise TableError(
                f"column {column.name} of {schema.name} is refused: {dialect.product} keeps {longest} bytes of {what}",
                table=str(schema.name),
                hint="give the column a shorter name at the source, or there alone with columns: {rename: …}",
            )
    seen: dict[str, str] = {}
    for name in schema.column_names:
        other = seen.setdefault(dialect.fold(name), name)
        if other != name:
            raise TableError(
                f"columns {other} and {name} of {schema.name} differ only by case, and {dialect.product} folds case",
                table=str(schema.name),
                hint="rename one of them, or leave it out of the publication",
            )


def check_name(
    dialect: Dialect,
    schema: TableSchema,
    pipeline: str,
    stored: Iterable[StoredTable],
    present: Iterable[tuple[str, str]],
    is_left: Callable[[TableName], bool],
) -> Collection[str]:
    """The columns of the table that is there, as far as they are ours; none if it is not there.

    Raises TableError if the table's name belongs to something else.

    `stored` are the tables of all pipelines, `present` the namespace and name of every table and view; `is_left` is
    that of the session.
    """
    name = schema.name
    same = (dialect.fold(name.namespace), dialect.fold(name.name))
    if same[0] in dialect.reserved or same[0] == dialect.fold(dialect.namespace):
        raise TableError(
            f"namespace {name.namespace} of {name} is reserved in {dialect.product}",
            table=str(name),
            hint="rename the schema at the source, or remove the table from the publication",
        )
    ours = False
    columns: Collection[str] = ()
    for other in stored:
        if (dialect.fold(other.name.namespace), dialect.fold(other.name.name)) != same:
            continue
        if other.lsn is not None and other.pipeline != pipeline:
            raise TableError(
                f"{name} is already replicated into this {dialect.product} database by pipeline {other.pipeline}",
                table=str(name),
                hint="give each pipeline a database of its own",
            )
        is_itself = other.pipeline == pipeline and other.table_id == schema.table_id  # renamed, and the same folded
        if other.lsn is not None and other.name != name and not is_itself:
            raise TableError(
                f"{name} and {other.name} differ only by case, and {dialect.product} folds case",
                table=str(name),
                hint="rename one of them at the source, or remove it from the publication",
            )
        if is_itself or not ours:  # a name that it had before may be kept for it, too
            columns = other.attnums
        ours = True
    there = [TableName(*other) for other in present if tuple(map(dialect.fold, other)) == same]
    if not ours and not all(map(is_left, there)):
        raise TableError(
            f"{name} exists in {dialect.product} and was not made by a pipeline",
            table=str(name),
            hint="rename or drop it: the copy would replace it",
        )
    return columns
