"""The engine's errors as Dagster shows them: the sentence, and what to do as metadata."""

import dagster as dg

from etl_core.errors import EtlError, PermanentError


def failure_of(error: EtlError) -> dg.Failure:
    """Dagster's failure for an engine error; what a person must mend first is not retried."""
    metadata = {"hint": error.hint} if error.hint else None
    return dg.Failure(description=str(error), metadata=metadata, allow_retries=not isinstance(error, PermanentError))
