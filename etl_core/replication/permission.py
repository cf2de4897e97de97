"""What the engine may do to a table by itself, and what waits for a person: the one place that asks the policies.

However a table came to be copied again, it is asked about here before its copy begins; and so is every change of its
schema before it is applied. What waits is a table's state: ERRORED, with what it waits for (`TableStatus.waits_for`).
A person's own request (`etl resync`, changed settings, the first copy of a table) is never asked about.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from etl_core.config import PipelineConfig
from etl_core.errors import DecisionNeeded, SourceLocked, TableError
from etl_core.identifiers import TableName
from etl_core.policies import RECOPY, Recopy, SchemaChanges, TablePolicy
from etl_core.schema.alterations import AddColumn, Alteration, RenameTable, alterations
from etl_core.schema.pg_types import modifiers
from etl_core.schema.table import Column, TableSchema
from etl_core.shape.shapes import Shapes
from etl_core.source.connection import Connection
from etl_core.source.sizes import table_sizes
from etl_core.state.store import StateStore, TableStatus

_MADE_ANEW = "it was dropped and created again"


class Permission:
    """Of the tables of one pipeline. May be used from several threads."""

    def __init__(self, config: PipelineConfig, store: StateStore, shapes: Shapes) -> None:
        self._policy_of = config.policy_of
        self._says_policy = config.says_policy
        self._store = store
        self._shapes = shapes

    def may_ask(self, status: TableStatus) -> bool:
        """Whether `check_copy` may have something against a copy of the table."""
        return not status.is_requested and self._policy(status, status.name) != TablePolicy()

    def still_waits(self, status: TableStatus) -> bool:
        """Whether the policy by which a schema change waits is still the table's."""
        return status.waits_for == self._policy(status, status.name).schema_changes

    def _policy(self, status: TableStatus, name: TableName) -> TablePolicy:
        """Of a table that is called `name` now, and in the destination maybe what it was called before.

        Until it is renamed there, too, neither name's policy is passed over.
        """
        stored = self._store.schema(status.table_id)
        policy = self._policy_of(name)
        return policy if stored is None else policy.stricter(self._policy_of(stored[1].name))

    def check_named(self, before: TableName, now: TableName) -> None:
        """Raises TableError if a policy is said of a renamed table's old name, and none of its new one.

        What it leaves to a person would happen by itself from then on, and nobody has said so.
        """
        was = self._policy_of(before)
        if before == now or self._says_policy(now) or was.stricter(self._policy_of(now)) == self._policy_of(now):
            return
        raise TableError(
            f"{now}: {before} was renamed to {now}, and the settings have schema_changes or recopy for its old name",
            table=str(now),
            hint="write its new name into the settings instead of the old one, then start again",
        )

    def check_applied(self, before: TableSchema, after: TableSchema) -> None:
        """Raises DecisionNeeded unless the change of a streamed table may be applied. Of schemas at the source.

        And what `check_named` raises.
        """
        self.check_named(before.name, after.name)
        policy = self._policy_of(after.name).stricter(self._policy_of(before.name))
        if policy.schema_changes is SchemaChanges.APPLY:
            return
        steps = self._refused(policy, before, after)
        if not steps:
            return
        change = change_id(before, steps)
        status = self._store.table(after.table_id)
        if status is not None and _is_among(change, status.approved):
            return
        raise _change_waits(after.name, _told(steps), policy, change, "apply it")

    def check_copy(self, connection: Connection, status: TableStatus, now: TableSchema) -> None:
        """Raises DecisionNeeded unless the table may be copied again. `now` is what the copy would take.

        Raises SourceLocked if its size matters and cannot be read, and what `check_named` raises.
        """
        if not self.may_ask(status):
            return
        policy = self._policy(status, now.name)
        stored = self._store.schema(status.table_id)
        if stored is not None:
            self.check_named(stored[1].name, now.name)
        if policy.schema_changes is not SchemaChanges.APPLY and self._is_approved(policy, status, now):
            return
        if _is_among(RECOPY, status.approved):
            return
        if policy.recopy is Recopy.AUTO and policy.recopy_max_bytes is None:
            return
        size = table_sizes(connection, [status.table_id]).get(status.table_id)
        if policy.recopy is Recopy.ASK or size is None:
            if policy.recopy is Recopy.AUTO:
                raise SourceLocked(f"the size of {now.name} cannot be read, as another session has locked it")
            raise _copy_waits(status, now.name, size, "recopy: ask")
        if size > (policy.recopy_max_bytes or 0):
            raise _copy_waits(status, now.name, size, f"recopy_max_bytes: {policy.recopy_max_bytes}")

    def _is_approved(self, policy: TablePolicy, status: TableStatus, now: TableSchema) -> bool:
        """Whether a person approved the change that the copy would bring; raises DecisionNeeded if one is to."""
        stored = self._store.schema(status.table_id)
        if stored is None:
            told, change = _MADE_ANEW, _digest([_MADE_ANEW, *map(_column, now.columns), repr(now.key)])
        else:
            steps = self._refused(policy, stored[1], now)
            if not steps:
                return False
            told, change = _told(steps), change_id(stored[1], steps)
        if _is_among(change, status.approved):
            return True
        raise _change_waits(now.name, told, policy, change, "copy the table again with it")

    def _refused(self, policy: TablePolicy, before: TableSchema, after: TableSchema) -> Sequence[Alteration]:
        """The steps between what the destination has of the two, if the policy does not let them all be applied.

        A table that has another name is the same table, and waits for nothing.
        """
        after = self._shapes.carried(after, before)
        before, after = self._shapes.of(before).target, self._shapes.of(after).target
        steps = [step for step in alterations(before, after) if not isinstance(step, RenameTable)]
        if policy.schema_changes is SchemaChanges.ADD_ONLY and all(isinstance(step, AddColumn) for step in steps):
            return ()
        return steps


