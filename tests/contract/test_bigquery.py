"""The destination contract over BigQuery: the real client libraries, on an emulator or on BigQuery itself.

With ETL_BIGQUERY_PROJECT set, and credentials where Google's libraries look for them, the same tests run there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("google.cloud.bigquery", reason="the extra is missing: pip install 'etl-dagster[bigquery]'")

from etl_core.destination.bigquery.destination import BigQueryDestination, from_options
from etl_core.destination.protocol import Destination, LoggedCopy
from etl_core.schema.table import Column, TableSchema
from etl_core.testing.destination_deleted_suite import DeletedRowsSuite, at
from etl_core.testing.destination_log_suite import LATER, THEN, LogSuite, RotatedLogs, append_copy, copied, log
from etl_core.testing.destination_multiset_suite import MultisetSuite
from etl_core.testing.destination_schemas_suite import AddColumn
from etl_core.testing.destination_sharing_suite import SharingSuite
from etl_core.testing.destination_suite import DestinationSuite
from etl_core.testing.destination_tables import INT8, TEXT, batch, changes, contents
from etl_core.testing.destination_values_suite import CASES, Case
from etl_core.testing.destination_watermark_suite import MakeDestination
from etl_core.testing.servers.bigquery_emulator import BigQueryEmulator

pytestmark = pytest.mark.timeout(1200)

_EMULATOR_LACKS = frozenset({"interval", "wide", "unknowns"})
"""local-bigquery 0.3.2 refuses INTERVAL and wide BIGNUMERIC; BYTES in an ARRAY come as base64."""
ID = Column("id", INT8, attnum=1)
_DAY = 86_400_000_000
_FIRST_DAY, _LAST_DAY = -719_162, 2_932_896


class TestBigQuery(RotatedLogs, LogSuite, MultisetSuite, DeletedRowsSuite, SharingSuite, DestinationSuite):
    @pytest.fixture
    def make_destination(self, bigquery_options: dict[str, str]) -> MakeDestination:
        mark = bigquery_options["dataset"].partition("_")[0]
        return lambda pipeline: from_options(bigquery_options, f"{pipeline}_{mark}")

    @pytest.fixture
    def cases(self, bigquery_emulator: BigQueryEmulator | None) -> Sequence[Case]:
        return [case for case in CASES if bigquery_emulator is None or case[0].name not in _EMULATOR_LACKS]

    @pytest.fixture
    def add_column(self) -> AddColumn:
        def add(destination: Destination, schema: TableSchema, name: str) -> Callable[[], Collection[str]]:
            assert isinstance(destination, BigQueryDestination)
            client, place = destination._clients.rest(), destination.place(schema)
            client.query(f"ALTER TABLE {place.sql} ADD COLUMN {name} STRING").result()
            return lambda: [field.name for field in client.get_table(str(place)).schema]

        return add

    def test_older_rows_name_unchanged_columns_as_they_are_called_now(self, destination: Destination) -> None:
        """One is renamed, which is a new copy; others are dropped, with it and in place."""
        note, mail, more = (Column(name, TEXT, attnum=at) for at, name in ((2, "note"), (3, "mail"), (4, "more")))
        schema = log(ID, note, mail, more)
        append_copy(destination, schema, [(1, "a", "b", "c")], 100)
        sent = ("update", 150, 1, at(LATER))
        updated = [(1, None, None, None, None, *sent, ["mail", "more", "note"]), (1, *"abc", None, *sent, None)]
        updated.append((1, "a", "b", None, None, *sent, ["more"]))
        destination.write(batch(changes(schema, inserts=updated), expected=100, new=200))
        renamed = log(ID, replace(note, name="text"), mail)
        append_copy(destination, renamed, [(1, "a", "b")], 300, LoggedCopy(LATER))
        older = [(1, "a", "b", None, *copied(100, THEN)), (1, "a", "b", None, *copied(300, LATER))]
        kept = [*older, *[(1, "a", "b", None, *sent, None)] * 2]
        assert contents(destination, renamed) == Counter([*kept, (1, None, None, None, *sent, ("mail", "text"))])
        dropped = log(ID, replace(note, name="text"))
        last = (1, None, None, "update", 350, 1, at(LATER), ["text"])
        destination.write(batch(changes(dropped, inserts=[last]), expected=300, new=400))
        found = [(*row[:2], *row[3:]) for row in kept] + [(1, None, None, *sent, ("text",))]
        assert contents(destination, dropped) == Counter([*found, (*last[:-1], ("text",))])

    def holds(self, column: Column, value: Any) -> bool:
        match column.name:
            case "date":
                return bool(_FIRST_DAY <= value <= _LAST_DAY)
            case "timestamp" | "timestamptz" | "when":
                return bool(_FIRST_DAY * _DAY <= value < (_LAST_DAY + 1) * _DAY)
            case "time":
                return bool(value < _DAY)
            case "float8_0" | "float8_1" | "point_2":
                return "-0.0" not in repr(value)  # local-bigquery stores it as 0 where a column has both
            case _:
                return True
