"""A table's fingerprint as JSON and back: how the stores keep it."""

from __future__ import annotations

import json
from typing import Any

from etl_core.errors import PermanentError
from etl_core.identifiers import TableName
from etl_core.lsn import Lsn
from etl_core.schema.fingerprint import Attribute, Fingerprint, Node, Publishing, TypeForm, read_way
from etl_core.state.store import Remembered


def remembered_to_json(remembered: Remembered) -> str:
    """One JSON object; `remembered_from_json` gives an equal fingerprint back, horizon and all, and the earlier one."""
    stored = _to_json(remembered.fingerprint)
    if remembered.earlier is not None:
        stored["earlier"] = {**_to_json(remembered.earlier.fingerprint), "lsn": int(remembered.earlier.lsn)}
    return json.dumps(stored, separators=(",", ":"))


def remembered_from_json(text: str, lsn: Lsn, *, has_gap: bool) -> Remembered:
    """Raises PermanentError if `text` is not what `remembered_to_json` writes."""
    try:
        stored = json.loads(text)
        earlier = stored.get("earlier")
        before = None if earlier is None else Remembered(_from_json(earlier), Lsn(earlier["lsn"]))
        return Remembered(_from_json(stored), lsn, has_gap, before)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise PermanentError(
            "a table's fingerprint in the state store cannot be read",
            hint="the store was written by another program or damaged: restore it from a backup, or re-sync the table",
        ) from None


def _to_json(print_: Fingerprint) -> dict[str, Any]:
    publishing = print_.publishing
    return {
        "table": [print_.table_id, print_.name.namespace, print_.name.name, print_.kind, print_.persistence],
        "attributes": [[a.attnum, a.name, a.type_oid, a.type_modifier, a.generated, a.xmin] for a in print_.attributes],
        "nodes": [[n.oid, n.filenode, n.link, n.born_attached] for n in print_.nodes],
        "types": [[t.oid, t.is_enum, t.parts] for t in print_.types],
        "publishing": None
        if publishing is None
        else [publishing.oid, publishing.xmin, publishing.owner, publishing.flags],
        "ways": [
            [w.target, w.oid, w.is_namespace, w.membership, w.condition, w.columns]
            for w in (publishing.ways if publishing else ())
        ],
        "is_published": print_.is_published,
        "horizon": print_.horizon,
    }


def _from_json(stored: dict[str, Any]) -> Fingerprint:
    table_id, namespace, name, kind, persistence = stored["table"]
    return Fingerprint(
        table_id=table_id,
        name=TableName(namespace, name),
        kind=kind,
        persistence=persistence,
        attributes=tuple(Attribute(*values) for values in stored["attributes"]),
        nodes=tuple(Node(*values) for values in stored["nodes"]),
        types=tuple(
            TypeForm(oid, is_enum, tuple((part, what) for part, what in parts))
            for oid, is_enum, parts in stored["types"]
        ),
        publishing=_publishing(stored["publishing"], stored["ways"]),
        is_published=stored["is_published"],
        horizon=stored["horizon"],
    )


def _publishing(stored: list[Any] | None, ways: list[list[Any]]) -> Publishing | None:
    if stored is None:
        return None
    oid, xmin, owner, flags = stored
    return Publishing(
        oid,
        xmin,
        owner,
        tuple((flag, said) for flag, said in flags),
        tuple(read_way(way) for way in ways),
    )
