"""Dataset `etl_<pipeline>`: the watermark of every table and the position of the stream, and where tables are staged.

LSNs are text of 16 hexadecimal digits, whose order is theirs. A table that was forgotten keeps its row with a NULL
watermark: the row also says that the table in BigQuery is ours to replace. The stream's position is the row of table 0,
whose `name` is the incarnation that the position belongs to.
"""

# ruff: noqa: S608 names are quoted by `names`, values are parameters

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from google.api_core import exceptions
from google.cloud import bigquery

from etl_core.batch import StreamMove, StreamPosition, WatermarkMove, WriteBatch
from etl_core.destination.bigquery.columns import StoredColumn, stored_columns
from etl_core.destination.bigquery.connection import CALL_SECONDS, RETRY, Clients, Parameter
from etl_core.destination.bigquery.failures import FENCE, translated
from etl_core.destination.bigquery.method import LOAD_MERGE
from etl_core.destination.bigquery.names import Place
from etl_core.destination.protocol import Positions, check_stream
from etl_core.errors import WatermarkConflict
from etl_core.identifiers import TableId, TableName
from etl_core.lsn import Lsn
from etl_core.schema.table import TableSchema

_STREAM = 0
"""The table id of the stream's row; no relation has it."""
_STAGED_FOR = timedelta(days=7)
"""How long what a crash left behind may cost storage; longer than any copy takes."""

_SCHEMA = [
    bigquery.SchemaField("table_id", "INT64", "REQUIRED"),
    bigquery.SchemaField("namespace", "STRING"),
    bigquery.SchemaField("name", "STRING"),
    bigquery.SchemaField("dataset", "STRING"),
    bigquery.SchemaField("table_name", "STRING"),
    bigquery.SchemaField("columns", "STRING"),
    bigquery.SchemaField("dropped", "STRING"),
    bigquery.SchemaField("added", "STRING"),
    bigquery.SchemaField("watermark", "STRING"),
    bigquery.SchemaField("method", "STRING"),
    bigquery.SchemaField("epoch", "INT64"),
    bigquery.SchemaField("epoch_of", "STRING"),
    bigquery.SchemaField("updated_at", "TIMESTAMP"),
    bigquery.SchemaField("redo", "STRING"),
]


@dataclass(frozen=True, slots=True)
class Claim:
    """Who streams a table's changes. `number` grows until the table is copied again; no `token` is used twice."""

    number: int
    token: str


@dataclass(frozen=True, slots=True)
class StoredTable:
    """A row of the bookkeeping."""

    table_id: TableId
    name: TableName
    place: Place
    columns: tuple[StoredColumn, ...]
    watermark: Lsn | None
    dropped: tuple[str, ...] = ()
    """Names in BigQuery of columns that are still to be dropped."""
    method: str = LOAD_MERGE
    added: tuple[tuple[str, int], ...] = ()
    """Names in BigQuery and attribute numbers of columns that a try to stream has added, and maybe filled."""
    claim: Claim | None = None
    """Under which changes are streamed; a new one with every process that begins to, and after every failure."""
    redo: str | None = None
    """What is to be streamed to the table until it is where its watermark says; see `redo_log`."""


