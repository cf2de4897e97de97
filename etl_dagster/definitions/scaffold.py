"""What `dg scaffold defs etl_dagster.PostgresReplicationComponent shop` writes: a defs.yaml to fill in."""

import re
from typing import Any

import dagster as dg

_DEFS_YAML = """\
type: {type}

attributes:
  # Names the replication slot (etl_{name}) and all that Dagster shows; two pipelines must not share it.
  name: {name}

  source:
    # The environment variable that holds the address: postgresql://user:password@host:5432/database. Put it into .env.
    # Not "{{{{ env.… }}}}": that would put the password itself here, and Dagster shows resources on its pages.
    dsn_env: {variable}_DSN
    # … or its parts; only the password comes from the environment:
    # host: db.example.com
    # port: 5432
    # database: {name}
    # user: replicator
    # password_env: {variable}_PASSWORD
    # keywords: {{sslmode: require}}
    #
    # Created for `tables` when it does not exist and rights allow.
    publication: {name}_pub

  destination:
    type: duckdb
    path: "{{{{ context.project_root }}}}/{name}.duckdb"
    # … or BigQuery; credentials_env names the variable that holds a service account's key, credentials its file:
    # type: bigquery
    # project: my-project
    # credentials_env: {variable}_GCP_KEY
    # … or another PostgreSQL; dsn_env names the variable that holds its address:
    # type: postgres
    # dsn_env: {variable}_WAREHOUSE_DSN
    # … or a type that another package brings, with its options; <option>_env names the variable that holds one:
    # type: mine
    # token_env: {variable}_TOKEN

  # Positions and table states. For several machines: url_env, a variable with postgresql://user:password@host/database.
  state:
    url: "sqlite:///{{{{ context.project_root }}}}/{name}.state.db"

  # Instead of a list, `discover: publication`: the tables it publishes when `dg utils refresh-defs-state` is run.
  tables:
    - public.customers

  # stream:
  #   mode: stream # a sensor keeps a run streaming; or `schedule`, batches at `cron`
  #   cron: "*/5 * * * *" # only with mode schedule
  #   lease_seconds: 900 # how long until a run is succeeded by the next
  #   report_every_seconds: 30 # at most one materialisation per changed table in so many seconds
  #   heartbeat_every_seconds: 900 # … and one of a table without changes
  #   sensor: running # it, or the schedule, is on from the start; `stopped` waits for a person to switch it on
  #   op_tags: {{}} # of the step that streams

  # batch: {{max_rows: 100000, max_bytes: 16MiB, max_age: 1s}} # a batch is written at the first of these
  # initial_sync:
  #   connections: 4 # that copy one table at a time
  #   own_step_from: 1GiB # with discover: tables from this size on have a step of their own, the others share one
  #   processes: {{public.customers: 2}} # large tables: how many processes copy each
  # allow_append_only: false # true: tables without a replica identity, their inserts alone
  # table_settings: {{public.users: {{columns: {{exclude: [note], hash: [email]}}}}}}
  # types: {{numeric: "decimal(38,10)", out_of_range: "null"}} # what numerics without a precision, and NaN, become
  # hash_key_env: ETL_HASH_KEY # the variable that holds the key for columns that are hashed
  # pools: {{sync: {name}_sync, stream: {name}_stream}} # concurrency pools; the stream's needs room for two

  # max_lag: 60 # seconds, for the check replication_lag
  # compare: {{cron: "0 3 * * *", max_bytes: 50GiB}} # equals_source in turn, up to so many bytes of tables at a time
  # freshness: {{fail_after_seconds: 7200, warn_after_seconds: 3600}}
  # retry_policy: {{max_retries: 3, delay_seconds: 10, backoff: exponential}} # of the initial syncs
  # op_tags: {{}} # of the initial syncs' steps

  # Templates know the table: table.namespace, table.name, and spec, the asset as it would be.
  # translation:
  #   key: "warehouse/{{{{ table.namespace }}}}/{{{{ table.name }}}}"
  #   key_prefix: raw
  #   group_name: {name}
  #   owners: ["team:data"]
  #   tags: {{domain: sales}}
  #   kinds: [bronze]
  #   automation_condition: "{{{{ dg.AutomationCondition.on_cron('@weekly') }}}}" # copies the table again
"""

_NOT_IN_NAMES = re.compile("[^a-z0-9]+")
_LONGEST_NAME = 43


class ReplicationScaffolder(dg.Scaffolder[Any]):
    """Commented YAML; for Python what Dagster writes for any component."""

    def scaffold(self, request: dg.ScaffoldRequest[Any]) -> None:
        if request.scaffold_format != "yaml":
            dg.scaffold_component(request)
        elif request.append:
            with request.target_path.open("a", encoding="utf-8") as file:
                file.write("---\n" + _defs_yaml(request.type_name, request.target_path.parent.name))
        else:
            text = _defs_yaml(request.type_name, request.target_path.name)
            (request.target_path / "defs.yaml").write_text(text, encoding="utf-8")


def _defs_yaml(type_name: str, folder: str) -> str:
    name = _NOT_IN_NAMES.sub("_", folder.lower()).strip("_")
    name = (name if name[:1].isalpha() else f"pipeline_{name}")[:_LONGEST_NAME]
    return _DEFS_YAML.format(type=type_name, name=name, variable=name.upper())
