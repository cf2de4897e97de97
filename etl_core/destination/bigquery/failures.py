"""What Google's errors mean to the engine: tried again, one table's fault, or a person's to mend.

Reasons: https://cloud.google.com/bigquery/docs/error-messages. Messages of BigQuery may quote values of rows, so
nothing of them is repeated but for errors that cannot.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import requests.exceptions
from google.api_core import exceptions
from google.auth import exceptions as auth

from etl_core.errors import DestinationError, DestinationUnavailable, EtlError, TableError, WatermarkConflict
from etl_core.identifiers import TableName

FENCE = "etl:fence"
ORIGIN = "etl:origin"
REMOVAL = "etl:removal"
"""Begin the messages of the assertions in our scripts; the last two are followed by the number of the table's part."""

_PASSING = frozenset(
    {"rateLimitExceeded", "quotaExceeded", "backendError", "internalError", "tableUnavailable", "jobRateLimitExceeded"}
)
_LIMITS = frozenset({"rateLimitExceeded", "quotaExceeded", "jobRateLimitExceeded"})
_ROLES = "roles/bigquery.jobUser and roles/bigquery.dataEditor on the project"


class TransactionConflict(DestinationUnavailable):
    """Another transaction was faster; nothing of ours was applied."""


class QuotaUsedUp(DestinationUnavailable):
    """A quota or rate limit; nothing was applied."""


@contextmanager
def translated(doing: str, table: TableName | None = None) -> Iterator[None]:
    """Raises what Google's error in the block means; `doing` ends the sentence "BigQuery … while"."""
    try:
        yield
    except EtlError:
        raise
    except (
        exceptions.GoogleAPIError,
        auth.GoogleAuthError,
        requests.exceptions.RequestException,
        TimeoutError,
    ) as error:
        raise explain(error, doing, table) from None


def explain(error: Exception, doing: str, table: TableName | None = None) -> EtlError:
    """The engine's error for Google's."""
    if isinstance(error, exceptions.RetryError) and isinstance(error.cause, Exception):
        return explain(error.cause, doing, table)
    if isinstance(error, auth.RefreshError | auth.DefaultCredentialsError):
        return DestinationError(
            f"no credentials for BigQuery while {doing}",
            hint="run: gcloud auth application-default login, or name a service account's file as"
            " destination.credentials",
        )
    if not isinstance(error, exceptions.GoogleAPICallError):
        return DestinationUnavailable(f"BigQuery could not be reached while {doing}: {type(error).__name__}")
    reason = _reason(error) or ("quotaExceeded" if isinstance(error, exceptions.TooManyRequests) else None)
    message = str(error.message or "")
    if FENCE in message:
        return WatermarkConflict(f"a table has another watermark in BigQuery than expected, while {doing}")
    if reason in _PASSING or isinstance(error, exceptions.ServerError | exceptions.Aborted):
        return _passing(reason, doing)
    if _is_conflict(message):
        return TransactionConflict(f"another transaction changed the same tables while {doing}")
    if isinstance(error, exceptions.Forbidden | exceptions.Unauthorized):
        return DestinationError(f"BigQuery refuses {doing}: a permission is missing", hint=f"grant {_ROLES}")
    if isinstance(error, exceptions.NotFound):
        if "location" in message:
            return DestinationError(
                f"the datasets are not in the location that is configured, while {doing}",
                hint="set destination.location to where the datasets are",
            )
        return _table_or_all(f"a table or dataset is not there while {doing}", table)
    return _table_or_all(f"BigQuery refused {doing}: {reason or type(error).__name__}", table)


def _is_conflict(message: str) -> bool:
    # BigQuery: "Transaction is aborted due to concurrent update against table", and of a statement outside of one
    # "Could not serialize access to table … due to concurrent update". local-bigquery: what DuckLake says.
    return "concurrent update" in message or "Failed to commit" in message


def _passing(reason: str | None, doing: str) -> EtlError:
    if reason in _LIMITS:
        return QuotaUsedUp(
            f"a quota of BigQuery is used up ({reason}) while {doing}",
            hint="it is tried again, slower; larger batches (batch.max_age) need fewer jobs",
        )
    return DestinationUnavailable(f"BigQuery had a problem ({reason or 'server error'}) while {doing}")


def _table_or_all(text: str, table: TableName | None) -> EtlError:
    if table is None:
        return DestinationError(text, hint="somebody else has changed the datasets; see the job in BigQuery's history")
    return TableError(
        f"{table}: {text}", table=str(table), hint=f"somebody else has changed it; copy it again: etl resync {table}"
    )


def _reason(error: exceptions.GoogleAPICallError) -> str | None:
    for detail in error.errors or ():
        found: Any = detail.get("reason") if isinstance(detail, dict) else None
        if found:
            return str(found)
    return None
