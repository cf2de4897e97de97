"""After a permanent error: whether a stream run could end differently now.

A run that fails so notes, as a tag, a text of all that it depends on and the sensor can see. As long as that text is
the same, starting another run gives the same error once more, and so the sensor starts none.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import dagster as dg

from etl_core import __version__
from etl_core.errors import ConfigError, DestinationError, EtlError, PermanentError
from etl_dagster import names
from etl_dagster.secrets import is_secret_name

if TYPE_CHECKING:
    from etl_core.config import PipelineConfig
    from etl_core.source.connection import Connection
    from etl_core.state.store import StateStore
    from etl_dagster.resources import PostgresReplicationResource

SURROUNDINGS_TAG = "etl/stopped_in"
"""On a run that ended with a permanent error: `surroundings` as they were before its last try, and after it."""
RETRY_TAG = "etl/retry_after_seconds"
"""Besides, where the cause may be corrected without anybody here seeing it."""
_RETRY_AFTER = 3600
"""Seconds. The destination is not looked at, nor are files and packages that the configuration needs, such as a key:
what was corrected there shows in a try only."""


def surroundings(
    instance: dg.DagsterInstance,
    replication: "PostgresReplicationResource",
    connection: "Connection",
    store: "StateStore",
) -> str:
    """Configuration, tables' states, the source's catalog, the last control run that succeeded: hashed.

    Raises EtlError. Neither a secret nor what the stream itself moves is part of it.
    """
    from etl_core.identifiers import main_slot_name
    from etl_core.source.catalog_digest import catalog_digest

    store.migrate()
    control = latest_control_run(instance, replication.name)
    identity = store.source_identity()
    parts = [
        __version__,
        _describe(replication.config()),
        sorted(replication.tables or []),
        [(int(status.table_id), status.version) for status in store.tables()],
        None if identity is None else identity.incarnation,
        catalog_digest(connection, replication.publication, main_slot_name(replication.name)),
        None if control is None else control.dagster_run.run_id,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def latest_control_run(
    instance: dg.DagsterInstance, pipeline: str, tags: Mapping[str, Sequence[str]] | None = None
) -> dg.RunRecord | None:
    """The last run of the control job that did what it was asked, among those with one of the values of each tag."""
    finished = dg.RunsFilter(
        job_name=names.control_job_name(pipeline),
        statuses=[dg.DagsterRunStatus.SUCCESS],
        tags={tag: list(values) for tag, values in (tags or {}).items()},
    )
    return next(iter(instance.get_run_records(finished, limit=1)), None)


def _describe(config: "PipelineConfig") -> str:
    from psycopg.conninfo import conninfo_to_dict

    address = {name: str(value) for name, value in conninfo_to_dict(config.source.conninfo()).items()}
    options = {name: str(value) for name, value in config.destination.options.items() if name != "credentials"}
    known = [{name: value for name, value in group.items() if not is_secret_name(name)} for group in (address, options)]
    return json.dumps([known, config.destination.type, config.allow_append_only])


class Standstill:
    """Of one run: looks around before each try, and tags the run if the last one failed for good."""

    def __init__(self, replication: "PostgresReplicationResource", context: dg.OpExecutionContext) -> None:
        self._replication = replication
        self._context = context
        self._before: str | None = None

    def look(self) -> None:
        """Before a try."""
        self._before = self._look()

    def note(self, error: PermanentError) -> None:
        """The try failed with this. What changed meanwhile may be the cause's end: then the next run is to try."""
        if self._before is None or self._look() != self._before:
            return
        tags = {SURROUNDINGS_TAG: self._before}
        if isinstance(error, DestinationError | ConfigError):
            tags[RETRY_TAG] = str(_RETRY_AFTER)
        self._context.instance.add_run_tags(self._context.run_id, tags)

    def _look(self) -> str | None:
        """None where source or state store cannot be asked."""
        replication = self._replication
        with (
            contextlib.suppress(EtlError),
            contextlib.closing(replication.state.open(replication.name)) as store,
            replication.connect("look") as connection,
        ):
            return surroundings(self._context.instance, replication, connection, store)
        return None


def stands_still(record: dg.RunRecord, now_surroundings: str) -> bool:
    """Whether the run failed with a permanent error and nothing has changed since."""
    tags = record.dagster_run.tags
    if tags.get(SURROUNDINGS_TAG) != now_surroundings:
        return False
    retry_after = tags.get(RETRY_TAG)
    return retry_after is None or time.time() - (record.end_time or time.time()) < float(retry_after)


def may_stand_still(record: dg.RunRecord) -> bool:
    """Whether it is worth asking what `surroundings` are now."""
    return record.dagster_run.status is dg.DagsterRunStatus.FAILURE and SURROUNDINGS_TAG in record.dagster_run.tags
