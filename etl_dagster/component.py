"""`type: etl_dagster.PostgresReplicationComponent` in a defs.yaml: one pipeline, from attributes instead of Python.

A shell over `build_postgres_replication`. Subclass the component and override `get_asset_spec` to change how tables
appear. Loading connects to nothing: the tables stand in the file, or, with `discover: publication`, in what
`dg utils refresh-defs-state` wrote down when it last asked the source.
"""

import contextlib
import json
import logging
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

import dagster as dg
from dagster.components import DefsStateConfig, DefsStateConfigArgs, ResolvedDefsStateConfig
from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from etl_core.errors import EtlError
from etl_dagster import names
from etl_dagster.definitions import build_postgres_replication
from etl_dagster.failures import failure_of
from etl_dagster.resources import (
    DestinationResource,
    DuckDBDestinationResource,
    PostgresReplicationResource,
    StateStoreResource,
)
from etl_dagster.scaffold import ReplicationScaffolder
from etl_dagster.secrets import holds_secret
from etl_dagster.stream_job import StreamConfig
from etl_dagster.translator import DagsterReplicationTranslator, ReplicatedTableProps

_log = logging.getLogger(__name__)

_DESTINATIONS: Mapping[str, type[DestinationResource]] = {"duckdb": DuckDBDestinationResource}
"""`destination.type` and the resource whose fields are the rest of `destination`."""


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
    lease_seconds: float | None = Field(default=None, description="mode stream: how long until a successor is wanted.")
    report_every_seconds: float | None = Field(
        default=None, description="At most one materialisation per changed table in so many seconds."
    )
    heartbeat_every_seconds: float | None = Field(
        default=None, description="A table without changes is reported after so many seconds."
    )

    @model_validator(mode="after")
    def _cron_with_schedule(self) -> Self:
        if (self.mode == "schedule") != (self.cron is not None):
            raise ValueError("mode schedule needs cron, and mode stream has none")
        return self

    def config(self) -> StreamConfig:
        given = self.model_dump(exclude={"mode", "cron"}, exclude_none=True)
        return StreamConfig(mode="micro_batch" if self.mode == "schedule" else "stream", **given)


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

    max_retries: int = 1
    delay_seconds: float | None = None
    backoff: Literal["linear", "exponential"] | None = None

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


Translate = Callable[[dg.AssetSpec, ReplicatedTableProps], dg.AssetSpec]
"""Gives the spec of one table from the translator's."""


def _resolve_translation(context: dg.ResolutionContext, model: BaseModel) -> Translate:
    # Once for each table: `{{ table.name }}` and `{{ spec.key }}` are that table's.
    def translate(spec: dg.AssetSpec, props: ReplicatedTableProps) -> dg.AssetSpec:
        translation = Translation.resolve_from_model(context.with_scope(table=props.table, spec=spec), model)
        assert isinstance(translation, Translation)  # noqa: S101 - untyped in Dagster
        return translation.apply(spec)

    return translate


def _destination_models() -> Any:
    """`destination` as YAML has it, for each type: `type` and the resource's fields."""
    models: list[Any] = []
    for type_name, resource in _DESTINATIONS.items():
        options: dict[str, Any] = {name: (field.annotation, field) for name, field in resource.model_fields.items()}
        options["type"] = (Literal[type_name], ...)
        models.append(create_model(resource.__name__, __base__=dg.Model, **options))
    return Union[*models]


def _resolve_destination(context: dg.ResolutionContext, model: BaseModel) -> DestinationResource:
    options = dict(context.resolve_value(model.model_dump(exclude_unset=True)))
    return _DESTINATIONS[options.pop("type")](**options)


_Template = Annotated[str, Field(pattern=r"\{\{")]


def _exact_model(declared: type[BaseModel], derived: type[BaseModel]) -> type[BaseModel]:
    """What Dagster derives from `declared`, less the text it admits for any value; only a template `{{ … }}` stays.

    With it `dg check yaml` finds the wrong line inside a section and a word where a number belongs.
    """
    fields: dict[str, Any] = {}
    for name, field in declared.model_fields.items():
        resolver = next((data for data in field.metadata if isinstance(data, dg.Resolver)), None)
        shape = _exact(resolver.model_field_type if resolver and resolver.model_field_type else field.annotation)
        known = derived.model_fields[name]
        default = ... if known.is_required() else known.default
        fields[name] = (shape, Field(default, description=known.description))
    return create_model(derived.__name__, __base__=derived, **fields)


def _exact(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, UnionType):
        parts = [_exact(part) for part in get_args(annotation)]
        # A section or nothing: to leave it out is nothing, and with an alternative the section's lines go unnamed.
        return next((part for part in parts if _is_model(part)), Union[*parts])
    if _is_model(annotation):
        return _exact_model(annotation, annotation.model()) if issubclass(annotation, dg.Resolvable) else annotation
    return annotation if annotation in (str, NoneType) else annotation | _Template


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


