"""What the engine may do to a table by itself: follow a change of its schema, copy it again.

Policies do not say what a table is, so that changing one copies nothing; but for what was ignored, which is taken over
by a new copy once it is not to be ignored any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from etl_core.config_values import as_choice, as_quantity, check_positive, parse_size

RECOPY = "recopy"
"""What a table waits for that is not to be copied again without being asked about."""


class SchemaChanges(StrEnum):
    """Which changes of a table's columns and key are applied: APPLY all, ADD_ONLY added columns, APPROVE none.

    The others wait for a person. With IGNORE none is applied and the table goes on with the columns that it has; what
    cannot be ignored waits. From the one that lets the most through to the one that lets the least.
    """

    APPLY = "apply"
    ADD_ONLY = "add_only"
    IGNORE = "ignore"
    APPROVE = "approve"


class Recopy(StrEnum):
    """Whether the engine copies a table again by itself (AUTO) or a person is asked (ASK)."""

    AUTO = "auto"
    ASK = "ask"


@dataclass(frozen=True, slots=True)
class TablePolicy:
    """Of one table. One that takes more than `recopy_max_bytes` at the source is not copied again by itself."""

    schema_changes: SchemaChanges = SchemaChanges.APPLY
    recopy: Recopy = Recopy.AUTO
    recopy_max_bytes: int | None = None

    def stricter(self, other: TablePolicy) -> TablePolicy:
        """What both of them let through, of a table that has two names."""
        limits = [one.recopy_max_bytes for one in (self, other) if one.recopy_max_bytes is not None]
        return TablePolicy(
            max(self.schema_changes, other.schema_changes, key=list(SchemaChanges).index),
            max(self.recopy, other.recopy, key=list(Recopy).index),
            min(limits, default=None),
        )


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """What one entry of the settings says; None leaves it to the entries before this one, and to the pipeline's."""

    schema_changes: SchemaChanges | None = None
    recopy: Recopy | None = None
    recopy_max_bytes: int | None = None

    def over(self, policy: TablePolicy) -> TablePolicy:
        """`policy` where this says nothing."""
        return TablePolicy(
            self.schema_changes or policy.schema_changes,
            self.recopy or policy.recopy,
            self.recopy_max_bytes or policy.recopy_max_bytes,
        )


POLICY_FIELDS = ("schema_changes", "recopy", "recopy_max_bytes")
"""The fields of the settings, in their order there."""


def read_policy(where: str, given: Mapping[str, object]) -> PolicySettings:
    """The policy fields in `given`, which is below the dotted field `where` (empty: the configuration itself).

    Raises ConfigError with the dotted field.
    """
    changes, recopy, size = (given.get(field) for field in POLICY_FIELDS)
    changes_field, recopy_field, size_field = (f"{where}.{field}" if where else field for field in POLICY_FIELDS)
    limit = None
    if size is not None:
        limit = as_quantity(size_field, parse_size, size)
        check_positive(size_field, limit)
    return PolicySettings(
        None if changes is None else as_choice(changes_field, SchemaChanges, changes),
        None if recopy is None else as_choice(recopy_field, Recopy, recopy),
        limit,
    )
