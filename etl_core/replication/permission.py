"""What the engine may do to a table by itself, and what waits for a person: the one place that asks the policies.

However a table came to be copied again, it is asked about here before its copy begins; and so is every change of its
schema before it is applied. What waits is a table's state: ERRORED, with what it waits for (`TableStatus.waits_for`).
A person's own request (`etl resync`, changed settings, the first copy of a table) is never asked about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from etl_core.config import PipelineConfig
from etl_core.errors import COPIED_AGAIN, CopiedAgain, DecisionNeeded, SourceLocked, TableError
from etl_core.identifiers import TableName
from etl_core.policies import RECOPY, Recopy, SchemaChanges, TablePolicy
from etl_core.schema.alterations import AddColumn, Alteration, RenameTable, alterations
from etl_core.schema.change_id import change_id, is_among, made_anew_id, take_over_id
from etl_core.schema.ignored import ignoring, is_told, not_ignorable
from etl_core.schema.table import TableSchema
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
        said = (config.policy.schema_changes, *(one.policy.schema_changes for one in config.tables))
        self._ignores = SchemaChanges.IGNORE in said
        self._says_any = any(policy != TablePolicy() for policy in (config.policy, *(t.policy for t in config.tables)))
        self._store = store
        self._shapes = shapes

    def may_ask(self, status: TableStatus) -> bool:
        """Whether `check_copy` may have something against a copy of the table."""
        return not status.is_requested and self._policy(status, status.name) != TablePolicy()

    def has_policy(self, status: TableStatus) -> bool:
        """Whether there is anything to ask about the table, also if nobody needs to be asked about its next copy."""
        return self._says_any and self._policy(status, status.name) != TablePolicy()

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
        if policy.schema_changes in (SchemaChanges.APPLY, SchemaChanges.IGNORE):  # for the latter see `followed`
            return
        steps = self._refused(policy, before, after)
        if not steps:
            return
        change = change_id(before, steps)
        status = self._store.table(after.table_id)
        if status is not None and is_among(change, status.approved):
            return
        raise _change_waits(after.name, _told(steps), policy, change, "apply it")

    def followed(self, before: TableSchema, after: TableSchema) -> TableSchema:
        """A streamed table of `after` as it is applied: where changes are ignored, with the columns that are kept.

        Raises DecisionNeeded for a change that cannot be ignored, CopiedAgain if a person approved that the table has
        what was ignored.
        """
        unchanged = after if before.kept is None else replace(after, kept=before.kept)
        if unchanged == before:
            return before
        policy = self._policy_of(after.name).stricter(self._policy_of(before.name))
        if policy.schema_changes is not SchemaChanges.IGNORE or not is_told(after):
            return unchanged
        change = take_over_id(before, after)
        status = self._store.table(after.table_id)
        if status is not None and is_among(change, status.approved):
            if before.kept is None:
                return after
            raise CopiedAgain(
                f"table {after.name}: the changes of its columns that were ignored are taken over",
                table=str(after.name),
                hint=COPIED_AGAIN,
            )
        steps = not_ignorable(before, after)
        if steps:
            raise _change_waits(after.name, _told(steps), policy, change, "have its columns as they are at the source")
        return ignoring(before, after)

    def kept(self, now: TableSchema) -> TableSchema:
        """The table as it is to be copied: where changes are ignored, with the columns that the destination keeps.

        As it is at the source, if a person approved that, or asked for a copy and there is a change that cannot be
        ignored.
        """
        if not self._ignores:
            return now
        status, stored = self._store.table(now.table_id), self._store.schema(now.table_id)
        if status is None or stored is None:
            return now
        policy, before = self._policy(status, now.name), stored[1]
        if policy.schema_changes is not SchemaChanges.IGNORE or not_ignorable(before, now):
            return now
        return now if is_among(take_over_id(before, now), status.approved) else ignoring(before, now)

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
        if is_among(RECOPY, status.approved):
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
            told, change = _MADE_ANEW, made_anew_id(_MADE_ANEW, now)
        elif policy.schema_changes is SchemaChanges.IGNORE:
            told, change = _told(not_ignorable(stored[1], now)), take_over_id(stored[1], now)
            if not told:
                return is_among(change, status.approved)
        else:
            steps = self._refused(policy, stored[1], now)
            if not steps:
                return False
            told, change = _told(steps), change_id(stored[1], steps)
        if is_among(change, status.approved):
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


def _told(steps: Sequence[Alteration]) -> str:
    return "; ".join(map(str, steps))


def _change_waits(name: TableName, told: str, policy: TablePolicy, change: str, effect: str) -> DecisionNeeded:
    ways = f"to {effect}: etl approve {name}"
    if policy.schema_changes is SchemaChanges.IGNORE:
        told += ", which cannot be ignored"
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
