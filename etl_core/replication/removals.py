"""Tables without a key need a destination that removes one of equal rows: which cannot is told before a row is copied.

And again with the changes: a table may have been copied by a version that knew of no removals.
"""

from __future__ import annotations

from etl_core.destination.protocol import Destination, why_no_removals
from etl_core.errors import CopyNeeded
from etl_core.schema.table import TableSchema
from etl_core.source.publication import Publication


def check_removals(destination: Destination, schema: TableSchema, publication: Publication) -> None:
    """Raises CopyNeeded for a table without a key whose rows could not be found again as they change."""
    if not schema.is_multiset or not (publication.update or publication.delete):
        return
    refuse_removals(destination, schema)
    unseen = [name for name in ("insert", "update", "delete") if not getattr(publication, name)]
    if unseen:
        raise CopyNeeded(
            f"{schema.name} has no key, and publication {publication.name} does not publish {', '.join(unseen)}: rows"
            " that change unseen could not be found again",
            table=str(schema.name),
            hint=f"ALTER PUBLICATION {publication.name} SET (publish = 'insert, update, delete, truncate'), or"
            f" 'insert' alone; then: etl resync {schema.name}",
        )


def refuse_removals(destination: Destination, schema: TableSchema) -> None:
    """Raises CopyNeeded if rows of a table without a key are to be removed in a destination that cannot do that."""
    reason = why_no_removals(destination, schema)
    if reason is not None:
        raise CopyNeeded(
            f"{schema.name} has no key, and its updates and deletes cannot be applied in the destination: {reason}",
            table=str(schema.name),
            hint=f"ALTER TABLE {schema.name} ADD PRIMARY KEY (…), then: etl resync {schema.name}; or replicate it in a"
            " pipeline of its own, whose publication publishes inserts only",
        )