class Bookkeeping:
    """One pipeline's dataset. Reads are free (no query); every write is one statement."""

    def __init__(self, clients: Clients, pipeline: str, location: str | None) -> None:
        self._clients = clients
        self._location = location
        self.dataset = f"etl_{pipeline}"
        self.tables_place = Place(clients.project, self.dataset, "tables")

    def create(self) -> None:
        """Idempotent."""
        self.create_dataset(self.dataset)
        client = self._clients.rest()
        with translated("creating the bookkeeping"):
            table = bigquery.Table(str(self.tables_place), _SCHEMA)
            made = client.create_table(table, exists_ok=True, retry=RETRY, timeout=CALL_SECONDS)
        if not any(column.name == "redo" for column in made.schema):  # it is of an older version
            self._clients.run(
                f"ALTER TABLE {self.tables_place.sql} ADD COLUMN IF NOT EXISTS redo STRING", "creating the bookkeeping"
            )
        self._clients.run(
            f"INSERT INTO {self.tables_place.sql} (table_id) SELECT {_STREAM}"
            f" WHERE NOT EXISTS (SELECT 1 FROM {self.tables_place.sql} WHERE table_id = {_STREAM})",
            "creating the bookkeeping",
        )

    def create_dataset(self, name: str) -> None:
        """Creates a dataset in the configured location if it is missing."""
        client = self._clients.rest()
        dataset = bigquery.Dataset(f"{self._clients.project}.{name}")
        dataset.location = self._location

        def create() -> None:
            try:
                client.get_dataset(dataset.reference, retry=RETRY, timeout=CALL_SECONDS)
            except exceptions.NotFound:
                client.create_dataset(dataset, exists_ok=True, retry=RETRY, timeout=CALL_SECONDS)

        self._clients.repeat(f"creating dataset {name}", create)

    def tables(self) -> dict[TableId, StoredTable]:
        """Of this pipeline, forgotten ones too; empty before `create`."""
        return {row.table_id: row for row in self._rows()[0]}

    def positions(self) -> Positions:
        tables, stream = self._rows()
        return Positions({row.table_id: row.watermark for row in tables if row.watermark is not None}, stream)

    def fenced_tables(self, batch: WriteBatch) -> dict[TableId, StoredTable]:
        """The tables, if all is where the batch expects it; else raises WatermarkConflict.

        The script checks it again, in its transaction; this keeps what is in vain from being staged.
        """
        rows, stream = self._rows()
        check_stream(stream, batch.stream)
        tables = {row.table_id: row for row in rows}
        self._check_watermarks(tables, batch.watermarks)
        return tables

    def _rows(self) -> tuple[list[StoredTable], StreamPosition | None]:
        tables, stream = [], None
        for row in self._read():
            watermark = None if row["watermark"] is None else Lsn(int(row["watermark"], 16))
            if row["table_id"] == _STREAM:
                stream = None if watermark is None else StreamPosition(watermark, row["name"])
                continue
            tables.append(
                StoredTable(
                    TableId(row["table_id"]),
                    TableName(row["namespace"], row["name"]),
                    Place(self._clients.project, row["dataset"], row["table_name"]),
                    tuple(StoredColumn(**column) for column in json.loads(row["columns"])),
                    watermark,
                    tuple(json.loads(row["dropped"] or "[]")),
                    row["method"],
                    tuple((name, attnum) for name, attnum in json.loads(row["added"] or "[]")),
                    None if row["epoch_of"] is None else Claim(row["epoch"], row["epoch_of"]),
                    row.get("redo"),  # a process that only looks may find a bookkeeping of an older version
                )
            )
        return tables, stream

    def _read(self) -> list[Any]:
        with translated("reading the watermarks"):
            try:
                # By the table's own columns: rows have them in its order, whatever fields are asked for in which.
                return list(self._clients.rest().list_rows(str(self.tables_place), retry=RETRY, timeout=CALL_SECONDS))
            except exceptions.NotFound:
                return []

    def _check_watermarks(
        self, tables: Mapping[TableId, StoredTable], watermarks: Mapping[TableId, WatermarkMove]
    ) -> None:
        for table_id, move in watermarks.items():
            stored = tables.get(table_id)
            found = None if stored is None else stored.watermark
            if found != move.expected:
                name = f"table {table_id}" if stored is None else str(stored.name)
                raise WatermarkConflict(f"{name} has the watermark {found}, not the expected {move.expected}")

    # --- the parts of a script that writes --------------------------------------------------------------------

    def fence(self, watermarks: Mapping[TableId, WatermarkMove]) -> str:
        """The statement that ends the script unless every table has the watermark, and the claim, expected of it.

        And is where its watermark says.
        """
        return (
            f"ASSERT (SELECT COUNT(*) FROM {self.tables_place.sql} t JOIN UNNEST(@moves) m"
            " ON t.table_id = m.table_id AND t.watermark = m.expected AND (m.claim IS NULL OR t.epoch_of = m.claim)"
            " AND t.redo IS NULL)"
            f" = {len(watermarks)} AS '{FENCE}'"
        )

    def moves(self) -> str:
        """The statement that moves the watermarks, and notes what is to be streamed until the tables are there."""
        return (
            f"UPDATE {self.tables_place.sql} t SET watermark = m.new, redo = m.redo,"
            " updated_at = CURRENT_TIMESTAMP()"
            " FROM UNNEST(@moves) m WHERE t.table_id = m.table_id"
        )

    def stream_fence(self) -> str:
        """The statement that ends the script unless the stream has the position expected of it."""
        return (
            f"ASSERT EXISTS (SELECT 1 FROM {self.tables_place.sql} WHERE table_id = {_STREAM}"
            " AND COALESCE(watermark, '') = @stream_expected AND COALESCE(name, '') = @stream_expected_of)"
            f" AS '{FENCE}'"
        )

    def move_stream(self) -> str:
        """The statement that moves the stream's position."""
        return (
            f"UPDATE {self.tables_place.sql} SET watermark = @stream, name = @stream_of,"
            f" updated_at = CURRENT_TIMESTAMP() WHERE table_id = {_STREAM}"
        )

    def put_columns(self, columns: str, dropped: str, table_id: TableId) -> str:
        """The statement that stores the columns of a table and those to be dropped, given as parameters."""
        return (
            f"UPDATE {self.tables_place.sql} SET columns = @{columns}, dropped = @{dropped}, added = NULL"
            f" WHERE table_id = {int(table_id)}"
        )

    def has_added(self, table_id: TableId) -> str:
        """The statement that takes note of the columns `@added`."""
        return f"UPDATE {self.tables_place.sql} SET added = @added WHERE table_id = {int(table_id)}"

    def still_to_drop(self, table_id: TableId) -> str:
        """The statement that ends the script unless the columns `@dropped` are still to be dropped, and no others."""
        return (
            f"ASSERT EXISTS (SELECT 1 FROM {self.tables_place.sql}"
            f" WHERE table_id = {int(table_id)} AND dropped = @dropped) AS '{FENCE}'"
        )

    def has_dropped(self, table_id: TableId) -> str:
        """The statement that takes note that they are gone."""
        return (
            f"UPDATE {self.tables_place.sql} SET dropped = NULL WHERE table_id = {int(table_id)} AND dropped = @dropped"
        )

    # --- single statements ------------------------------------------------------------------------------------

    def claim(self, table_ids: Collection[TableId]) -> dict[TableId, Claim]:
        """Claims the tables: their changes are streamed under it until the next claim.

        Raises WatermarkConflict if one of them is being copied again.
        """
        token = secrets.token_hex(8)
        while True:
            self._clients.run(
                f"UPDATE {self.tables_place.sql} SET epoch = COALESCE(epoch, 0) + 1, epoch_of = @token"
                " WHERE table_id IN UNNEST(@ids)",
                "claiming tables",
                [
                    bigquery.ScalarQueryParameter("token", "STRING", token),
                    bigquery.ArrayQueryParameter("ids", "INT64", [int(table_id) for table_id in table_ids]),
                ],
            )
            rows = [row for row in self._read() if row["table_id"] in table_ids]
            if len(rows) < len(table_ids):
                raise WatermarkConflict("a table that was to be written is being copied again")
            if all(row["epoch_of"] == token for row in rows):
                return {TableId(row["table_id"]): Claim(row["epoch"], token) for row in rows}

    def put_table(self, schema: TableSchema, place: Place, watermark: Lsn, method: str) -> None:
        """Adds the table's row. The caller has removed older ones (`remove`)."""
        self._clients.run(
            f"INSERT INTO {self.tables_place.sql} (table_id, namespace, name, dataset, table_name, columns, watermark,"
            " method, updated_at) VALUES (@id, @namespace, @name, @dataset, @table, @columns, @watermark, @method,"
            " CURRENT_TIMESTAMP())",
            "storing a watermark",
            _row_parameters(schema, place, watermark, method),
        )

    def change_table(self, schema: TableSchema, place: Place, watermark: Lsn, method: str) -> None:
        """Makes the row that the table has what `put_table` would add, in one statement: it is never without one."""
        self._clients.run(
            f"UPDATE {self.tables_place.sql} SET namespace = @namespace, name = @name, dataset = @dataset,"
            " table_name = @table, columns = @columns, dropped = NULL, added = NULL, watermark = @watermark,"
            " method = @method, epoch = NULL, epoch_of = NULL, redo = NULL,"
            " updated_at = CURRENT_TIMESTAMP() WHERE table_id = @id",
            "storing a watermark",
            _row_parameters(schema, place, watermark, method),
        )

    def remove(self, schema: TableSchema, place: Place) -> None:
        """Removes the row of the table, and of one that had its place before it was created again."""
        self._clients.run(
            f"DELETE FROM {self.tables_place.sql} WHERE table_id = @id OR (dataset = @dataset AND table_name = @table)",
            "removing a watermark",
            _place_parameters(schema, place),
        )

    def remove_others(self, schema: TableSchema, place: Place) -> None:
        """Removes the rows of other tables that had the place."""
        self._clients.run(
            f"DELETE FROM {self.tables_place.sql} WHERE table_id <> @id AND dataset = @dataset AND table_name = @table",
            "removing a watermark",
            _place_parameters(schema, place),
        )

    def forget(self, table_id: TableId) -> None:
        self._clients.run(
            f"UPDATE {self.tables_place.sql} SET watermark = NULL, redo = NULL WHERE table_id = @id",
            "removing a watermark",
            [bigquery.ScalarQueryParameter("id", "INT64", int(table_id))],
        )

    def has_redone(self, redone: Mapping[TableId, str]) -> None:
        """Takes note that what these tables had in `redo` has been streamed."""
        listed = [
            bigquery.StructQueryParameter(
                None,
                bigquery.ScalarQueryParameter("table_id", "INT64", int(table_id)),
                bigquery.ScalarQueryParameter("redo", "STRING", redo),
            )
            for table_id, redo in redone.items()
        ]
        self._clients.run(
            f"UPDATE {self.tables_place.sql} t SET redo = NULL FROM UNNEST(@redone) r"
            " WHERE t.table_id = r.table_id AND t.redo = r.redo",
            "noting what was streamed",
            [bigquery.ArrayQueryParameter("redone", "STRUCT", listed)],
        )

    # --- staging ----------------------------------------------------------------------------------------------

    def staging_place(self, prefix: str) -> Place:
        """A new one beside the bookkeeping."""
        return Place(self._clients.project, self.dataset, f"{prefix}_{secrets.token_hex(8)}")

    def create_staging(self, place: Place, schema: Sequence[bigquery.SchemaField]) -> None:
        """An empty table that goes by itself after a week."""
        table = bigquery.Table(str(place), schema)
        table.expires = datetime.now(UTC) + _STAGED_FOR
        with translated("creating a staging table"):
            self._clients.rest().create_table(table, exists_ok=True, retry=RETRY, timeout=CALL_SECONDS)

    def staged(self, prefix: str) -> list[Place]:
        """The staging tables whose names begin so."""
        with translated("listing staging tables"):
            found = self._clients.rest().list_tables(self.dataset, retry=RETRY, timeout=CALL_SECONDS)
            try:
                names = [table.table_id for table in found]
            except exceptions.NotFound:
                return []  # before `create`
            return [Place(self._clients.project, self.dataset, name) for name in names if name.startswith(f"{prefix}_")]

    def drop(self, place: Place) -> None:
        with translated("dropping a staging table"):
            self._clients.rest().delete_table(str(place), not_found_ok=True, retry=RETRY, timeout=CALL_SECONDS)


