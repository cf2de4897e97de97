"""A step of an initial sync as those see it who do something before and after it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import dagster as dg

from etl_core.identifiers import TableName
from etl_dagster.resources import PostgresReplicationResource


@dataclass(frozen=True, slots=True)
class SyncStep:
    """One step: of the tables that share one, those that the run has selected, or one large table."""

    replication: PostgresReplicationResource
    """The pipeline as the run has it, with what the launchpad says."""
    tables: tuple[TableName, ...]
    run: Callable[[dg.AssetExecutionContext], Iterator[dg.MaterializeResult]]
    """Brings the tables up to now and gives the materialisation of each as it ends. Raises dg.Failure at the end for
    those that failed. Of a table that several processes copy it is the step `copy`, and gives nothing: the step
    `report` comes after it.
    """


Execute = Callable[[dg.AssetExecutionContext, SyncStep], Iterator[Any]]
"""What a step yields to Dagster: what `run` gives, and whatever else an op may yield."""


def run_step(context: dg.AssetExecutionContext, step: SyncStep) -> Iterator[Any]:
    """Nothing before it and nothing after."""
    return step.run(context)
