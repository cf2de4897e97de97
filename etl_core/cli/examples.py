"""What a person types: examples of each command, shown by its --help."""

from __future__ import annotations

from collections.abc import Mapping

EXAMPLES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "etl": (
        ("etl init postgresql://etl@db.example:5432/shop", "write etl.yaml and check the source"),
        ("etl run", "copy the tables and stream every change, until Ctrl-C"),
        ("etl status", "see what is replicated, and how far it is behind"),
        ("etl verify", "prove that the destination is equal to the source"),
    ),
    "etl init": (
        ("etl init postgresql://etl@db.example:5432/shop", "into the DuckDB file shop.duckdb"),
        ("etl init postgresql://etl@db.example/shop --to bigquery:my-project.raw", ""),
        ("etl -c eu.yaml init 'host=db.example dbname=shop user=etl'", "libpq's keywords; another file"),
    ),
    "etl config": (("etl config check", "etl.yaml"), ("etl config schema > etl.schema.json", "")),
    "etl config check": (("etl config check", "etl.yaml"), ("etl config check eu.yaml", "another file")),
    "etl config schema": (("etl config schema > etl.schema.json", "name it in the first line of etl.yaml"),),
    "etl doctor": (
        ("etl doctor", "every finding, the worst first, with the SQL that fixes it"),
        ("etl doctor --ddl-trigger=print", "the SQL of the event trigger, for a superuser"),
    ),
    "etl completion": (
        ("etl completion bash > ~/.local/share/bash-completion/completions/etl", "bash"),
        ('etl completion zsh > "${fpath[1]}/_etl"', "zsh"),
    ),
    "etl sync": (
        ("etl sync", "copy what was not copied yet"),
        ("etl sync --table public.orders", "copy this table again"),
        ('etl sync --table "sales.*"', "… every table of a schema"),
        ("etl sync --all", "… every table, into a new destination for example"),
    ),
    "etl stream": (("etl stream", "until Ctrl-C"), ("etl stream --until-caught-up", "and end there")),
    "etl run": (
        ("etl run", "until Ctrl-C"),
        ("etl run --until-caught-up", "copy, catch up, and end: for cron"),
        ("etl run --for 30m", "and end then, at a transaction boundary"),
    ),
    "etl status": (
        ("etl status", "tables, slot and lag"),
        ("etl status --json", "for programs"),
        ("etl status --schema public.orders", "how the table's columns have changed"),
    ),
    "etl verify": (
        ("etl verify", "all tables"),
        ('etl verify --table public.orders --table "sales.*"', "some"),
    ),
    "etl resync": (
        ("etl resync public.orders", "copy it again; readers keep the old copy meanwhile"),
        ('etl resync "sales.*"', "… every table of a schema"),
        ("etl resync --all", "… every table that is not paused"),
    ),
    "etl pause": (('etl pause public.orders "sales.*"', ""), ("etl pause --all", "")),
    "etl resume": (("etl resume public.orders", ""), ("etl resume --all", "every table that is paused or failed")),
    "etl approve": (
        ("etl approve", "list what waits, and for what"),
        ("etl approve public.orders", "let it do that"),
        ("etl approve --all", "let all of them do it"),
    ),
    "etl teardown": (("etl teardown", "says what it drops, and asks"), ("etl teardown --yes", "does not ask")),
    "etl backup": (("etl backup /backup/shop.duckdb", "also while a run writes the file"),),
    "etl compact": (("etl compact", "every table"), ("etl compact public.orders", "")),
    "etl dbt-sources": (("etl dbt-sources models/sources.yml", "print it, without a file"),),
    "etl destinations": (("etl destinations", ""), ("etl destinations --json", "for programs")),
    "etl metrics": (("etl metrics", "at the address in metrics.prometheus of the configuration"),),
    "etl failpoints": (("etl failpoints", ""),),
}