@dg.scaffold_with(ReplicationScaffolder)
class PostgresReplicationComponent(dg.StateBackedComponent, dg.Model, dg.Resolvable):
    """A PostgreSQL publication replicated into a destination: an asset per table, a supervised stream, checks."""

    model_config = ConfigDict(arbitrary_types_allowed=True, hide_input_in_errors=True)

    name: str = Field(description="The pipeline's name: the replication slot is etl_<name>.")
    source: Source
    destination: Annotated[
        DestinationResource, dg.Resolver(_resolve_destination, model_field_type=_destination_models())
    ]
    state: State
    tables: list[str] | None = Field(default=None, description="namespace.table, quoted as in SQL.")
    discover: Literal["publication"] | None = Field(
        default=None,
        description="publication: the tables it publishes, as of the last `dg utils refresh-defs-state`.",
    )
    stream: Stream = Stream()
    max_lag: float = Field(default=60.0, description="Seconds, for the check replication_lag.")
    freshness: Freshness | None = None
    retry_policy: Retries | None = None
    op_tags: dict[str, Any] = Field(default={}, description="On the steps of the initial syncs.")
    translation: Annotated[
        Translate | None, dg.Resolver(_resolve_translation, model_field_type=Translation.model())
    ] = None
    defs_state: ResolvedDefsStateConfig = DefsStateConfigArgs.local_filesystem()

    @model_validator(mode="after")
    def _tables_known(self) -> Self:
        if (self.tables is None) == (self.discover is None):
            raise ValueError("give either tables, a list, or discover: publication")
        return self

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        return _exact_model(PostgresReplicationComponent, cls.model())

    def get_asset_spec(self, props: ReplicatedTableProps) -> dg.AssetSpec:
        """The asset of one replicated table. Override it to change what `translation` does not."""
        spec = DagsterReplicationTranslator().get_asset_spec(props)
        return spec if self.translation is None else self.translation(spec, props)

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Connects to nothing. Dagster's state is looked at only to `discover`."""
        return super().build_defs(context) if self.tables is None else self._definitions(self.tables)

    @property
    def defs_state_config(self) -> DefsStateConfig:
        args = self.defs_state
        if "refresh_if_dev" not in args.model_fields_set:
            # Else `dagster dev` would connect while it loads, and not load while the source is down.
            args = args.model_copy(update={"refresh_if_dev": False})
        return DefsStateConfig.from_args(args, default_key=f"PostgresReplicationComponent[{self.name}]")

    def write_state_to_path(self, state_path: Path) -> None:
        """For `dg utils refresh-defs-state`: `{"tables": […]}`, asked of the source. Raises dg.Failure."""
        tables = self.tables
        if tables is None:
            try:
                tables = _published_tables(self._replication())
            except EtlError as error:
                raise failure_of(error) from error
        state_path.write_text(json.dumps({"tables": tables}))

    def build_defs_from_state(
        self,
        context: dg.ComponentLoadContext,  # noqa: ARG002 - Dagster's signature
        state_path: Path | None,
    ) -> dg.Definitions:
        """The definitions of the tables found; without state only the resource, and a line of log."""
        if state_path is not None:
            return self._definitions(json.loads(state_path.read_text())["tables"])
        _log.warning(
            "pipeline %s has no tables yet: run `dg utils refresh-defs-state`, which asks publication %s, then reload",
            self.name,
            self.source.publication,
        )
        return dg.Definitions(resources={names.resource_key(self.name): self._replication()})

    def _definitions(self, tables: list[str]) -> dg.Definitions:
        return build_postgres_replication(
            self._replication(),
            tables=tables,
            stream=self.stream.config(),
            cron_schedule=self.stream.cron,
            max_lag=self.max_lag,
            translator=_ComponentTranslator(self),
            retry_policy=None if self.retry_policy is None else self.retry_policy.policy(),
            op_tags=self.op_tags,
            freshness_policy=None if self.freshness is None else self.freshness.policy(),
        )

    def _replication(self) -> PostgresReplicationResource:
        source = self.source.model_dump(exclude={"dsn", "dsn_env"}, exclude_none=True)
        return PostgresReplicationResource(
            name=self.name,
            dsn=_literal_or_variable("source.dsn", self.source.dsn, self.source.dsn_env),
            tables=self.tables,
            state=StateStoreResource(url=_literal_or_variable("state.url", self.state.url, self.state.url_env) or ""),
            destination=self.destination,
            **source,
        )


class _ComponentTranslator(DagsterReplicationTranslator):
    def __init__(self, component: PostgresReplicationComponent) -> None:
        self._component = component

    def get_asset_spec(self, props: ReplicatedTableProps) -> dg.AssetSpec:
        return self._component.get_asset_spec(props)


def _literal_or_variable(field: str, literal: str | None, variable: str | None) -> str | None:
    """Raises DagsterInvalidDefinitionError for a password, also one that `{{ env.… }}` has put there."""
    if variable is not None:
        return dg.EnvVar(variable)
    if literal is not None and holds_secret(literal):
        raise dg.DagsterInvalidDefinitionError(
            f"{field} holds a password, which Dagster would show on its pages: leave it out and name the environment"
            f" variable that holds it (source.password_env), or that holds all of {field} ({field}_env)"
        )
    return literal


def _published_tables(replication: PostgresReplicationResource) -> list[str]:
    from etl_core.source.catalog import published_tables
    from etl_core.source.publication import check_publication

    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(replication.connect("discover"))
        check_publication(connection, replication.publication, None)
        return sorted(str(table.name) for table in published_tables(connection, replication.publication))
