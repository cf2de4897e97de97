"""The preflight of the destination: whether it can be reached and written. Leaves nothing behind."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from etl_core.destination.protocol import Destination
from etl_core.errors import EtlError, TransientError
from etl_core.schema.table import PgType, TableSchema
from etl_core.source.finding import Finding, Severity


@runtime_checkable
class ExaminableDestination(Protocol):
    """A destination that can tell more of itself than that its positions can be read."""

    def examine(self) -> str:
        """What was found in order, as a sentence. Raises what a write would raise; creates nothing lasting."""


@dataclass(frozen=True, slots=True)
class MissingType:
    """A type of the source that a destination has not, and as what it stores the `columns` (`namespace.table.column`).

    `is_other`: there is one of that name, which is not the same.
    """

    type: PgType
    stored: str
    columns: tuple[str, ...]
    is_other: bool = False


@runtime_checkable
class TypedDestination(Protocol):
    """A destination that has the source's own types where they were made there."""

    def missing_types(self, schemas: Sequence[TableSchema]) -> Sequence[MissingType]:
        """Of the tables, each after those that it is made of. Raises what a read would raise."""


def examine_destination(destination: Destination, type: str) -> Iterator[Finding]:
    """One finding. What is only busy at the moment is a warning."""
    try:
        if isinstance(destination, ExaminableDestination):
            told = destination.examine()
        else:
            destination.positions()
            told = f"destination {type} can be reached"
    except EtlError as error:
        severity = Severity.WARNING if isinstance(error, TransientError) else Severity.UNSAFE
        yield Finding(severity, "destination", f"{error} ({error.hint})" if error.hint else str(error))
    else:
        yield Finding(Severity.OK, "destination", told)


def check_writable(directory: Path) -> None:
    """Raises OSError unless a file can be made in the directory; the one made has no name that stays."""
    with tempfile.TemporaryFile(dir=directory):
        pass
