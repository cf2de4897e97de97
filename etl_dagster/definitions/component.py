"""`type: etl_dagster.PostgresReplicationComponent` in a defs.yaml: one pipeline, from attributes instead of Python.

A shell over `build_postgres_replication`. Subclass the component and override `get_asset_spec` to change how tables
appear, `execute` to do something before and after a materialisation. Loading connects to nothing: the tables stand in
the file, or, with `discover: publication`, in what `dg utils refresh-defs-state` wrote down when it last asked the
source.
"""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import dagster as dg
from dagster.components import DefsStateConfig, DefsStateConfigArgs, ResolvedDefsStateConfig
from pydantic import BaseModel, ConfigDict, Field, model_validator

from etl_core.errors import EtlError
from etl_core.identifiers import check_pipeline_name
from etl_core.table_pattern import read_selection
from etl_dagster import names
from etl_dagster.definitions.component_destination import destination_models, resolve_destination
from etl_dagster.definitions.component_schema import exact_model, without_secrets
from etl_dagster.definitions.component_sections import (
    Batch,
    Compare,
    Freshness,
    InitialSync,
    Pools,
    Retries,
    Source,
    State,
    Stream,
    Translation,
)
from etl_dagster.definitions.dbt import dbt_sources as build_dbt_sources
from etl_dagster.definitions.factory import build_postgres_replication
from etl_dagster.definitions.scaffold import ReplicationScaffolder
from etl_dagster.destination_resource import DestinationResource
from etl_dagster.failures import failure_of
from etl_dagster.load_checks import (
    check_policy,
    check_replication,
    check_table_settings,
    check_types,
    check_write_mode,
    checked,
)
from etl_dagster.resources import PostgresReplicationResource, StateStoreResource
from etl_dagster.secrets import holds_secret
from etl_dagster.sync.sync_step import SyncStep
from etl_dagster.translator import DagsterReplicationTranslator, ReplicatedTableProps

_log = logging.getLogger(__name__)

Translate = Callable[[dg.AssetSpec, ReplicatedTableProps], dg.AssetSpec]
"""Gives the spec of one table from the translator's."""


def _resolve_translation(context: dg.ResolutionContext, model: BaseModel) -> Translate:
    # Once for each table: `{{ table.name }}` and `{{ spec.key }}` are that table's.
    def translate(spec: dg.AssetSpec, props: ReplicatedTableProps) -> dg.AssetSpec:
        translation = Translation.resolve_from_model(context.with_scope(table=props.table, spec=spec), model)
        assert isinstance(translation, Translation)  # noqa: S101 - untyped in Dagster
        return translation.apply(spec)

    return translate


_INSTEAD = "write discover: publication"


def _check_tables(tables: list[str]) -> None:
    read_selection("tables", tables, instead=_INSTEAD)


