"""A batch's changes of one table as BigQuery's change data capture: UPSERT and DELETE rows on the default stream.

https://cloud.google.com/bigquery/docs/change-data-capture

**No transaction, but an order.** Every change has a sequence number, and of the changes of one key BigQuery keeps the
one with the largest, whenever it arrived. Ours has three sections, compared one after the other as numbers:

    the watermark that the batch begins at / the attempt / twice the part's number, and one more if it is an UPSERT

- The watermark: a later batch wins over an earlier one. It is where the batch begins, not where it ends: a try that
  failed ended somewhere, and the next one, cut at other LSNs, must win over it wherever that was.
- The attempt grows with every try to write a batch, over restarts too (`change_streams` says how). A batch that is
  read again may be cut into other parts, and a part has what a key was in the middle of the batch: the later try is
  right.
- The part's number: within one try the later part wins. An update that moves a row to a key and one that leaves the
  same key meet as DELETE and UPSERT of one part, and the row stays.

**Why sending again changes nothing.** A request whose answer was lost is sent again as it was: same key, same number,
same row. Whether BigQuery applied it never, once or twice, early or late, the key ends as the largest number says.

**Where the watermark goes.** Data first: the watermark moves from W to E when every request of the batch is answered. A
crash in between leaves some changes of (W, E] in the table with the watermark W. Each of them is of a key k that some
transaction T in (W, E] touched. The batch is read again from W: the try that contains T begins at W with a later
attempt, or beyond W, so what it says of k outranks whatever the lost try said or is still going to say. So once the
watermark has reached E, the table is as the source was. Until then a reader may see single keys as they were later:
this method never shows whole transactions, and `verify` may look only at a table whose last batch has been answered. A
second writer with a stale view does no harm for the same reason: its numbers are smaller.

**What this rests on.**

- *Every key that a try touches is sent.* A key that is inserted and deleted within one batch must be among its
  `deletes`, though a destination with transactions never needs it there: a lost try may have ended between the two,
  and left the row.
- *Deletes are remembered*: for two days, says BigQuery. A request delivered later than that could bring a row back.
- *A table that is copied again is a new table*, without the numbers of the old one and without its late requests. A
  process that stood still from before the copy until after it, with rows in its hands, could send them to the new
  table: nothing stops it, and they stay until their keys change. `docs/destinations/bigquery.md` names it among the
  limits.

**Rows without unchanged values** cannot be completed from a table that a lost try may have brought ahead of its
watermark: see `redo_log`, which uses the same numbers.

**What cannot go this way** is said by `needs_merge`. BigQuery refuses DML (MERGE, DELETE, TRUNCATE) on a table that
has had changes streamed to it until they are all applied, so the two methods do not take turns: a table for which
there is a reason in every batch is a MERGE table from the beginning, and one that meets a reason later is copied
again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from google.cloud.bigquery_storage_v1 import BigQueryWriteClient

from etl_core.batch import TableChanges
from etl_core.destination.bigquery.method import key_refused
from etl_core.destination.bigquery.protobuf import RowEncoder
from etl_core.destination.bigquery.row_stream import RowStream, Sent
from etl_core.destination.bigquery.types import to_bigquery
from etl_core.errors import TableError
from etl_core.lsn import Lsn
from etl_core.schema.table import TableSchema


def needs_merge(changes: TableChanges, *, are_completed: bool = False) -> str | None:
    """Why these changes cannot be sent as change data capture, as the end of "because …"; None if they can.

    `are_completed` is whether partial rows are completed before they are sent.
    """
    reason = key_refused(changes.schema)
    if reason is not None:
        return reason
    if changes.truncate:
        return "the source truncated the table, and a change of rows cannot"
    if changes.partials and not are_completed:
        return "rows have unchanged TOAST values, which only the table itself holds"
    return None


class CdcWriter(RowStream):
    """Sends changes of one table in one version of its schema; `names` are what BigQuery calls its columns."""

    def __init__(
        self, client: BigQueryWriteClient, path: str, schema: TableSchema, names: Sequence[str], **options: Any
    ) -> None:
        super().__init__(client, path, str(schema.name), RowEncoder.of(schema.columns, names), **options)
        self._schema = schema

    def write(self, changes: TableChanges, watermark: Lsn, attempt: int, part: int) -> Sent:
        """Sends `changes`, part `part` (from 0) of a batch that begins at `watermark`; returns when all is answered.

        `watermark` is the one the batch expects the table to have; `attempt` is larger than in every earlier try to
        write to the table, in this process or another. Raises DestinationUnavailable if it may succeed later (some of
        it may be applied: harmless, see above), ValueOutOfRange before anything is sent, RowsRefused and other
        TableErrors, DestinationError.
        """
        reason = needs_merge(changes)
        if reason is not None:
            raise TableError(
                f"changes of {self._schema.name} cannot be streamed, because {reason}",
                table=str(self._schema.name),
                hint=f"copy it again: etl resync {self._schema.name}",
            )
        if changes.schema.columns != self._schema.columns:
            raise ValueError("a writer sends changes of the schema it was made for")
        columns, name = self._schema.columns, self._schema.name
        key = [column for column in columns if column.name in self._schema.key]
        deletes = to_bigquery(changes.deletes, key, name)
        present = [column.name for column in columns]
        arriving = pa.concat_tables([changes.inserts.select(present), changes.upserts.select(present)])
        rows = to_bigquery(arriving, columns, name)
        return self.send(deletes, rows, watermark, attempt, part)
