"""`etl backup FILE`: a consistent copy of the destination's file, also while a run writes it."""

from __future__ import annotations

from pathlib import Path

from etl_core.cli.arguments import Arguments
from etl_core.cli.exit_status import DONE
from etl_core.cli.texts import put, size
from etl_core.control import PipelineControl
from etl_core.destination.protocol import BackupDestination
from etl_core.errors import ConfigError


def backup(pipeline: PipelineControl, arguments: Arguments) -> int:
    destination = pipeline.destination
    if not isinstance(destination, BackupDestination):
        raise ConfigError(
            f"etl backup copies a file, and destination type {pipeline.config.destination.type} has none",
            hint="use the backups or snapshots of the warehouse",
        )
    target = arguments.file or Path()
    written = destination.backup(target)
    put(f"{target}: {size(written)}, as of the last batch")
    return DONE
