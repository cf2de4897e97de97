"""`etl dbt-sources [FILE]`: the replicated tables as dbt sources that are Dagster's assets."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from etl_core.cli.arguments import Arguments
from etl_core.cli.exit_status import DONE
from etl_core.cli.texts import plural, put
from etl_core.control import PipelineControl
from etl_core.dbt_sources import dbt_sources as build_dbt_sources
from etl_core.destination.registry import reader_names, type_label
from etl_core.errors import ConfigError
from etl_core.identifiers import TableName
from etl_core.schema.table import TableSchema


def dbt_sources(pipeline: PipelineControl, arguments: Arguments) -> int:
    pipeline.store.migrate()
    config = pipeline.config
    readers = reader_names(config.destination)

    def asset_key(table: TableName) -> tuple[str, ...]:
        return type_label(config.destination.type), *readers.path(table)

    def target(schema: TableSchema) -> TableSchema:
        return pipeline.shapes.of(schema).target

    header = (
        f"Written by etl dbt-sources -c {arguments.config}, of pipeline {config.pipeline}. Do not edit: write it again"
        " when tables or columns changed.\n"
        "asset_key is the key that etl_dagster gives the table by default. For a code location with a key_prefix or a\n"
        "translator of its own, write this file with etl_dagster.dbt_sources(resource, translator) instead."
    )
    text = build_dbt_sources(pipeline.store, config.pipeline, readers, target, asset_key, header)
    if arguments.file is None:
        put(text.rstrip("\n"))
    else:
        _replace(arguments.file, text)
        put(f"{arguments.file}: {plural(len(pipeline.store.tables()), 'table')}")
    return DONE


def _replace(file: Path, text: str) -> None:
    partial = file.with_name(f"{file.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        reason = error.strerror if error.errno is None else os.strerror(error.errno)
        raise ConfigError(f"cannot write {file}: {reason}", hint="name a file in a folder that is there") from None
    finally:
        partial.unlink(missing_ok=True)
