"""The SQL of one table: as it is created, as a staged part is merged into it. Text in, text out.

Names come from `names`, which lets nothing through that would end a quoted identifier; values are query parameters,
and comments of the source are escaped.
"""

# ruff: noqa: S608 names are quoted by `names`, values are parameters

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
from google.cloud import bigquery

from etl_core.destination.bigquery.columns import StoredColumn, stored_columns
from etl_core.destination.bigquery.failures import ORIGIN
from etl_core.destination.bigquery.method import key_refused
from etl_core.destination.bigquery.names import Place, quoted
from etl_core.destination.bigquery.types import ELEMENT, ELEMENTS, WIDEST, BigQueryType, bigquery_field
from etl_core.schema.table import TableSchema

ROW, FINAL, PARTIAL = "_etl_row", "_etl_final", "_etl_partial"
"""Of a staged row: its number, whether it is there afterwards (else its key is only removed), and its group of partial
rows, counted from 1, or 0."""

_CLUSTERED = frozenset({"INT64", "STRING", "NUMERIC", "BIGNUMERIC", "BOOL", "DATE", "DATETIME", "TIMESTAMP"})
_MOST_CLUSTERED = 4
_LONGEST_DESCRIPTION, _LONGEST_COLUMN_DESCRIPTION = 16_384, 1_024
"""Characters: https://cloud.google.com/bigquery/quotas#table_limits"""


def origin(number: int) -> str:
    """The staged column of the `number`-th key column of the row that a partial row comes from."""
    return f"_etl_origin_{number}"


def fields(columns: Sequence[StoredColumn], schema: TableSchema) -> list[bigquery.SchemaField]:
    """The columns of a table, for the API."""
    return [
        field(stored.column, bigquery_field(column)) for stored, column in zip(columns, schema.columns, strict=True)
    ]


def staged_fields(
    columns: Sequence[StoredColumn], schema: TableSchema, *, with_origins: bool
) -> list[bigquery.SchemaField]:
    """The columns of a staged part of `schema`."""
    marks = [
        bigquery.SchemaField(ROW, "INT64"),
        bigquery.SchemaField(FINAL, "BOOL"),
        bigquery.SchemaField(PARTIAL, "INT64"),
    ]
    keys = [bigquery_field(schema.column(name)) for name in schema.key] if with_origins else []
    return [*marks, *(field(origin(n), kind) for n, kind in enumerate(keys)), *fields(columns, schema)]


@dataclass(frozen=True, slots=True)
class Descriptions:
    """What a table and its columns (by lower-case name) were described as."""

    table: str | None
    columns: Mapping[str, str]

    @classmethod
    def of(cls, table: bigquery.Table | None) -> Descriptions:
        if table is None:
            return cls(None, {})
        return cls(table.description, {f.name.lower(): f.description for f in table.schema if f.description})


def replace_table(
    place: Place,
    staging: Place,
    schema: TableSchema,
    labels: Mapping[str, str],
    partition: str | None,
    max_staleness: float | None,
    before: Descriptions,
    values: Mapping[str, str] | None = None,
) -> str:
    """The statement that puts what was staged in the table's place, rows, columns, key and all.

    `partition` is an expression, `max_staleness` in seconds. Labels are of characters that need no quoting. `values`
    are expressions in place of NULL in some columns.
    """
    stored = stored_columns(schema)
    names = {column.name: quoted(column.column) for column in stored}
    comments = {c.name: schema.column(c.name).comment or before.columns.get(c.column.lower()) for c in stored}
    definitions = [f"{names[column.name]} {column.type}{_described(comments[column.name])}" for column in stored]
    kinds = {name: bigquery_field(schema.column(name)) for name in schema.key}
    if key_refused(schema) is None:
        definitions.append(f"PRIMARY KEY ({', '.join(names[name] for name in schema.key)}) NOT ENFORCED")
    clustered = [names[name] for name, kind in kinds.items() if kind.sql in _CLUSTERED][:_MOST_CLUSTERED]
    cluster = f" CLUSTER BY {', '.join(clustered)}" if clustered else ""
    by = f" PARTITION BY {partition}" if partition else ""
    listed = ", ".join(f"('{key}', '{value}')" for key, value in labels.items())
    stale = "" if max_staleness is None else f", max_staleness = INTERVAL {max_staleness:.0f} SECOND"
    comment = schema.comment or before.table
    described = "" if comment is None else f", description = {literal(comment[:_LONGEST_DESCRIPTION])}"
    return (
        f"CREATE OR REPLACE TABLE {place.sql} ({', '.join(definitions)}){by}{cluster}"
        f" OPTIONS (labels = [{listed}]{stale}{described})"
        f" AS SELECT {', '.join(_or_else(name, values or {}) for name in names.values())} FROM {staging.sql}"
    )


