"""One text for all that the source's catalog says of a pipeline's surroundings: another text, something changed.

For a process that waits for a corrected source. It says nothing about what changed or whether it matters. Rows of
the catalog are taken by their xmin, which VACUUM and ANALYZE leave alone; no table is opened or locked.
"""

from __future__ import annotations

import psycopg

from etl_core.source.connection import Connection
from etl_core.source.sqlstate import translate

_SETTINGS = (
    "wal_level",
    "max_replication_slots",
    "max_wal_senders",
    "max_slot_wal_keep_size",
    "idle_replication_slot_timeout",
)

# Names of catalogs come first in each line, so that rows of two of them are never taken for one another. A slot's
# position and its shades of wal_status but "lost" move by themselves.
_DIGEST = """
WITH relation AS (
    SELECT c.oid, c.xmin::text AS xmin, c.relname, n.nspname
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
      AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
), line AS (
    SELECT pg_catalog.concat_ws(' ', 'relation', oid, xmin, nspname, relname) AS text FROM relation
    UNION ALL
    SELECT pg_catalog.concat_ws(' ', 'attribute', a.attrelid, a.attnum, a.xmin)
    FROM pg_catalog.pg_attribute a JOIN relation ON relation.oid = a.attrelid WHERE a.attnum > 0
    UNION ALL
    SELECT pg_catalog.concat_ws(' ', 'index', i.indexrelid, i.xmin)
    FROM pg_catalog.pg_index i JOIN relation ON relation.oid = i.indrelid
    UNION ALL
    SELECT pg_catalog.concat_ws(' ', 'namespace', oid, xmin) FROM pg_catalog.pg_namespace WHERE nspname !~ '^pg_'
    UNION ALL
    SELECT pg_catalog.concat_ws(' ', 'publication', p.oid, p.xmin) FROM pg_catalog.pg_publication p
    WHERE p.pubname = %(publication)s
    UNION ALL
    SELECT pg_catalog.concat_ws(' ', 'published', r.oid, r.xmin)
    FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
    WHERE p.pubname = %(publication)s
    {namespaces}
    UNION ALL
    SELECT pg_catalog.concat_ws(' ', 'role', rolname, rolsuper, rolreplication, rolbypassrls)
    FROM pg_catalog.pg_roles WHERE pg_catalog.pg_has_role(oid, 'MEMBER')
    UNION ALL
    SELECT pg_catalog.concat_ws(' ', 'setting', name, setting) FROM pg_catalog.pg_settings
    WHERE name = ANY (%(settings)s)
    UNION ALL
    SELECT pg_catalog.concat_ws(' ', 'slot', s.plugin, s.database, s.wal_status = 'lost',
                                pg_catalog.to_jsonb(s) ->> 'invalidation_reason')
    FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = %(slot)s
    UNION ALL
    SELECT pg_catalog.concat_ws(' ', 'cluster', system_identifier) FROM pg_catalog.pg_control_system()
    UNION ALL
    SELECT pg_catalog.concat_ws(' ', 'recovery', pg_catalog.pg_is_in_recovery())
)
SELECT pg_catalog.md5(pg_catalog.string_agg(text, E'\\n' ORDER BY text)) FROM line
"""
_NAMESPACES = """
    UNION ALL
    SELECT pg_catalog.concat_ws(' ', 'published', n.oid, n.xmin)
    FROM pg_catalog.pg_publication_namespace n JOIN pg_catalog.pg_publication p ON p.oid = n.pnpubid
    WHERE p.pubname = %(publication)s
"""


def catalog_digest(connection: Connection, publication: str, slot: str) -> str:
    """Of the database that `connection` is to, as its user sees it. Raises SourceUnavailable, SourceRefused."""
    query = _DIGEST.format(namespaces=_NAMESPACES if connection.info.server_version >= 150000 else "")
    values = {"publication": publication, "slot": slot, "settings": list(_SETTINGS)}
    try:
        row = connection.execute(query.encode(), values).fetchone()
    except psycopg.Error as error:
        raise translate(error) from None
    assert row is not None  # noqa: S101 - an aggregate
    return str(row[0])
