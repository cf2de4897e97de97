"""What a difference between two fingerprints of a table means for its rows, as a table of changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from etl_core.identifiers import TableName
from etl_core.schema.fingerprint import (
    Attribute,
    Fingerprint,
    Node,
    Publishing,
    TypeForm,
    Way,
    is_altered,
    new_files,
    what_changed,
)

LISTED = Way(100, 900)
NAMESPACE = Way(2200, 901, is_namespace=True, membership=50)
PUBLICATION = Publishing(
    800, 40, 10, (("puballtables", False), ("pubinsert", True), ("pubtruncate", True), ("pubviaroot", True)), (LISTED,)
)
ENUM = TypeForm(500, True, ((501, "open"), (503, "done")))
PAIR = TypeForm(600, False, ((1, "a 23 -1"), (2, "b 25 -1")))
TABLE = Fingerprint(
    100,
    TableName("public", "t"),
    "r",
    "p",
    (Attribute(1, "id", 23, xmin=30), Attribute(2, ""), Attribute(3, "s", 500, xmin=30)),
    (Node(100, 100),),
    (ENUM, PAIR),
    PUBLICATION,
    is_published=True,
    horizon=60,
)
ROOT = replace(TABLE, kind="p", nodes=(Node(100, 0), Node(101, 101, 31, True), Node(102, 102, 32, False)))


def published(*ways: Way, **changes: Any) -> Fingerprint:
    return replace(TABLE, publishing=replace(PUBLICATION, ways=ways or (LISTED,), **changes))


def flags(**said: bool) -> tuple[tuple[str, bool], ...]:
    return tuple(sorted({**dict(PUBLICATION.flags), **said}.items()))


def attributes(*changed: Attribute) -> Fingerprint:
    kept = {attribute.attnum: attribute for attribute in (*TABLE.attributes, *changed)}
    return replace(TABLE, attributes=tuple(kept[attnum] for attnum in sorted(kept)))


def types(*forms: TypeForm) -> Fingerprint:
    return replace(TABLE, types=forms)


def nodes(*changed: Node, without: int = 0) -> Fingerprint:
    kept = {node.oid: node for node in (*ROOT.nodes, *changed) if node.oid != without}
    return replace(ROOT, nodes=tuple(kept[oid] for oid in sorted(kept)))


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        # what the stream carries, or nothing depends on
        pytest.param(TABLE, replace(TABLE, horizon=70), None, id="time_passed"),
        pytest.param(TABLE, attributes(Attribute(4, "new", 25, xmin=70)), None, id="column_added"),
        pytest.param(TABLE, attributes(Attribute(3, "")), None, id="column_dropped"),
        pytest.param(TABLE, attributes(Attribute(1, "id", 20, xmin=70)), None, id="type_changed"),
        pytest.param(TABLE, attributes(Attribute(1, "id", 23, xmin=70)), None, id="rights_on_a_column"),
        pytest.param(TABLE, replace(TABLE, nodes=(Node(100, 777),)), None, id="another_file"),
        pytest.param(
            TABLE, types(replace(ENUM, parts=(*ENUM.parts, (505, "lost"))), PAIR), None, id="enum_label_added"
        ),
        pytest.param(TABLE, types(ENUM), None, id="type_no_longer_used"),
        pytest.param(ROOT, nodes(Node(103, 103, 70, born_attached=True)), None, id="partition_created"),
        pytest.param(TABLE, published(LISTED, NAMESPACE), None, id="published_in_one_more_way"),
        pytest.param(published(LISTED, NAMESPACE), published(NAMESPACE), None, id="published_in_one_fewer_way"),
        pytest.param(TABLE, published(xmin=70, owner=11), None, id="publication_has_another_owner"),
        # how it is published
        pytest.param(TABLE, published(oid=801), "dropped and created again", id="publication_created_again"),
        pytest.param(TABLE, published(xmin=70), "publication was altered", id="options_changed_and_back"),
        pytest.param(TABLE, published(flags=flags(pubinsert=False)), "options were changed", id="publish_changed"),
        pytest.param(TABLE, published(Way(100, 950)), "taken out of its publication", id="taken_out_and_added"),
        pytest.param(TABLE, published(Way(100, 950, condition="7f")), "row filter", id="row_filter"),
        pytest.param(TABLE, published(Way(100, 950, columns=(1,))), "column list", id="column_list"),
        pytest.param(TABLE, published(replace(NAMESPACE, oid=950)), "in another way", id="by_its_namespace_now"),
        pytest.param(
            published(NAMESPACE),
            published(replace(NAMESPACE, membership=70)),
            "taken out of its publication",
            id="moved_to_another_namespace_and_back",
        ),
        pytest.param(
            published(Way(100, 900, condition="7f")),
            published(Way(100, 900, condition="7f"), NAMESPACE),
            "row filter",
            id="a_filter_no_longer_holds",
        ),
        pytest.param(replace(TABLE, is_published=False), TABLE, "not published for a while", id="published_later"),
        pytest.param(replace(TABLE, publishing=None), TABLE, "not published for a while", id="no_publication_then"),
        # what it is
        pytest.param(TABLE, replace(TABLE, name=TableName("public", "u")), None, id="renamed"),
        pytest.param(replace(TABLE, persistence="u"), TABLE, "unlogged for a while", id="was_unlogged"),
        pytest.param(TABLE, attributes(Attribute(1, "key", 23, xmin=70)), None, id="column_renamed"),
        pytest.param(
            attributes(Attribute(4, "g", 23, generated="s")),
            attributes(Attribute(4, "g", 23)),
            "column g became or is no longer a generated column",
            id="expression_dropped",
        ),
        pytest.param(
            TABLE, types(replace(ENUM, parts=((501, "opened"), (503, "done"))), PAIR), "label", id="enum_label_renamed"
        ),
        pytest.param(
            TABLE,
            types(replace(ENUM, parts=((501, "done"), (503, "open"))), PAIR),
            "label",
            id="enum_labels_exchanged",
        ),
        pytest.param(TABLE, types(ENUM, replace(PAIR, parts=PAIR.parts[:1])), "composite", id="attribute_dropped"),
        pytest.param(
            TABLE, types(ENUM, replace(PAIR, parts=(*PAIR.parts, (3, "c 16 -1")))), "composite", id="attribute_added"
        ),
        # its partitions
        pytest.param(ROOT, nodes(without=102), "a partition was detached or dropped", id="partition_gone"),
        pytest.param(ROOT, nodes(Node(103, 103, 70)), "a partition was attached", id="partition_attached"),
        pytest.param(
            ROOT, nodes(Node(103, 103, 70), Node(104, 104, 70)), "2 partitions were attached", id="partitions_attached"
        ),
        pytest.param(ROOT, nodes(Node(102, 102, 70)), "detached and attached again", id="partition_came_back"),
    ],
)
def test_what_a_change_means(before: Fingerprint, after: Fingerprint, why: str | None) -> None:
    found = what_changed(before, after)
    assert found is None if why is None else why in (found or ""), found
    assert what_changed(after, after) is None


def test_files_of_relations_that_are_still_there() -> None:
    after = nodes(Node(101, 777, 31, True), Node(103, 103, 70, True), without=102)
    assert new_files(ROOT, after) == (101,)
    assert new_files(ROOT, ROOT) == ()


@pytest.mark.parametrize(
    ("change", "altered"),
    [
        (lambda: TABLE, False),
        (lambda: attributes(Attribute(1, "id", 23, xmin=70)), True),
        (lambda: attributes(Attribute(2, "", xmin=70)), False),
        (lambda: attributes(Attribute(4, "new", 25, xmin=70)), False),
        (lambda: attributes(Attribute(3, "", xmin=70)), False),
    ],
)
def test_a_column_s_row_was_written_since(change: Callable[[], Fingerprint], altered: bool) -> None:
    assert is_altered(TABLE, change()) is altered