def moves_parameter(
    watermarks: Mapping[TableId, WatermarkMove],
    claims: Mapping[TableId, Claim] | None = None,
    redo: Mapping[TableId, str] | None = None,
) -> Parameter:
    """`@moves` of `Bookkeeping.fence` and `Bookkeeping.moves`.

    `claims` are of those tables whose changes were streamed, `redo` of those to which they are to be.
    """
    tokens = {table_id: claim.token for table_id, claim in (claims or {}).items()}
    return bigquery.ArrayQueryParameter(
        "moves",
        "STRUCT",
        [
            bigquery.StructQueryParameter(
                None,
                bigquery.ScalarQueryParameter("table_id", "INT64", int(table_id)),
                bigquery.ScalarQueryParameter("expected", "STRING", lsn_text(move.expected)),
                bigquery.ScalarQueryParameter("new", "STRING", lsn_text(move.new)),
                bigquery.ScalarQueryParameter("claim", "STRING", tokens.get(table_id)),
                bigquery.ScalarQueryParameter("redo", "STRING", (redo or {}).get(table_id)),
            )
            for table_id, move in watermarks.items()
        ],
    )


def stream_fence_parameters(move: StreamMove) -> list[Parameter]:
    """Those of `Bookkeeping.stream_fence`."""
    expected = move.expected
    return [
        bigquery.ScalarQueryParameter("stream_expected", "STRING", lsn_text(expected.lsn) if expected else ""),
        bigquery.ScalarQueryParameter("stream_expected_of", "STRING", (expected and expected.incarnation) or ""),
    ]