def _or_else(name: str, values: Mapping[str, str]) -> str:
    return f"COALESCE({name}, {values[name]}) AS {name}" if name in values else name


def add_columns(place: Place, columns: Sequence[StoredColumn]) -> str:
    added = ", ".join(f"ADD COLUMN IF NOT EXISTS {quoted(column.column)} {column.type}" for column in columns)
    return f"ALTER TABLE {place.sql} {added}"


def drop_columns(place: Place, names: Sequence[str]) -> str:
    return f"ALTER TABLE {place.sql} {', '.join(f'DROP COLUMN IF EXISTS {quoted(name)}' for name in names)}"


def fill(place: Place, columns: Sequence[StoredColumn], values: Place) -> str:
    """Gives every row there is the values of the one row of `values` in these columns."""
    assignments = ", ".join(
        f"{quoted(column.column)} = (SELECT {quoted(column.column)} FROM {values.sql} LIMIT 1)" for column in columns
    )
    return f"UPDATE {place.sql} SET {assignments} WHERE TRUE"


def any_value(place: Place, columns: Sequence[StoredColumn]) -> str:
    """A row if one of the columns holds anything."""
    held = " OR ".join(f"{quoted(column.column)} IS NOT NULL" for column in columns)
    return f"SELECT 1 FROM {place.sql} WHERE {held} LIMIT 1"


def select(place: Place, names: Sequence[str]) -> str:
    return f"SELECT {', '.join(map(quoted, names))} FROM {place.sql}"


def count(place: Place) -> str:
    """Reads no bytes: BigQuery knows."""
    return f"SELECT COUNT(*) FROM {place.sql}"


def truncate(place: Place) -> str:
    return f"TRUNCATE TABLE {place.sql}"


def insert(place: Place, staged: Place, columns: Sequence[StoredColumn]) -> str:
    """Appends the staged rows of a table without a key, each number once."""
    listed = ", ".join(quoted(column.column) for column in columns)
    return (
        f"INSERT INTO {place.sql} ({listed}) SELECT {listed} FROM {staged.sql}"
        f" WHERE TRUE QUALIFY ROW_NUMBER() OVER (PARTITION BY {ROW}) = 1"
    )


def check_origins(
    place: Place, staged: Place, columns: Sequence[StoredColumn], schema: TableSchema, number: int
) -> str:
    """Ends the script if a row that an unchanged value is to be taken from is not there."""
    names = _names(columns)
    first = f"o.{quoted(names[schema.key[0]])}"
    return (
        f"ASSERT NOT EXISTS (SELECT 1 FROM {staged.sql} AS s LEFT JOIN {place.sql} AS o"
        f" ON {_origin_matches(names, schema)} WHERE s.{PARTIAL} > 0 AND {first} IS NULL) AS '{ORIGIN}:{number}'"
    )


