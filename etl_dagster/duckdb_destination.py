"""The resource of a DuckDB file as a destination."""

import contextlib
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from etl_core.destination.duckdb.declaration import DUCKDB
from etl_core.destination.options import read_options
from etl_dagster.destination_resource import DestinationResource, option_field
from etl_dagster.secrets import literal, plain

if TYPE_CHECKING:
    from etl_core.identifiers import TableName
    from etl_core.schema.table import TableSchema


class DuckDBDestinationResource(DestinationResource):
    """A DuckDB file. It is open only while a batch is written, so that others can read between."""

    path: str = option_field(DUCKDB, "path")
    storage_version: Literal["v1.0.0", "v1.2.0", "v1.4.0", "v1.5.0", "latest"] = option_field(DUCKDB, "storage_version")

    @property
    def type(self) -> str:
        return "duckdb"

    def options(self) -> dict[str, Any]:
        return {"path": plain(self.path), "storage_version": self.storage_version}

    def table_uri(self, table: "TableName") -> str:
        file = Path(plain(self.path) or "").resolve()
        return f"duckdb://{file}/{table.namespace}/{table.name}"

    def database_name(self) -> str | None:
        from etl_core.destination.duckdb.location import database_name

        path = literal(self.path)
        return None if path is None else database_name(Path(path))

    def column_types(self, schema: "TableSchema") -> Sequence[str]:
        from etl_core.destination.duckdb_sql.types import duckdb_type

        return [duckdb_type(column) for column in schema.columns]

    def copy_file(self, target: str | Path) -> int:
        """Copies the file to `target`, replacing that, and returns its bytes: for readers that hold a file for long.

        The copy is as of the end of a batch. The stream waits meanwhile, not while the copy is read; processes that
        read an older copy need not have ended. Raises dg.Failure, with what to do.
        """
        from etl_core.destination.duckdb.destination import DuckDBDestination
        from etl_core.destination.duckdb.same_file import wal_path
        from etl_core.errors import DestinationError, EtlError
        from etl_dagster.failures import failure_of

        target = Path(target)
        fresh = target.with_name(f"{target.name}.{secrets.token_hex(4)}.new")
        try:
            path = read_options(self.type, DUCKDB.options or (), self.options())["path"]
            size = DuckDBDestination(path, "copy_file").backup(fresh)
            wal_path(target).unlink(missing_ok=True)  # of the file that is replaced: another process wrote to it
            fresh.replace(target)
        except EtlError as error:
            raise failure_of(error) from error
        except OSError as error:
            reason = error.strerror if error.errno is None else os.strerror(error.errno)
            hint = "name a file in a folder that this user may write to"
            raise failure_of(DestinationError(f"cannot write {target}: {reason}", hint=hint)) from error
        finally:
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
        return size