@dg.scaffold_with(ReplicationScaffolder)
class PostgresReplicationComponent(dg.StateBackedComponent, dg.Model, dg.Resolvable):
    """A PostgreSQL publication replicated into a destination: an asset per table, a supervised stream, checks."""

    model_config = ConfigDict(arbitrary_types_allowed=True, hide_input_in_errors=True)

    name: Annotated[str, checked(check_pipeline_name)] = Field(
        description="The pipeline's name: the replication slot is etl_<name>."
    )
    source: Source
    destination: Annotated[DestinationResource, dg.Resolver(resolve_destination, model_field_type=destination_models())]
    state: State
    tables: Annotated[list[str] | None, checked(_check_tables)] = Field(
        default=None,
        description="namespace.table, quoted as in SQL; with discover, patterns such as public.* or !public.audit_*.",
    )
    discover: Literal["publication"] | None = Field(
        default=None,
        description="publication: the tables it publishes (of them those in tables), as of the last"
        " `dg utils refresh-defs-state`.",
    )
    stream: Stream = Stream()
    batch: Batch = Batch()
    initial_sync: InitialSync = InitialSync()
    pools: Pools = Pools()
    max_lag: float = Field(default=60.0, gt=0, description="Seconds, for the check replication_lag.")
    compare: Compare | None = None
    freshness: Freshness | None = None
    retry_policy: Retries | None = None
    op_tags: dict[str, Any] = Field(default={}, description="On the steps of the initial syncs.")
    allow_append_only: bool = Field(
        default=False, description="Whether tables without a replica identity may be replicated, their inserts alone."
    )
    table_settings: Annotated[dict[str, Any], checked(check_table_settings)] = Field(
        default={}, description="By table or pattern: {columns: {exclude: [note], hash: [email], truncate: {zip: 3}}}."
    )
    hash_key_env: str | None = Field(
        default=None, description="The environment variable that holds the key for columns that are hashed."
    )
    write_mode: Annotated[str, checked(check_write_mode)] = Field(
        default="mirror",
        description="mirror; soft_delete: deleted rows stay; append: a row for every change; history:"
        " that, and views of the versions of each row; per table in table_settings.",
    )
    schema_changes: Annotated[str, checked(check_policy("schema_changes"))] = Field(
        default="apply",
        description="apply, add_only, approve or ignore: which changes of columns are applied; per table in"
        " table_settings.",
    )
    recopy: Annotated[str, checked(check_policy("recopy"))] = Field(
        default="auto", description="auto, or ask: a table that needs a new copy waits for a person."
    )
    recopy_max_bytes: Annotated[str | None, checked(check_policy("recopy_max_bytes"))] = Field(
        default=None, description="A size such as 50GiB: a larger table that needs a new copy waits for a person."
    )
    types: Annotated[dict[str, Any], checked(check_types)] = Field(
        default={}, description="Options of types: {numeric: decimal(38,10)}; per table or column in table_settings."
    )
    translation: Annotated[
        Translate | None, dg.Resolver(_resolve_translation, model_field_type=Translation.model())
    ] = None
    defs_state: ResolvedDefsStateConfig = DefsStateConfigArgs.local_filesystem()

    @model_validator(mode="after")
    def _tables_known(self) -> Self:
        if self.tables is None and self.discover is None:
            raise ValueError("give either tables, a list, or discover: publication")
        is_open = self.tables is None or read_selection("tables", self.tables, instead=_INSTEAD).is_open
        if is_open and self.discover is None:
            raise ValueError("tables has patterns, and loading asks no database: write discover: publication beside it")
        if not is_open and self.discover is not None:
            raise ValueError(
                "give either tables, a list of names, or discover: publication, beside which they are patterns"
            )
        return self

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        exact = exact_model(PostgresReplicationComponent, cls.model())
        return without_secrets(exact, ["source", "destination", "state"])

    def get_asset_spec(self, props: ReplicatedTableProps) -> dg.AssetSpec:
        """The asset of one replicated table. Override it to change what `translation` does not."""
        spec = DagsterReplicationTranslator().get_asset_spec(props)
        return spec if self.translation is None else self.translation(spec, props)

    def execute(self, context: dg.AssetExecutionContext, step: SyncStep) -> Iterator[Any]:
        """What a step that materialises tables yields. Override it to do something before and after `step.run`.

        It is called in the step's process, for each step and each time Dagster tries one again. Of a table that several
        processes copy it is the step `copy`; those that help it, and the one that reports it, are not asked.
        """
        yield from step.run(context)

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Connects to nothing. Dagster's state is looked at only to `discover`."""
        if self.discover is not None or self.tables is None:
            return super().build_defs(context)
        return self._definitions(self.tables, {})

    def dbt_sources(self) -> str:
        """See `etl_dagster.dbt_sources`; with the keys that `get_asset_spec` gives."""
        return build_dbt_sources(self._replication(), _ComponentTranslator(self, {}))

    @property
    def defs_state_config(self) -> DefsStateConfig:
        args = self.defs_state
        if "refresh_if_dev" not in args.model_fields_set:
            # Else `dagster dev` would connect while it loads, and not load while the source is down.
            args = args.model_copy(update={"refresh_if_dev": False})
        return DefsStateConfig.from_args(args, default_key=f"PostgresReplicationComponent[{self.name}]")

    def write_state_to_path(self, state_path: Path) -> None:
        """For `dg utils refresh-defs-state`: sizes and comments of the tables, by name. Raises dg.Failure."""
        sizes = dict.fromkeys(self.tables or (), 0)
        comments: dict[str, str] = {}
        if self.discover is not None:
            try:
                sizes, comments = _published_tables(self._replication())
            except EtlError as error:
                raise failure_of(error, self.name) from error
        state_path.write_text(json.dumps({"tables": sizes, "comments": comments}))

    def build_defs_from_state(
        self,
        context: dg.ComponentLoadContext,  # noqa: ARG002 - Dagster's signature
        state_path: Path | None,
    ) -> dg.Definitions:
        """The definitions of the tables found; without state only the resource, and a line of log."""
        if state_path is not None:
            state = json.loads(state_path.read_text())
            return self._definitions(list(state["tables"]), state["tables"], state.get("comments"))
        _log.warning(
            "pipeline %s has no tables yet: run `dg utils refresh-defs-state`, which asks publication %s, then reload",
            self.name,
            self.source.publication,
        )
        replication = self._replication()
        check_replication(replication)
        return dg.Definitions(resources={names.resource_key(self.name): replication})

    def _definitions(
        self, tables: list[str], sizes: Mapping[str, int], comments: Mapping[str, str] | None = None
    ) -> dg.Definitions:
        return build_postgres_replication(
            self._replication(),
            tables=tables,
            stream=self.stream.config(),
            cron_schedule=self.stream.cron,
            max_lag=self.max_lag,
            compare_cron=None if self.compare is None else self.compare.cron,
            compare_max_bytes=Compare.model_fields["max_bytes"].default
            if self.compare is None
            else self.compare.max_bytes,
            translator=_ComponentTranslator(self, comments or {}),
            retry_policy=None if self.retry_policy is None else self.retry_policy.policy(),
            op_tags=self.op_tags,
            stream_op_tags=self.stream.op_tags,
            freshness_policy=None if self.freshness is None else self.freshness.policy(),
            copy_processes=self.initial_sync.processes_of(sizes),
            sync_pool=self.pools.sync,
            stream_pool=self.pools.stream,
            default_sensor_status=self.stream.sensor_status(),
            execute=self.execute,
        )

    def _replication(self) -> PostgresReplicationResource:
        source = self.source.model_dump(exclude={"dsn", "dsn_env"}, exclude_none=True)
        return PostgresReplicationResource(
            name=self.name,
            dsn=_literal_or_variable("source.dsn", self.source.dsn, self.source.dsn_env),
            tables=self.tables,
            state=StateStoreResource(url=_literal_or_variable("state.url", self.state.url, self.state.url_env) or ""),
            destination=self.destination,
            allow_append_only=self.allow_append_only,
            table_settings=self.table_settings,
            hash_key_env=self.hash_key_env,
            write_mode=self.write_mode,
            schema_changes=self.schema_changes,
            recopy=self.recopy,
            recopy_max_bytes=self.recopy_max_bytes,
            types=self.types,
            **self.batch.options(),
            **self.initial_sync.options(),
            **source,
        )


