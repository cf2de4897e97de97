"""What a code location is told about a pipeline's values when it loads, instead of the first run.

Nothing connects and no environment variable is read: a value that is a `dg.EnvVar` is checked when something runs.
"""

from typing import TYPE_CHECKING

from etl_dagster.secrets import refuse_shown_secrets

if TYPE_CHECKING:
    from etl_dagster.resources import PostgresReplicationResource


def check_replication(replication: "PostgresReplicationResource") -> None:
    """Raises DagsterInvalidDefinitionError. For a resource as it is defined, not as it is when something runs."""
    refuse_shown_secrets(replication, f"pipeline {replication.name}")
