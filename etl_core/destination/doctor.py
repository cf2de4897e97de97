"""The preflight of the destination: whether it can be reached and written. Leaves nothing behind."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

from etl_core.destination.protocol import Destination
from etl_core.errors import EtlError, TransientError
from etl_core.source.finding import Finding, Severity


@runtime_checkable
class ExaminableDestination(Protocol):
    """A destination that can tell more of itself than that its positions can be read."""

    def examine(self) -> str:
        """What was found in order, as a sentence. Raises what a write would raise; creates nothing lasting."""


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
