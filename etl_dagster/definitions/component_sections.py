"""The sections of the component's YAML: what each may hold, and what it means to the factory."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal, Self

import dagster as dg
from pydantic import ConfigDict, Field, model_validator

from etl_core.config_values import parse_duration, parse_size
from etl_dagster.load_checks import checked, positive
from etl_dagster.stream.stream_job import StreamConfig


class Source(dg.Model, dg.Resolvable):
    """The database and its publication: `dsn`, `dsn_env`, or `host`, `database` and the rest."""

    publication: str = Field(description="Created for `tables` when it does not exist and rights allow.")
    dsn: str | None = Field(
        default=None, description="postgresql://user@host:5432/database, or libpq keywords; without the password."
    )
    dsn_env: str | None = Field(default=None, description="The environment variable that holds the whole address.")
    host: str | None = None
    port: int | None = None
    database: str | None = None
    user: str | None = None
    password_env: str | None = Field(default=None, description="The environment variable that holds the password.")
    keywords: dict[str, str] = Field(default={}, description="Other libpq keywords: sslmode, connect_timeout …")

    @model_validator(mode="after")
    def _one_address(self) -> Self:
        if self.dsn is not None and self.dsn_env is not None:
            raise ValueError("dsn and dsn_env exclude each other")
        return self


class State(dg.Model, dg.Resolvable):
    """Where positions, table states and schemas are kept."""

    url: str | None = Field(
        default=None, description="sqlite:///path, or postgresql://user@host/database; without a password."
    )
    url_env: str | None = Field(default=None, description="The environment variable that holds the whole URL.")

    @model_validator(mode="after")
    def _one_url(self) -> Self:
        if (self.url is None) == (self.url_env is None):
            raise ValueError("give either url or url_env")
        return self


class Stream(dg.Model, dg.Resolvable):
    """A stream that stands, or batches at fixed times."""

    mode: Literal["stream", "schedule"] = Field(
        default="stream", description="stream: a sensor keeps a run streaming. schedule: batches at `cron`."
    )
    cron: str | None = Field(default=None, description="mode schedule: when to fetch a batch.")
    lease_seconds: float | None = Field(
        default=None, gt=0, description="mode stream: how long until a successor is wanted."
    )
    report_every_seconds: float | None = Field(
        default=None, gt=0, description="At most one materialisation per changed table in so many seconds."
    )
    heartbeat_every_seconds: float | None = Field(
        default=None, gt=0, description="A table without changes is reported after so many seconds."
    )

    sensor: Literal["running", "stopped"] = Field(
        default="stopped",
        description="Whether the sensor, or the schedule, is on when the code location is first loaded.",
    )
    op_tags: dict[str, Any] = Field(default={}, description="On the step that streams.")

    @model_validator(mode="after")
    def _cron_with_schedule(self) -> Self:
        if (self.mode == "schedule") != (self.cron is not None):
            raise ValueError("mode schedule needs cron, and mode stream has none")
        return self

    def config(self) -> StreamConfig:
        given = self.model_dump(exclude={"mode", "cron", "sensor", "op_tags"}, exclude_none=True)
        return StreamConfig(mode="micro_batch" if self.mode == "schedule" else "stream", **given)

    def sensor_status(self) -> dg.DefaultSensorStatus:
        return dg.DefaultSensorStatus[self.sensor.upper()]


class Batch(dg.Model, dg.Resolvable):
    """When a batch is written: at the first of these."""

    max_rows: int | None = Field(default=None, ge=1)
    max_bytes: Annotated[str | None, checked(positive("max_bytes", parse_size))] = Field(
        default=None, description="Such as 16MiB."
    )
    max_age: Annotated[str | None, checked(positive("max_age", parse_duration))] = Field(
        default=None, description="Such as 500ms or 1s."
    )

    def options(self) -> dict[str, Any]:
        """As the resource calls them."""
        return {f"batch_{name}": value for name, value in self.model_dump(exclude_none=True).items()}


class InitialSync(dg.Model, dg.Resolvable):
    """How tables are copied."""

    connections: int | None = Field(default=None, ge=1, description="Connections that copy one table at a time.")
    processes: dict[str, int] = Field(
        default={}, description="Large tables, and how many processes copy each; the others are copied in one step."
    )
    own_step_from: Annotated[str, checked(positive("own_step_from", parse_size))] = Field(
        default="1GiB",
        description="discover: tables that had this size at the last refresh have a step of their own.",
    )

    def options(self) -> dict[str, Any]:
        """As the resource calls them."""
        return {} if self.connections is None else {"copy_connections": self.connections}

    def processes_of(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """The tables with steps of their own, and by how many processes; `sizes` are in bytes, by table."""
        limit = parse_size(self.own_step_from)
        return {**{table: 1 for table, size in sizes.items() if size >= limit}, **self.processes}


class Compare(dg.Model, dg.Resolvable):
    """A schedule for the check equals_source."""

    cron: str = Field(description="When tables are compared.")
    max_bytes: Annotated[str, checked(positive("max_bytes", parse_size))] = Field(
        default="50GiB", description="Of tables at a time, on the source's disk; those first that wait longest."
    )


class Pools(dg.Model, dg.Resolvable):
    """Concurrency pools other than `<name>_sync` and `<name>_stream`."""

    sync: str | None = Field(default=None, description="Its limit is how many steps that copy run at a time.")
    stream: str | None = Field(default=None, description="Its limit must be two or more.")


class Freshness(dg.Model, dg.Resolvable):
    """How old the last materialisation may be: the stream's reports and heartbeats count."""

    fail_after_seconds: float
    warn_after_seconds: float | None = None

    def policy(self) -> dg.FreshnessPolicy:
        warn = self.warn_after_seconds
        return dg.FreshnessPolicy.time_window(
            timedelta(seconds=self.fail_after_seconds), None if warn is None else timedelta(seconds=warn)
        )


