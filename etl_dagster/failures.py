"""The engine's errors as Dagster shows them."""

import dagster as dg

from etl_core.errors import EtlError, PermanentError
from etl_dagster.hints import in_dagster, sentence


def failure_of(error: EtlError, pipeline: str | None = None) -> dg.Failure:
    """The failure that says what happened and what to do, both in its message: alerts show nothing else.

    What to do is its metadata `hint` as well. It is retried unless that cannot help.
    """
    return dg.Failure(
        description=sentence(error, pipeline),
        metadata={"hint": in_dagster(error.hint, pipeline)} if error.hint else None,
        allow_retries=not isinstance(error, PermanentError),
    )
