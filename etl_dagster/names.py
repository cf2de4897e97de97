"""What the parts of a pipeline are called in Dagster: all begin with its name, so that several live together."""

import hashlib
import re

from etl_core.identifiers import TableName

_PLAIN = re.compile("[A-Za-z0-9]+(?:_[A-Za-z0-9]+)*")
_NOT_IN_NAMES = re.compile("[^A-Za-z0-9]+")

PIPELINE_TAG = "etl/pipeline"
"""On every run of a pipeline's stream, initial syncs and checks, with the pipeline's name."""


def resource_key(pipeline: str) -> str:
    return pipeline


def sync_job_name(pipeline: str) -> str:
    return f"{pipeline}_initial_sync"


def stream_job_name(pipeline: str) -> str:
    return f"{pipeline}_stream"


def stream_sensor_name(pipeline: str) -> str:
    return f"{pipeline}_stream_sensor"


def stream_schedule_name(pipeline: str) -> str:
    return f"{pipeline}_stream_schedule"


def control_job_name(pipeline: str) -> str:
    return f"{pipeline}_control"


def check_job_name(pipeline: str) -> str:
    return f"{pipeline}_checks"


def check_op_name(pipeline: str) -> str:
    return f"{pipeline}_evaluate_checks"


def compare_job_name(pipeline: str) -> str:
    return f"{pipeline}_compare"


def compare_schedule_name(pipeline: str) -> str:
    return f"{pipeline}_compare_schedule"


def source_group(pipeline: str) -> str:
    """The group of the assets at the source, which folds them into one box of the lineage."""
    return f"{pipeline}_source"


def sync_pool(pipeline: str) -> str:
    """The concurrency pool of initial syncs: its limit is how many steps that copy run at a time."""
    return f"{pipeline}_sync"


def stream_pool(pipeline: str) -> str:
    """The concurrency pool of stream runs; its limit must be two or more, for the run that stands by."""
    return f"{pipeline}_stream"


def sync_op_name(pipeline: str, table: TableName) -> str:
    """The op of a table's initial sync. Unique: plain names have two double underscores, others three, and a hash."""
    parts = (table.namespace, table.name)
    if all(_PLAIN.fullmatch(part) for part in parts):
        return "__".join((pipeline, *parts))
    digest = hashlib.sha256(str(table).encode()).hexdigest()[:12]
    readable = (_NOT_IN_NAMES.sub("_", part).strip("_") for part in parts)
    return "__".join((pipeline, *readable, digest))


def sync_group_op_name(pipeline: str, first: TableName) -> str:
    """The op of several tables' initial syncs, named after the first: a table is in one such group alone."""
    return f"{sync_op_name(pipeline, first)}__and_others"
