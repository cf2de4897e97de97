"""What a person may want of the event trigger of `source.ddl_trigger`. Imports nothing, for the command line."""

from __future__ import annotations

from enum import StrEnum


class TriggerAction(StrEnum):
    """INSTALL prints the SQL and runs it, PRINT only prints, REMOVE drops the trigger."""

    INSTALL = "install"
    PRINT = "print"
    REMOVE = "remove"