def stream_parameters(move: StreamMove) -> list[Parameter]:
    """Those of `Bookkeeping.move_stream`."""
    return [
        bigquery.ScalarQueryParameter("stream", "STRING", lsn_text(move.new.lsn)),
        bigquery.ScalarQueryParameter("stream_of", "STRING", move.new.incarnation),
    ]


def _place_parameters(schema: TableSchema, place: Place) -> list[Parameter]:
    return [
        bigquery.ScalarQueryParameter("id", "INT64", int(schema.table_id)),
        bigquery.ScalarQueryParameter("dataset", "STRING", place.dataset),
        bigquery.ScalarQueryParameter("table", "STRING", place.table),
    ]


def _row_parameters(schema: TableSchema, place: Place, watermark: Lsn, method: str) -> list[Parameter]:
    return [
        *_place_parameters(schema, place),
        bigquery.ScalarQueryParameter("namespace", "STRING", schema.name.namespace),
        bigquery.ScalarQueryParameter("name", "STRING", schema.name.name),
        columns_parameter("columns", stored_columns(schema)),
        bigquery.ScalarQueryParameter("watermark", "STRING", lsn_text(watermark)),
        bigquery.ScalarQueryParameter("method", "STRING", method),
    ]


def columns_parameter(name: str, columns: Sequence[StoredColumn]) -> Parameter:
    entries = [
        {"name": column.name, "attnum": column.attnum, "column": column.column, "type": column.type}
        for column in columns
    ]
    return bigquery.ScalarQueryParameter(name, "STRING", json.dumps(entries))


def added_parameter(columns: Sequence[tuple[str, int]]) -> Parameter:
    return bigquery.ScalarQueryParameter("added", "STRING", json.dumps(columns))


def dropped_parameter(names: Sequence[str], parameter: str = "dropped") -> Parameter:
    """NULL for none, so that it is equal to nothing."""
    return bigquery.ScalarQueryParameter(parameter, "STRING", json.dumps(list(names)) if names else None)


def lsn_text(lsn: Lsn) -> str:
    return f"{int(lsn):016X}"
