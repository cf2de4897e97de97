"""A table's fingerprint: what the catalog says of it that the WAL does not, and what a difference means for the data.

Two fingerprints of one table are compared without a connection or a clock. OIDs and the xmin of catalog rows are part
of them: what was dropped and made again has others, so a gap that lay wholly between two looks is seen too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from etl_core.identifiers import TableName


@dataclass(frozen=True, slots=True)
class Attribute:
    """A row of `pg_attribute` with `attnum` > 0. Of a dropped one only the number is left; its `name` is ''.

    `xmin` is the transaction that wrote the row last: whoever changed the type, the default or the column's rights.
    """

    attnum: int
    name: str
    type_oid: int = 0
    type_modifier: int = -1
    generated: str = ""
    xmin: int = 0


@dataclass(frozen=True, slots=True)
class Node:
    """A relation of the table: itself, or a partition at any depth. `filenode` is 0 where no rows are kept.

    `link` is the xmin of its row in `pg_inherits`, 0 for the table itself: DETACH and ATTACH make another one.
    `born_attached` says that the relation was created as a partition, so that it was empty when it became one.
    """

    oid: int
    filenode: int
    link: int = 0
    born_attached: bool = False


@dataclass(frozen=True, slots=True)
class TypeForm:
    """An enum's labels by their OIDs, or a composite's attributes by their numbers, as JSON-able texts."""

    oid: int
    is_enum: bool
    parts: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class Way:
    """One reason why a table is published: its row in `pg_publication_rel`, or its namespace's.

    `target` is the OID of the relation (the table or a partitioned ancestor) or of the namespace, `oid` that of the
    row. `membership` is the xmin of the row that says which namespace the relation is in, 0 for a relation's row.
    `condition` and `columns` are a hash of the row filter and the attribute numbers of the column list.
    """

    target: int
    oid: int
    is_namespace: bool = False
    membership: int = 0
    condition: str | None = None
    columns: tuple[int, ...] | None = None


def read_way(values: Sequence[Any]) -> Way:
    """The way whose fields are `values`, as JSON has them; what follows them is not looked at."""
    target, oid, is_namespace, membership, condition, columns = values[:6]
    return Way(target, oid, is_namespace, membership, condition, None if columns is None else tuple(columns))


@dataclass(frozen=True, slots=True)
class Publishing:
    """The publication, and all the ways by which it reaches a table. `flags` are what `publish` and WITH said."""

    oid: int
    xmin: int
    owner: int
    flags: tuple[tuple[str, bool], ...]
    ways: tuple[Way, ...] = ()

    def says(self, flag: str) -> bool:
        return dict(self.flags).get(flag, False)


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """One table at one moment.

    `persistence` and `kind` are pg_class's. `publishing` is None if there is no such publication; `is_published` says
    whether it sends the table's changes under the table's own name. `horizon` is the oldest transaction that had not
    ended: rows of older ones were there. It belongs to the moment and not to the table.
    """

    table_id: int
    name: TableName
    kind: str
    persistence: str
    attributes: tuple[Attribute, ...]
    nodes: tuple[Node, ...]
    types: tuple[TypeForm, ...]
    publishing: Publishing | None
    is_published: bool
    horizon: int = field(default=0, compare=False)

    @property
    def last_attnum(self) -> int:
        """The highest attribute number that was ever given; 0 for a table without columns."""
        return max((attribute.attnum for attribute in self.attributes), default=0)

    def sends(self, attribute: Attribute) -> bool:
        """Whether its values are sent: not those of a generated column, nor of one that no column list has."""
        ways = () if self.publishing is None else self.publishing.ways
        is_listed = not ways or any(way.columns is None or attribute.attnum in way.columns for way in ways)
        return is_listed and not attribute.generated

    @property
    def files(self) -> Mapping[int, int]:
        """What holds the rows: `filenode` by the OID of the relation."""
        return {node.oid: node.filenode for node in self.nodes if node.filenode}


def what_changed(old: Fingerprint, new: Fingerprint) -> str | None:
    """Why the table must be copied again, as the end of the sentence "public.orders: …"; None if it need not.

    `new` is published. What the stream carries (columns added, dropped, renamed, the table's name) is no reason, and
    neither is a file
    that became another one: see `new_files`.
    """
    return (
        _publishing_changed(old, new)
        or _persistence_changed(old, new)
        or _partitions_changed(old, new)
        or _columns_changed(old, new)
        or _types_changed(old, new)
    )


def new_files(old: Fingerprint, new: Fingerprint) -> tuple[int, ...]:
    """The relations whose rows are in another file than before.

    VACUUM FULL, CLUSTER and TRUNCATE do that, and every ALTER TABLE that computes each row anew. They are told apart
    by the rows: after the latter, none is of a transaction from before.
    """
    now = new.files
    return tuple(oid for oid, filenode in old.files.items() if oid in now and now[oid] != filenode)


def is_altered(old: Fingerprint, new: Fingerprint) -> bool:
    """Whether somebody wrote the catalog's row of a column that is still there: an ALTER TABLE, not a TRUNCATE.

    A column that was dropped since does not count: to drop one rewrites nothing.
    """
    now = {attribute.attnum: attribute for attribute in new.attributes if attribute.name}
    return any(
        attribute.name and now.get(attribute.attnum, attribute).xmin != attribute.xmin for attribute in old.attributes
    )


def _publishing_changed(old: Fingerprint, new: Fingerprint) -> str | None:
    before, now = old.publishing, new.publishing
    if before is None or now is None or not old.is_published:
        return "it was not published for a while, and its changes of that time were not sent"
    if before.oid != now.oid:
        return "its publication was dropped and created again, and the changes in between were not sent"
    if before.flags != now.flags:
        return "its publication's options were changed, so that changes may be missing that were not published before"
    if before.xmin != now.xmin and before.owner == now.owner:
        return "its publication was altered, and changes may not have been sent meanwhile"
    if now.says("puballtables") or before.ways == now.ways:
        return None
    kept = set(before.ways) & set(now.ways)
    if kept and all(way.condition is None and way.columns is None for way in (*before.ways, *now.ways)):
        return None  # it is published in one more way, or in one fewer
    if {way.target for way in before.ways} & {way.target for way in now.ways}:
        return (
            "it was taken out of its publication and added again, or its row filter or column list was changed; "
            "what was not published before is missing"
        )
    return "it is published in another way than before, and changes in between were not sent"


def _persistence_changed(old: Fingerprint, new: Fingerprint) -> str | None:
    return "it was unlogged for a while, which writes no WAL" if old.persistence != new.persistence else None


def _partitions_changed(old: Fingerprint, new: Fingerprint) -> str | None:
    before = {node.oid: node for node in old.nodes}
    now = {node.oid: node for node in new.nodes}
    gone = sum(oid not in now for oid in before)
    if gone:
        return f"{_partitions(gone)} detached or dropped, which removes rows without sending that"
    if any(before[oid].link != now[oid].link for oid in before):
        return "a partition was detached and attached again, and its changes in between were not sent"
    attached = sum(oid not in before and not node.born_attached for oid, node in now.items())
    if attached:
        return f"{_partitions(attached)} attached, and the rows already there were not sent"
    return None


def _columns_changed(old: Fingerprint, new: Fingerprint) -> str | None:
    now = {attribute.attnum: attribute for attribute in new.attributes}
    for attribute in old.attributes:
        today = now.get(attribute.attnum)
        if today is None or not attribute.name or not today.name:
            continue  # dropped: the stream says so
        if today.generated != attribute.generated:
            return f"column {attribute.name} became or is no longer a generated column, which is not sent row by row"
    return None


def _types_changed(old: Fingerprint, new: Fingerprint) -> str | None:
    now = {form.oid: form for form in new.types}
    for form in old.types:
        today = now.get(form.oid)
        if today is None or today == form:
            continue
        if not form.is_enum:
            return "the attributes of a composite type were changed, and with them what every row shows"
        labels = dict(today.parts)
        if any(labels.get(oid, label) != label for oid, label in form.parts):
            return "a label of an enum type was renamed, and with it the value of every row that has it"
    return None


def _partitions(number: int) -> str:
    return "a partition was" if number == 1 else f"{number} partitions were"
