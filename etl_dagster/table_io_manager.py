"""An IO manager that reads replicated tables, for destinations for which Dagster has none."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg

from etl_core.errors import ConfigError, EtlError, PermanentError
from etl_dagster.failures import failure_of
from etl_dagster.resources import PostgresReplicationResource
from etl_dagster.tables import ReplicatedTable

_READERS: Mapping[str, Callable[[ReplicatedTable], Any]] = {
    "pandas": ReplicatedTable.to_pandas,
    "polars": ReplicatedTable.to_polars,
    "pyarrow": ReplicatedTable.to_arrow,
}
"""By the package of an input's type, which is not imported for it."""
_TYPES = frozenset({"pandas.DataFrame", "polars.DataFrame", "pyarrow.Table"})


class ReplicatedTableIOManager(dg.ConfigurableIOManager):
    """Hands a replicated table of one pipeline to the assets on it, whole: the `input_manager_key` of their inputs.

    The type of the input says as what: pandas.DataFrame (also without a type), polars.DataFrame or pyarrow.Table. The
    last two parts of the asset's key say which table, as those of the replicated tables' own keys do.
    """

    replication: dg.ResourceDependency[PostgresReplicationResource]

    def load_input(self, context: dg.InputContext) -> Any:
        """Raises dg.Failure, with what to do, for a table that was never copied or cannot be read."""
        try:
            table = self._table(context.asset_key)
            read = _reader(context)
        except EtlError as error:
            raise failure_of(error, self.replication.name) from error
        return read(table)

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:  # noqa: ARG002
        """Raises dg.Failure: what an asset returns would be taken for a replicated table."""
        error = ConfigError(
            "ReplicatedTableIOManager reads replicated tables and writes none",
            hint="give it to inputs alone, AssetIn(input_manager_key=…), and the asset an io_manager_key of its own",
        )
        raise failure_of(error, self.replication.name)

    def _table(self, key: dg.AssetKey) -> ReplicatedTable:
        replication = self.replication
        with contextlib.closing(replication.state.open(replication.name)) as store:
            store.migrate()
            known = [status.name for status in store.tables()]
        for name in known:
            if list(replication.destination.table_path(name)) == list(key.path[-2:]):
                return replication.table(str(name))
        raise PermanentError(
            f"asset {key.to_user_string()} is no table that pipeline {replication.name} has copied",
            hint="materialise the table's asset first; the last two parts of its key are the table's schema and name",
        )


def _reader(context: dg.InputContext) -> Callable[[ReplicatedTable], Any]:
    wanted = context.dagster_type.typing_type
    if wanted in (Any, None):
        return ReplicatedTable.to_pandas
    package = str(getattr(wanted, "__module__", "")).partition(".")[0]
    name = f"{package}.{getattr(wanted, '__name__', wanted)}"
    if name not in _TYPES:
        raise ConfigError(
            f"input {context.name} wants {name}, which a replicated table is not read as",
            hint=f"annotate it as one of: {', '.join(sorted(_TYPES))}",
        )
    return _READERS[package]
