"""What a code location is told about a pipeline's values when it loads, instead of the first run.

Nothing connects and no environment variable is read: a value that is a `dg.EnvVar` is checked when something runs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import AfterValidator

from etl_core.config_tables import read_tables, read_write_mode
from etl_core.config_values import check_positive, in_field, parse_duration, parse_size, wrong_kind
from etl_core.errors import ConfigError
from etl_core.identifiers import TableName, check_pipeline_name
from etl_core.policies import read_policy
from etl_core.type_options import read_types
from etl_dagster.secrets import refuse_shown_secrets

if TYPE_CHECKING:
    from etl_dagster.resources import PostgresReplicationResource


def check_replication(replication: "PostgresReplicationResource") -> None:
    """Raises DagsterInvalidDefinitionError. For a resource as it is defined, not as it is when something runs."""
    refuse_shown_secrets(replication, f"pipeline {replication.name}")
    with definition_errors(replication.name):
        check_pipeline_name(replication.name)
        _check_limit("batch_max_rows", replication.batch_max_rows)
        _check_limit("batch_max_bytes", replication.batch_max_bytes, parse_size)
        _check_limit("batch_max_age", replication.batch_max_age, parse_duration)
        _check_limit("copy_connections", replication.copy_connections)
        replication.destination.check()
        if isinstance(replication.tables, str):
            raise wrong_kind("tables", "a list", replication.tables)
        replication.selection()
        check_table_settings(replication.table_settings)
        read_write_mode("write_mode", replication.write_mode)
        read_policy("", replication.policies())
        check_types(replication.types)


@contextmanager
def definition_errors(pipeline: str) -> Iterator[None]:
    """A ConfigError from the block as DagsterInvalidDefinitionError, in which what to do stands too."""
    try:
        yield
    except ConfigError as error:
        raise dg.DagsterInvalidDefinitionError(f"pipeline {pipeline}: {sentence(error)}") from None


def parse_tables(tables: Sequence[str]) -> list[TableName]:
    """Raises ConfigError for what is not a table's name, and for one name instead of a list of them."""
    if isinstance(tables, str):
        raise wrong_kind("tables", "a list", tables)
    return [in_field(f"tables[{index}]", TableName.parse, table) for index, table in enumerate(tables)]


def check_table_settings(settings: Mapping[str, Any]) -> None:
    """Raises ConfigError for what is wrong with them, whatever the tables are."""
    read_tables("table_settings", settings)


def check_write_mode(mode: str) -> None:
    """Raises ConfigError for what is not the name of one."""
    read_write_mode("write_mode", mode)


def check_policy(field: str) -> Callable[[object], None]:
    """The check of one of the policies: raises ConfigError for what it cannot be."""

    def check(value: object) -> None:
        read_policy("", {field: value})

    return check


def check_types(types: Mapping[str, Any]) -> None:
    """Raises ConfigError for an option of types, or a word of one, that there is not."""
    read_types("types", types)


def check_max_lag(max_lag: object) -> None:
    """Raises ConfigError for what is not a number of seconds."""
    if isinstance(max_lag, bool) or not isinstance(max_lag, int | float):
        raise wrong_kind("max_lag", "a number of seconds", max_lag)
    check_positive("max_lag", max_lag)


def checked(check: Callable[[Any], object]) -> AfterValidator:
    """For an attribute of the component's YAML: what `check` says of its value, once no template is in it."""

    def validate(value: Any) -> Any:
        if value is None or any("{{" in text for text in ([value] if isinstance(value, str) else value)):
            return value
        try:
            check(value)
        except ConfigError as error:
            raise ValueError(sentence(error)) from None
        return value

    return AfterValidator(validate)


def positive(field: str, parse: Callable[[str], float]) -> Callable[[str], None]:
    """The check of an amount with a unit."""
    return lambda text: check_positive(field, in_field(field, parse, text))


def _check_limit(field: str, value: int | str, parse: Callable[[str], float] = float) -> None:
    if type(value) is int:
        check_positive(field, value)
    elif type(value) is str:  # dg.EnvVar is a kind of str
        positive(field, parse)(value)


def sentence(error: ConfigError) -> str:
    """The error with what to do."""
    return f"{error}; {error.hint}" if error.hint else str(error)
