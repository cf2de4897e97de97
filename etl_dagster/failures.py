"""The engine's errors as Dagster shows them."""

import dagster as dg

from etl_core.errors import EtlError, PermanentError


def failure_of(error: EtlError) -> dg.Failure:
    """The failure that says what happened, with what to do as `hint`; it is retried unless that cannot help."""
    return dg.Failure(
        description=str(error),
        metadata={"hint": error.hint} if error.hint else None,
        allow_retries=not isinstance(error, PermanentError),
    )
