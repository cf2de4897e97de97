"""What the parts of a pipeline are called in Dagster: all begin with its name, so that several live together."""

PIPELINE_TAG = "etl/pipeline"
"""On every run of a pipeline's stream and initial syncs, with the pipeline's name."""


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


def check_job_name(pipeline: str) -> str:
    return f"{pipeline}_checks"


def sync_pool(pipeline: str) -> str:
    """The concurrency pool of initial syncs: its limit is how many tables are copied at a time."""
    return f"{pipeline}_sync"


def stream_pool(pipeline: str) -> str:
    """The concurrency pool of stream runs; its limit must be two or more, for the run that stands by."""
    return f"{pipeline}_stream"