class _ComponentTranslator(DagsterReplicationTranslator):
    def __init__(self, component: PostgresReplicationComponent, comments: Mapping[str, str]) -> None:
        super().__init__()
        self._component = component
        self._comments = comments

    def get_asset_spec(self, props: ReplicatedTableProps) -> dg.AssetSpec:
        return self._component.get_asset_spec(self._with_comment(props))

    def get_source_asset_spec(self, props: ReplicatedTableProps) -> dg.AssetSpec:
        return super().get_source_asset_spec(self._with_comment(props))

    def _with_comment(self, props: ReplicatedTableProps) -> ReplicatedTableProps:
        return replace(props, comment=self._comments.get(str(props.table)))


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


def _published_tables(replication: PostgresReplicationResource) -> tuple[dict[str, int], dict[str, str]]:
    """Their sizes in bytes as of the last VACUUM or ANALYZE, by name and in order; and comments of those with one."""
    from etl_core.source.catalog import published_tables
    from etl_core.source.publication import check_publication

    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(replication.connect("discover"))
        check_publication(connection, replication.publication, None)
        selection = replication.selection()
        tables = [table for table in published_tables(connection, replication.publication) if table.name in selection]
        found = [(str(table.name), table) for table in sorted(tables, key=lambda table: str(table.name))]
        sizes = {name: table.estimated_bytes for name, table in found}
        return sizes, {name: table.schema.comment for name, table in found if table.schema.comment}
