"""The destination contract over BigQuery: the real client libraries, on an emulator or on BigQuery itself.

With ETL_BIGQUERY_PROJECT set, and credentials where Google's libraries look for them, the same tests run there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import pytest

pytest.importorskip("google.cloud.bigquery", reason="the extra is missing: pip install 'etl-dagster[bigquery]'")

from etl_core.destination.bigquery.destination import BigQueryDestination, from_options
from etl_core.destination.protocol import Destination
from etl_core.schema.table import Column, TableSchema
from etl_core.testing.destination_deleted_suite import DeletedRowsSuite
from etl_core.testing.destination_log_suite import LogSuite, RotatedLogs
from etl_core.testing.destination_multiset_suite import MultisetSuite
from etl_core.testing.destination_schemas_suite import AddColumn
from etl_core.testing.destination_sharing_suite import SharingSuite
from etl_core.testing.destination_suite import DestinationSuite
from etl_core.testing.destination_values_suite import CASES, Case
from etl_core.testing.destination_watermark_suite import MakeDestination
from etl_core.testing.servers.bigquery_emulator import BigQueryEmulator

pytestmark = pytest.mark.timeout(1200)

_EMULATOR_LACKS = frozenset({"interval", "wide", "unknowns"})
"""local-bigquery 0.3.2 refuses INTERVAL and wide BIGNUMERIC; BYTES in an ARRAY come as base64."""
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
