"""Tables that are selected by patterns: at the first start, while the pipeline runs, and as its publication changes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from etl_core.errors import ConfigError, SourceRefused
from etl_core.identifiers import TableName
from etl_core.source.doctor import examine
from etl_core.table_pattern import read_selection

if TYPE_CHECKING:
    from tests.integration.replication.conftest import Lab


def select(lab: Lab, *given: str) -> None:
    tables = read_selection("source.tables", given, instead="").entries
    lab.config = replace(lab.config, source=replace(lab.config.source, tables=tables))


def published(lab: Lab) -> set[str]:
    rows = lab.execute("SELECT schemaname || '.' || tablename FROM pg_publication_tables")
    return {str(name) for (name,) in rows}


def test_patterns_make_the_publication_and_follow_it(lab: Lab) -> None:
    lab.execute(
        "CREATE SCHEMA s; CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE audit_1 (id int PRIMARY KEY);"
        "CREATE TABLE s.c (id int PRIMARY KEY); CREATE TABLE s.d (id int PRIMARY KEY);"
        "CREATE UNLOGGED TABLE hasty (id int PRIMARY KEY); CREATE VIEW v AS SELECT * FROM a;"
        "CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id);"
        "CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10);"
        "INSERT INTO a VALUES (1); INSERT INTO parts VALUES (1)"
    )
    select(lab, "public.*", "!audit_*", "s.c")
    with lab.synced() as pipeline:
        assert {str(status.name) for status in pipeline.store.tables()} == {"public.a", "public.parts", "s.c"}
        assert published(lab) == {"public.a", "public.parts", "s.c"}

        # What matches and is not published is said, and copied once it is; what does not match is left alone.
        lab.execute("CREATE TABLE b (id int PRIMARY KEY); INSERT INTO b VALUES (7)")
    findings = examine(
        lab.config.source.conninfo(),
        pipeline=lab.config.pipeline,
        publication=lab.config.source.publication,
        selection=lab.config.source.selection,
    )
    (left,) = [finding for finding in findings if "public.b" in finding.message]
    assert "selects it" in left.message
    assert left.sql is not None
    lab.execute(left.sql)
    lab.execute(f"ALTER PUBLICATION {lab.config.source.publication} ADD TABLE s.d, audit_1")
    with lab.synced() as pipeline:
        assert TableName("public", "b") in {status.name for status in pipeline.store.tables()}
        assert len(pipeline.store.tables()) == 4
        assert {comparison.is_equal for comparison in pipeline.verify()} == {True}

    # An existing publication and nothing but what is left out.
    select(lab, "!s.*")
    with lab.synced() as pipeline:
        names = {str(status.name) for status in pipeline.store.tables()}
    assert names == {"public.a", "public.b", "public.parts", "public.audit_1"}

    select(lab, "nothing_*")
    with lab.unprepared() as pipeline, pytest.raises(ConfigError, match="is one of nothing_\\*"):
        pipeline.prepare()
    select(lab, "public.*")
    with lab.synced() as pipeline:
        assert {comparison.is_equal for comparison in pipeline.verify()} == {True}, "nothing was forgotten"


def test_a_pattern_matches_a_table_that_cannot_be_published(lab: Lab) -> None:
    lab.execute("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE keyless (id int)")
    select(lab, "*")
    with lab.unprepared() as pipeline, pytest.raises(SourceRefused, match=r"public\.keyless") as caught:
        pipeline.prepare()
    assert "add '!public.keyless'" in str(caught.value.hint)
    assert published(lab) == set()
    select(lab, "*", "!public.keyless")
    with lab.synced() as pipeline:
        assert [str(status.name) for status in pipeline.store.tables()] == ["public.a"]