def merge(
    place: Place,
    staged: Place,
    columns: Sequence[StoredColumn],
    schema: TableSchema,
    unchanged: Sequence[Sequence[str]],
    bounds: str | None,
) -> str:
    """One MERGE of a staged part. `unchanged` are, by group of partial rows, the columns whose values stay as they are.

    A key that is removed and there again is there; so every key is taken once, final rows first. `bounds` limits the
    keys that are looked for, so that BigQuery reads only the blocks that may hold them.
    """
    names = _names(columns)
    selected = _taken(columns, unchanged)
    once = (
        f"(SELECT * FROM {staged.sql} AS s WHERE TRUE"
        f" QUALIFY ROW_NUMBER() OVER (PARTITION BY {_keys('s', names, schema)} ORDER BY {FINAL} DESC) = 1)"
    )
    joined = f" LEFT JOIN {place.sql} AS o ON s.{PARTIAL} > 0 AND {_origin_matches(names, schema)}" if unchanged else ""
    matches = " AND ".join(
        f"{comparable('t', names[name], kind)} = {comparable('s', names[name], kind)}"
        for name, kind in ((name, bigquery_field(schema.column(name))) for name in schema.key)
    )
    listed = [quoted(column.column) for column in columns]
    return (
        f"MERGE {place.sql} AS t"
        f" USING (SELECT s.{FINAL} AS {FINAL}, {', '.join(selected)} FROM {once} AS s{joined}) AS s"
        f" ON {matches}{f' AND {bounds}' if bounds else ''}"
        f" WHEN MATCHED AND NOT s.{FINAL} THEN DELETE"
        f" WHEN MATCHED THEN UPDATE SET {', '.join(f'{name} = s.{name}' for name in listed)}"
        f" WHEN NOT MATCHED AND s.{FINAL} THEN INSERT ({', '.join(listed)})"
        f" VALUES ({', '.join(f's.{name}' for name in listed)})"
    )


def complete(
    target: Place,
    staged: Place,
    columns: Sequence[StoredColumn],
    schema: TableSchema,
    unchanged: Sequence[Sequence[str]],
    held: str,
) -> list[str]:
    """Fills `target` with a staged part whose partial rows are whole: `columns` and FINAL.

    `held` is what values are taken from: a table or a query in parentheses. Of a partial row that is not in it PARTIAL
    is -1, and the script ends; others have 0.
    """
    names = _names(columns)
    listed = ", ".join(quoted(column.column) for column in columns)
    is_missing = f"IF(s.{PARTIAL} > 0 AND o.{quoted(names[schema.key[0]])} IS NULL, -1, 0)"
    return [
        f"INSERT INTO {target.sql} ({FINAL}, {PARTIAL}, {listed})"
        f" SELECT s.{FINAL}, {is_missing}, {', '.join(_taken(columns, unchanged))} FROM {staged.sql} AS s"
        f" LEFT JOIN {held} AS o ON s.{PARTIAL} > 0 AND {_origin_matches(names, schema)}",
        f"ASSERT NOT EXISTS (SELECT 1 FROM {target.sql} WHERE {PARTIAL} < 0) AS '{ORIGIN}'",
    ]


def held_after(
    place: Place,
    earlier: Sequence[tuple[Place, Sequence[StoredColumn]]],
    staged: Place,
    columns: Sequence[StoredColumn],
    schema: TableSchema,
) -> str:
    """The query, in parentheses, of the rows of a table after the parts `earlier`, which are not in it yet.

    Of the table it has those alone that partial rows of `staged` come from.
    """
    names, number = _names(columns), "_etl_part"
    listed = ", ".join(quoted(column.column) for column in columns)
    wanted = " AND ".join(
        f"{comparable('t', names[name], kind)} = {comparable('s', origin(at), kind)}"
        for at, (name, kind) in enumerate((name, bigquery_field(schema.column(name))) for name in schema.key)
    )
    queries = [
        f"SELECT {listed}, TRUE AS {FINAL}, 0 AS {number} FROM {place.sql} AS t"
        f" WHERE EXISTS (SELECT 1 FROM {staged.sql} AS s WHERE s.{PARTIAL} > 0 AND {wanted})"
    ]
    for at, (part, there) in enumerate(earlier, 1):
        values = ", ".join(
            quoted(c.column) if c in there else f"CAST(NULL AS {c.type}) AS {quoted(c.column)}" for c in columns
        )
        queries.append(f"SELECT {values}, {FINAL}, {at} AS {number} FROM {part.sql}")
    newest = (
        f"SELECT * FROM ({' UNION ALL '.join(queries)}) AS u WHERE TRUE QUALIFY ROW_NUMBER() OVER"
        f" (PARTITION BY {_keys('u', names, schema)} ORDER BY {number} DESC, {FINAL} DESC) = 1"
    )
    return f"(SELECT * FROM ({newest}) AS n WHERE {FINAL})"