def change_id(before: TableSchema, steps: Sequence[Alteration]) -> str:
    """What tells these steps from `before` from all others: what a person approves, and nothing else."""
    columns = {column for step in steps for column in _columns(step)}
    return _digest([*map(_column, before.columns), "", *map(str, steps), "", *sorted(map(_column, columns))])


def _is_among(change: str, approved: str | None) -> bool:
    return change in (approved or "").split()


def _columns(step: Alteration) -> tuple[Column, ...]:
    found = (getattr(step, "before", None), getattr(step, "column", None))
    return tuple(column for column in found if isinstance(column, Column))


def _column(column: Column) -> str:
    return repr((column.name, column.attnum, column.type.oid, modifiers(column)))


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _told(steps: Sequence[Alteration]) -> str:
    return "; ".join(map(str, steps))


def _change_waits(name: TableName, told: str, policy: TablePolicy, change: str, effect: str) -> DecisionNeeded:
    ways = f"to {effect}: etl approve {name}"
    if policy.schema_changes is SchemaChanges.ADD_ONLY:
        ways += "; or set schema_changes: apply and start again"
    return DecisionNeeded(
        f"{name} waits for approval (schema_changes: {policy.schema_changes}): {told}. The destination keeps the table "
        "as it was before that, and gets none of its changes",
        table=str(name),
        waits_for=policy.schema_changes,
        change=change,
        hint=ways,
    )


def _copy_waits(status: TableStatus, name: TableName, size: int | None, policy: str) -> DecisionNeeded:
    why = status.error or "what the destination has of it cannot be continued"
    for prefix in (f"{name} is copied again: ", f"table {name}: ", f"{name}: "):
        why = why.removeprefix(prefix)
    takes = "an unknown number of bytes" if size is None else f"{size:,} bytes"
    return DecisionNeeded(
        f"{name} is to be copied again and waits for a person ({policy}; it takes {takes} at the source): {why}. The "
        "destination keeps its rows as they are, and gets none of its changes",
        table=str(name),
        waits_for=RECOPY,
        hint=f"readers keep the rows of before until the copy is complete; to copy it: etl resync {name}",
    )
