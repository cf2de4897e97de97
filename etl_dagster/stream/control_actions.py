"""What a person may do to a pipeline from Dagster, as the launchpad offers it: one action, each with its own fields."""

from typing import Literal, Union

import dagster as dg
from pydantic import Field

_CONFIRM = "The pipeline's name. Without it nothing is done, and the log says what would be."


class Resync(dg.Config):
    """Copy tables again."""

    kind: Literal["resync"] = "resync"
    tables: list[str] = Field(
        default=[], description="namespace.table; empty: all that failed and wait for no approval."
    )


class Approve(dg.Config):
    """Let tables do what they wait for: a change of their schema, or a new copy."""

    kind: Literal["approve"] = "approve"
    tables: list[str] = Field(
        default=[], description="namespace.table; empty: nothing is approved, the log lists them."
    )


class Pause(dg.Config):
    """Stop replicating tables; their data stays as it is."""

    kind: Literal["pause"] = "pause"
    tables: list[str] = Field(description="namespace.table.")


class Resume(dg.Config):
    """Replicate paused or failed tables again, beginning with a copy."""

    kind: Literal["resume"] = "resume"
    tables: list[str] = Field(default=[], description="namespace.table; empty: all that are paused.")


class Verify(dg.Config):
    """Compare source and destination, row by row at one position."""

    kind: Literal["verify"] = "verify"
    tables: list[str] = Field(default=[], description="namespace.table; empty: all.")


class Reset(dg.Config):
    """The way on after a lost slot or a restored source: a new slot, and every table is copied again."""

    kind: Literal["reset"] = "reset"
    confirm: str = Field(default="", description=_CONFIRM)


class Teardown(dg.Config):
    """The end of the pipeline: its slots and its publication are dropped, its state is forgotten."""

    kind: Literal["teardown"] = "teardown"
    confirm: str = Field(default="", description=_CONFIRM)


class ControlConfig(dg.Config):
    """One action."""

    action: Union[Resync, Approve, Pause, Resume, Verify, Reset, Teardown] = Field(  # noqa: UP007 - Dagster reads no `|`
        discriminator="kind", description="resync, approve, pause, resume, verify, reset or teardown, with its fields."
    )
