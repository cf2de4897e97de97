"""The SQL that removes rows of a table without a key: of equal rows as many as are to go.

Rows have no numbers in BigQuery. So all rows that are equal to one of them are deleted, and those that are to stay are
inserted again, by the one MERGE that also inserts what is new. A row is known by the text of all its values, in which
-0 is not 0, nor a month 30 days.
"""

# ruff: noqa: S608 names are quoted by `names`

from __future__ import annotations

from collections.abc import Sequence

from etl_core.destination.bigquery.columns import StoredColumn
from etl_core.destination.bigquery.failures import REMOVAL
from etl_core.destination.bigquery.names import Place, quoted
from etl_core.destination.bigquery.statements import FINAL, ROW
from etl_core.destination.bigquery.types import bigquery_field
from etl_core.schema.table import TableSchema

_TEXT, _COUNT, _NTH = "_etl_text", "_etl_count", "_etl_nth"
"""No column of a source is called so here: see `names`."""


def remove(place: Place, staged: Place, columns: Sequence[StoredColumn], schema: TableSchema, number: int) -> list[str]:
    """Removes the staged rows that are not final, one equal row for each, and inserts the others.

    The script ends if a row to remove is not there.
    """
    text, wanted = _text("t", columns, schema), _wanted(staged, columns, schema)
    held = (
        f"SELECT k.{_TEXT} AS {_TEXT}, COUNT(*) AS {_COUNT} FROM {place.sql} AS t JOIN {wanted} AS k"
        f" ON {text} = k.{_TEXT} GROUP BY {_TEXT}"
    )
    check = (
        f"ASSERT NOT EXISTS (SELECT 1 FROM {wanted} AS w LEFT JOIN ({held}) AS h ON h.{_TEXT} = w.{_TEXT}"
        f" WHERE IFNULL(h.{_COUNT}, 0) < w.{_COUNT}) AS '{REMOVAL}:{number}'"
    )
    names = [quoted(column.column) for column in columns]
    listed = ", ".join(names)
    added = (
        f"SELECT CAST(NULL AS STRING) AS {_TEXT}, {listed} FROM {staged.sql} WHERE {FINAL}"
        f" QUALIFY ROW_NUMBER() OVER (PARTITION BY {ROW}) = 1"
    )
    stay = (
        f"SELECT CAST(NULL AS STRING) AS {_TEXT}, {listed} FROM (SELECT {', '.join(f't.{name}' for name in names)},"
        f" k.{_COUNT} AS {_COUNT}, ROW_NUMBER() OVER (PARTITION BY k.{_TEXT}) AS {_NTH}"
        f" FROM {place.sql} AS t JOIN {wanted} AS k ON {text} = k.{_TEXT}) AS r WHERE {_NTH} > {_COUNT}"
    )
    none = ", ".join(f"CAST(NULL AS {column.type})" for column in columns)
    gone = f"SELECT k.{_TEXT}, {none} FROM {wanted} AS k"
    merge = (
        f"MERGE {place.sql} AS t USING ({added} UNION ALL {stay} UNION ALL {gone}) AS s ON {text} = s.{_TEXT}"
        f" WHEN MATCHED THEN DELETE"
        f" WHEN NOT MATCHED AND s.{_TEXT} IS NULL THEN INSERT ({listed})"
        f" VALUES ({', '.join(f's.{name}' for name in names)})"
    )
    return [check, merge]


def _wanted(staged: Place, columns: Sequence[StoredColumn], schema: TableSchema) -> str:
    """Each row to remove once, as its text, and how often."""
    return (
        f"(SELECT {_text('s', columns, schema)} AS {_TEXT}, COUNT(DISTINCT s.{ROW}) AS {_COUNT}"
        f" FROM {staged.sql} AS s WHERE NOT s.{FINAL} GROUP BY {_TEXT})"
    )


def _text(alias: str, columns: Sequence[StoredColumn], schema: TableSchema) -> str:
    """A text that is the same for equal rows alone."""
    values = []
    for number, column in enumerate(columns):
        value, kind = f"{alias}.{quoted(column.column)}", bigquery_field(schema.column(column.name))
        if kind.sql == "INTERVAL":
            value = f"CAST({value} AS STRING)"
        elif kind.is_nested:
            value = f"TO_JSON_STRING({value})"
        values.append(f"{value} AS c{number}")
    return f"TO_JSON_STRING(STRUCT({', '.join(values)}))"
