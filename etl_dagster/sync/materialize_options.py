"""What a person may set for one launch of a materialisation: once, whatever assets and steps the launch has."""

import dagster as dg
from pydantic import Field

MATERIALIZE_KEY = "etl_materialize"
"""The key of the options among the run's resources: `resources: {etl_materialize: {config: {full_refresh: true}}}`."""


class MaterializeOptions(dg.ConfigurableResource):
    """How replicated tables are materialised. A resource, because a launch configures it once for all of its steps."""

    full_refresh: bool = Field(
        default=False,
        description="Copy the tables again, behind the swap. Off: copy only what was never copied or must be copied"
        " again, and wait for the stream with the others.",
    )
    connections: int | None = Field(
        default=None, ge=1, description="Connections that copy one table (default: the resource's copy_connections)."
    )


OPTIONS = MaterializeOptions()
"""The one object that all assets bring along: Dagster refuses two for one key."""