def bounds_of(column: StoredColumn, lowest: str, highest: str) -> str:
    """The range of the first key column that a part touches, given as two parameters."""
    return f"t.{quoted(column.column)} BETWEEN @{lowest} AND @{highest}"


def script(statements: Sequence[str]) -> str:
    """One after the other; the first that fails is the last."""
    return "".join(f"{statement};\n" for statement in statements)


def transaction(statements: Sequence[str]) -> str:
    """All of them or none."""
    return script(["BEGIN TRANSACTION", *statements, "COMMIT TRANSACTION"])


def _described(comment: str | None) -> str:
    if comment is None:
        return ""
    return f" OPTIONS (description = {literal(comment[:_LONGEST_COLUMN_DESCRIPTION])})"


def literal(text: str) -> str:
    """A string of BigQuery's: its escapes are JSON's, but for surrogates, which `ensure_ascii` would make."""
    return json.dumps(text, ensure_ascii=False)


def _names(columns: Sequence[StoredColumn]) -> dict[str, str]:
    return {column.name: column.column for column in columns}


def _keys(alias: str, names: Mapping[str, str], schema: TableSchema) -> str:
    return ", ".join(comparable(alias, names[name], bigquery_field(schema.column(name))) for name in schema.key)


def _taken(columns: Sequence[StoredColumn], unchanged: Sequence[Sequence[str]]) -> list[str]:
    """The columns of staged rows s, with the values of o where they are unchanged."""
    selected = []
    for column in columns:
        name = quoted(column.column)
        numbers = [str(number) for number, group in enumerate(unchanged, 1) if column.name in group]
        taken = f"IF(s.{PARTIAL} IN ({', '.join(numbers)}), o.{name}, s.{name})" if numbers else f"s.{name}"
        selected.append(f"{taken} AS {name}")
    return selected


def _origin_matches(names: Mapping[str, str], schema: TableSchema) -> str:
    return " AND ".join(
        f"{comparable('o', names[name], kind)} = {comparable('s', origin(number), kind)}"
        for number, (name, kind) in enumerate((name, bigquery_field(schema.column(name))) for name in schema.key)
    )


def comparable(alias: str, column: str, kind: BigQueryType) -> str:
    """The column so that equal is what PostgreSQL calls equal: NaN is NaN, and -0 is 0."""
    name = f"{alias}.{quoted(column)}"
    if kind.sql == "FLOAT64":
        return f"CAST({name} + 0.0 AS STRING)"
    if kind.is_nested or kind.sql == "INTERVAL":
        return f"TO_JSON_STRING({name})" if kind.is_nested else f"CAST({name} AS STRING)"
    return name


def field(name: str, kind: BigQueryType) -> bigquery.SchemaField:
    """A column of the API, nullable."""
    if kind.element is not None:
        element = field(ELEMENT, kind.element)
        elements = bigquery.SchemaField(ELEMENTS, "RECORD", "REPEATED", fields=[element])
        return bigquery.SchemaField(name, "RECORD", fields=[elements])
    if kind.fields:
        return bigquery.SchemaField(name, "RECORD", fields=[field(*one) for one in kind.fields])
    return bigquery.SchemaField(name, kind.sql)


def kind_of(column: bigquery.SchemaField) -> BigQueryType:
    """The type of a column that `field` has made, with the widest decimals."""
    if column.field_type != "RECORD":
        return BigQueryType(column.field_type, WIDEST[column.field_type])
    if column.fields[0].mode == "REPEATED":
        element = kind_of(column.fields[0].fields[0])
        inner = pa.list_(pa.field(ELEMENT, pa.struct([pa.field(ELEMENT, element.arrow)])))
        return BigQueryType("STRUCT", pa.struct([pa.field(ELEMENTS, inner)]), element)
    fields = tuple((field.name, kind_of(field)) for field in column.fields)
    return BigQueryType("STRUCT", pa.struct([pa.field(name, kind.arrow) for name, kind in fields]), fields=fields)