class Retries(dg.Model, dg.Resolvable):
    """How often an initial sync that failed is tried again. The stream has its sensor for that."""

    max_retries: int = Field(default=1, ge=0)
    delay_seconds: float | None = Field(default=None, ge=0)
    backoff: Literal["linear", "exponential"] | None = None

    @model_validator(mode="after")
    def _delay_with_backoff(self) -> Self:
        if self.backoff is not None and self.delay_seconds is None:
            raise ValueError("backoff needs delay_seconds, the wait that grows")
        return self

    def policy(self) -> dg.RetryPolicy:
        backoff = None if self.backoff is None else dg.Backoff[self.backoff.upper()]
        return dg.RetryPolicy(max_retries=self.max_retries, delay=self.delay_seconds, backoff=backoff)


class Translation(dg.Model, dg.Resolvable):
    """What of a replicated table's asset differs from the translator's; tags, kinds and metadata are added to it."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    key: dg.ResolvedAssetKey | None = None
    key_prefix: str | list[str] | None = None
    group_name: str | None = None
    description: str | None = None
    owners: list[str] | None = None
    tags: dict[str, str] = Field(default={})
    kinds: list[str] = Field(default=[])
    metadata: dict[str, Any] = Field(default={})
    automation_condition: dg.Injected[dg.AutomationCondition] | None = Field(
        default=None, description="\"{{ dg.AutomationCondition.on_cron('@weekly') }}\": when to copy the table again."
    )

    def apply(self, spec: dg.AssetSpec) -> dg.AssetSpec:
        replaced = ("group_name", "description", "owners", "automation_condition")
        given: dict[str, Any] = {name: getattr(self, name) for name in replaced if getattr(self, name) is not None}
        key = self.key or spec.key
        given["key"] = key.with_prefix(self.key_prefix) if self.key_prefix else key
        return spec.replace_attributes(**given).merge_attributes(
            tags=self.tags, kinds={*self.kinds}, metadata=self.metadata
        )
