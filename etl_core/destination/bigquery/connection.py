"""Google's clients for one destination: built at first use, every call with an end, errors translated."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import google.auth
import grpc
import requests.exceptions
from google.api_core import exceptions
from google.api_core.retry import Retry, if_exception_type
from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery
from google.cloud.bigquery_storage_v1 import BigQueryReadClient, BigQueryWriteClient
from google.cloud.bigquery_storage_v1.services.big_query_read.transports import BigQueryReadGrpcTransport
from google.cloud.bigquery_storage_v1.services.big_query_write.transports import BigQueryWriteGrpcTransport
from google.oauth2 import service_account

from etl_core.destination.bigquery.failures import TransactionConflict, translated
from etl_core.destination.bigquery.options import BigQueryOptions
from etl_core.errors import ConfigError, DestinationUnavailable, EtlError
from etl_core.identifiers import TableName

CALL_SECONDS = 60.0
RETRY = bigquery.DEFAULT_RETRY.with_delay(0.5, 4.0).with_timeout(10.0)
"""Of requests that may arrive twice. Without an end of ours it would be ten minutes, during which nothing is told."""
STORAGE_RETRY = Retry(
    if_exception_type(exceptions.ServiceUnavailable, exceptions.DeadlineExceeded, exceptions.ResourceExhausted),
    initial=0.5,
    maximum=4.0,
    timeout=10.0,
)
"""The same for the Storage API, but never for AppendRows: Google's client would take the requests from an iterator that
is at its end, send none, and say that all is well."""
JOB_SECONDS = 3600.0
NO_RETRY: Any = None
_TRIES = 4
_WAIT = 1.0
_LOST = (
    requests.exceptions.ConnectionError,
    requests.exceptions.Timeout,
    exceptions.BadGateway,
    exceptions.GatewayTimeout,
)
"""What leaves open whether BigQuery has the job."""
_SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)
_GRPC = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))

T = TypeVar("T")
Parameter = bigquery.ScalarQueryParameter | bigquery.ArrayQueryParameter | bigquery.StructQueryParameter


class Clients:
    """The REST client and the two of the Storage API. Thread-safe."""

    def __init__(self, options: BigQueryOptions) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._rest: bigquery.Client | None = None
        self._write: BigQueryWriteClient | None = None
        self._read: BigQueryReadClient | None = None

    @property
    def project(self) -> str:
        return self._options.project

    def rest(self) -> bigquery.Client:
        with self._lock:
            if self._rest is None:
                options = self._options
                endpoint = {"api_endpoint": options.api_endpoint} if options.api_endpoint else None
                with translated("reading the credentials"):
                    self._rest = bigquery.Client(
                        project=options.project,
                        credentials=self._credentials(),
                        location=options.location,
                        client_options=endpoint,
                    )
            return self._rest

    def write(self) -> BigQueryWriteClient:
        with self._lock:
            if self._write is None:
                self._write = self._storage_client(BigQueryWriteClient, BigQueryWriteGrpcTransport)
            return self._write

    def read(self) -> BigQueryReadClient:
        with self._lock:
            if self._read is None:
                self._read = self._storage_client(BigQueryReadClient, BigQueryReadGrpcTransport)
            return self._read

    def _storage_client(self, client: Any, transport: Any) -> Any:
        endpoint = self._options.storage_endpoint
        if endpoint is None:
            with translated("reading the credentials"):
                return client(credentials=self._credentials())
        return client(transport=transport(channel=grpc.insecure_channel(endpoint, options=_GRPC)))

    def run(
        self,
        sql: str,
        doing: str,
        parameters: Sequence[Parameter] = (),
        *,
        job_prefix: str = "etl",
        table: TableName | None = None,
        explain: Callable[[str], EtlError | None] = lambda _: None,
    ) -> bigquery.QueryJob:
        """Runs a statement or script and waits for its end; `doing` says what for.

        The job has its id before it is sent: when an answer is lost, it is asked for by that id, and sent again only
        if BigQuery has never heard of it. One that another transaction was faster than is run again, with another id.
        `explain` may know better what a message of BigQuery means.
        """

        def run() -> bigquery.QueryJob:
            return self._run(sql, list(parameters), f"{job_prefix}_{secrets.token_hex(12)}", explain)

        return _retried(doing, run, table, TransactionConflict)

    def repeat(self, doing: str, call: Callable[[], None], table: TableName | None = None) -> None:
        """Calls what may be called again when it is not known whether it was done, until it is; a few times."""
        _retried(doing, call, table, DestinationUnavailable)

    def _run(
        self, sql: str, parameters: list[Parameter], job_id: str, explain: Callable[[str], EtlError | None]
    ) -> bigquery.QueryJob:
        client = self.rest()
        config = bigquery.QueryJobConfig(query_parameters=parameters, use_query_cache=False)
        for number in range(1, _TRIES + 1):
            try:
                job = self._begin(client, sql, config, job_id)
                job.result(retry=NO_RETRY, job_retry=NO_RETRY, timeout=JOB_SECONDS)
                return job
            except _LOST:
                if number == _TRIES:
                    raise
                time.sleep(_WAIT * number)
            except exceptions.GoogleAPICallError as error:
                known = explain(str(error.message or ""))
                if known is not None:
                    raise known from None
                raise
        raise AssertionError("unreachable")

    def _begin(
        self, client: bigquery.Client, sql: str, config: bigquery.QueryJobConfig, job_id: str
    ) -> bigquery.QueryJob:
        try:
            return client.query(sql, config, job_id=job_id, retry=NO_RETRY, job_retry=NO_RETRY, timeout=CALL_SECONDS)
        except exceptions.Conflict:  # it is there already
            return cast(bigquery.QueryJob, client.get_job(job_id, retry=RETRY, timeout=CALL_SECONDS))

    def close(self) -> None:
        with self._lock:
            if self._rest is not None:
                self._rest.close()  # type: ignore[no-untyped-call]
            for client in (self._write, self._read):
                if client is not None:
                    client.transport.close()  # type: ignore[no-untyped-call]
            self._rest = self._write = self._read = None

    def _credentials(self) -> Any:
        text = self._options.credentials
        if self._options.api_endpoint:
            return AnonymousCredentials()  # type: ignore[no-untyped-call]
        if text == "default":
            return google.auth.default(scopes=_SCOPES)[0]
        kind: Any = service_account.Credentials
        is_text = text.lstrip().startswith("{")
        try:
            if is_text:
                return kind.from_service_account_info(json.loads(text), scopes=_SCOPES)
            return kind.from_service_account_file(text, scopes=_SCOPES)
        except OSError as error:
            raise ConfigError(
                f"the key file cannot be read: {text} ({error.strerror or type(error).__name__})",
                field="destination.credentials",
                hint="give the path of a service account's key file, its text, or: default",
            ) from None
        except ValueError:  # its text is not repeated: it may quote the key
            raise ConfigError(
                f"{'the text' if is_text else text} is not the key of a service account",
                field="destination.credentials",
                hint="create a key of type JSON for the service account, and give its path or its whole text",
            ) from None


def _retried(doing: str, call: Callable[[], T], table: TableName | None, again: type[DestinationUnavailable]) -> T:
    """What `call` gives, called again after an error of the kind `again`."""
    for number in range(1, _TRIES + 1):
        try:
            with translated(doing, table):
                return call()
        except again:
            if number == _TRIES:
                raise
            time.sleep(_WAIT * number * (0.5 + secrets.randbelow(1000) / 1000))
    raise AssertionError("unreachable")
