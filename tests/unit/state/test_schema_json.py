"""Schemas come back from JSON as they were, and what is not a schema is refused without being quoted."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl_core.errors import PermanentError
from etl_core.identifiers import TableId, TableName
from etl_core.schema.table import Column, PgType, ReplicaIdentity, TableSchema, TypeKind
from etl_core.state.schema_json import schema_from_json, schema_to_json

oids = st.integers(0, (1 << 32) - 1)
# Surrogates too: a name or default in a SQL_ASCII database may hold any byte.
texts = st.text(st.characters(), max_size=20)
base_types = st.builds(
    PgType, oids, texts, texts, st.sampled_from(TypeKind), delimiter=st.sampled_from(",;:"), form=st.integers(-1, 10)
)
types = st.recursive(
    base_types,
    lambda inner: st.builds(PgType, oids, texts, texts, st.sampled_from(TypeKind), inner),
    max_leaves=4,
)
columns = st.builds(
    Column,
    texts,
    types,
    st.integers(-1, (1 << 31) - 1),
    st.booleans(),
    st.integers(0, 1600),
    st.none() | texts,
)
schemas = st.builds(
    TableSchema,
    oids.map(TableId),
    st.builds(TableName, texts, texts),
    st.lists(columns, max_size=5).map(tuple),
    st.lists(texts, max_size=3).map(tuple),
    st.sampled_from(ReplicaIdentity),
    st.none() | st.lists(columns, max_size=5).map(tuple),
)

SCHEMA = TableSchema(TableId(1), TableName("public", "t"), (Column("id", PgType(23, "int4")),), ("id",))


@given(schemas)
def test_a_schema_comes_back_equal(schema: TableSchema) -> None:
    back = schema_from_json(schema_to_json(schema))
    assert back == schema
    assert hash(back) == hash(schema)


@given(schemas)
def test_the_text_is_plain(schema: TableSchema) -> None:
    text = schema_to_json(schema)
    assert text.isascii()
    assert text.isprintable()


def test_enums_come_back_as_enums() -> None:
    back = schema_from_json(schema_to_json(SCHEMA))
    assert isinstance(back.replica_identity, ReplicaIdentity)
    assert isinstance(back.columns[0].type.kind, TypeKind)


@pytest.mark.parametrize(
    "damaged",
    [
        "",
        "secret",
        "[]",
        "null",
        "{}",
        schema_to_json(SCHEMA)[:-1],
        json.dumps({**json.loads(schema_to_json(SCHEMA)), "columns": None}),
        json.dumps({**json.loads(schema_to_json(SCHEMA)), "columns": ["secret"]}),
        json.dumps({**json.loads(schema_to_json(SCHEMA)), "replica_identity": "secret"}),
    ],
)
def test_what_is_not_a_schema_is_refused(damaged: str) -> None:
    with pytest.raises(PermanentError) as caught:
        schema_from_json(damaged)
    assert "secret" not in str(caught.value)
    assert caught.value.hint
