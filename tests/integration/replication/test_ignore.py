"""`schema_changes: ignore`: a table keeps the columns that the destination has, and goes on, exactly.

What is to be there is computed by PostgreSQL, from the source's rows and from those that it had before each change.
"""
# ruff: noqa: S608 the tests write their own SQL

from __future__ import annotations

import signal
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from etl_core.config_tables import ColumnSettings, TableSettings
from etl_core.errors import EtlError
from etl_core.identifiers import TableName
from etl_core.policies import Recopy, SchemaChanges, TablePolicy
from etl_core.replication import failpoints
from etl_core.state.table_state import TableState
from etl_core.write_mode import WriteMode
from tests.integration.replication.conftest import PATIENCE
from tests.integration.replication.test_policies import approve, settled, until_in_step, until_waiting, waiting

if TYPE_CHECKING:
    from etl_core.control import PipelineControl
    from tests.integration.replication.conftest import Lab, Watched


@dataclass(frozen=True)
class Case:
    """What happens to a table of id, n, note and word, and which rows the destination has then.

    `{t}` is the table, `{before}` what it was before. A new copy gives the rows of `copied`.
    """

    change: str
    rows: str
    told: str
    copied: str | None = None
    key: str = "id"
    """What the key is called at the source since."""


WRITTEN = "(1, 8)"
"""The rows that are written after the change."""
_OLD_IF_NOT_WRITTEN = f"CASE WHEN s.{{key}} IN {WRITTEN} THEN NULL ELSE b.{{column}} END"


def _with_old(columns: str, column: str, key: str = "id") -> str:
    old = _OLD_IF_NOT_WRITTEN.format(key=key, column=column)
    return f"SELECT {columns.format(old=old)} FROM {{t}} s LEFT JOIN {{before}} b ON b.id = s.{key}"


CASES = {
    "added": Case("ADD c int DEFAULT 5", "SELECT id, n, note, word FROM {t}", "column c (added)"),
    "computed": Case("ADD c uuid DEFAULT gen_random_uuid()", "SELECT id, n, note, word FROM {t}", "column c (added)"),
    "dropped": Case(
        "DROP note",
        _with_old("s.id, s.n, {old}, s.word", "note"),
        "column note (dropped)",
        "SELECT id, n, NULL, word FROM {t}",
    ),
    "renamed": Case("RENAME note TO remark", "SELECT id, n, remark, word FROM {t}", "column note (renamed to remark)"),
    "rekeyed": Case(
        "RENAME id TO number", "SELECT number, n, note, word FROM {t}", "column id (renamed to number)", key="number"
    ),
    "grown": Case(
        "ALTER word TYPE text",
        "SELECT id, n, note, word FROM {t}",
        "column word (varchar(20) changed to text)",
    ),
    "came_again": Case(
        "DROP n, ADD n bigint",
        _with_old("s.id, {old}, s.note, s.word", "n"),
        "column n (dropped), column n (added)",
        "SELECT id, NULL, note, word FROM {t}",
    ),
    "swapped": Case(
        "RENAME note TO x; ALTER TABLE {t} RENAME word TO note; ALTER TABLE {t} RENAME x TO word",
        "SELECT id, n, word, note FROM {t}",
        "column note (renamed to word), column word (renamed to note)",
    ),
    "took_a_name": Case(
        "DROP note; ALTER TABLE {t} RENAME id TO note",
        _with_old("s.note, s.n, {old}, s.word", "note", "note"),
        "column note (dropped), column id (renamed to note)",
        "SELECT note, n, NULL, word FROM {t}",
        key="note",
    ),
}
WAITS = {
    "wider": ("ALTER TABLE {t} ALTER n TYPE bigint", "column n changed from int4 to int8, which cannot be ignored"),
    "other_key": ("ALTER TABLE {t} DROP CONSTRAINT {t}_pkey, ADD PRIMARY KEY (id, n)", "the key changed from (id)"),
    "emptied": ("ALTER TABLE {t} DROP n, DROP note, DROP word, DROP id, ADD id serial PRIMARY KEY", "was dropped"),
    "bag_drops": ("ALTER TABLE {t} DROP note", "column note (text) was dropped, which cannot be ignored"),
}
COLUMNS = ["id", "n", "note", "word"]


def create(lab: Lab, *tables: str) -> None:
    for table in tables:
        key = "" if table.startswith("bag") else " PRIMARY KEY"
        lab.execute(
            f"CREATE TABLE {table} (id int{key}, n int, note text, word varchar(20));"
            f"ALTER TABLE {table} ALTER n SET DEFAULT 0, ALTER note SET STORAGE EXTERNAL, ALTER n SET NOT NULL;"
            f"INSERT INTO {table} SELECT i, i, repeat('note ' || i, 600), 'word ' || i FROM generate_series(1, 4) i;"
            + (f"ALTER TABLE {table} REPLICA IDENTITY FULL" if not key else "")
        )


def keep(lab: Lab, *tables: str) -> None:
    """What the tables are before they are altered, out of the publication's sight."""
    lab.execute("CREATE SCHEMA IF NOT EXISTS before")
    for table in tables:
        lab.execute(f"CREATE UNLOGGED TABLE before.{table} AS SELECT * FROM {table}")


def alter(lab: Lab, table: str, case: Case) -> None:
    """One transaction: a row before the change, then the change, then rows after it. Row 1 keeps its TOASTed value."""
    lab.execute(f"INSERT INTO {table} (id) VALUES (5)")
    lab.execute(f"INSERT INTO before.{table} (id, n) VALUES (5, 0)")
    rows = (
        f"INSERT INTO {table} ({case.key}) VALUES (8); DELETE FROM {table} WHERE {case.key} = 2;"
        f"UPDATE {table} SET {case.key} = {case.key} WHERE {case.key} = 1"
    )
    lab.execute(f"ALTER TABLE {table} {case.change}; {rows}".format(t=table))


def assert_kept(lab: Lab, table: str, query: str) -> None:
    """The columns of before, with the rows that PostgreSQL gives."""
    wanted = Counter(lab.execute(query.format(t=table, before=f"before.{table}")))
    assert [row[0] for row in lab.rows(f"DESCRIBE public.{table}")] == COLUMNS
    assert Counter(lab.rows(f"SELECT * FROM public.{table}")) == wanted, table


def told(pipeline: PipelineControl) -> dict[str, str]:
    names = {status.table_id: status.name.name for status in pipeline.store.tables()}
    return {names[table_id]: ", ".join(changes) for table_id, changes in pipeline.ignored().items()}


def ignoring(lab: Lab, *tables: TableSettings) -> None:
    lab.config = replace(lab.config, policy=TablePolicy(SchemaChanges.IGNORE, Recopy.AUTO), tables=tables)


def verified(pipeline: Watched, tables: list[str]) -> None:
    for comparison in pipeline.verify([TableName("public", table) for table in tables]):
        assert comparison.is_equal, comparison


def go_on(lab: Lab, pipeline: Watched) -> None:
    """Copies and streams; twice, as a look at the catalog or a catch-up may have found a table to be copied again."""
    for _ in range(2):
        pipeline.stop.clear()
        pipeline.sync()
        lab.caught_up(pipeline)


def test_a_table_goes_on_with_the_columns_that_it_has(lab: Lab) -> None:
    tables = [*CASES, *WAITS, "flows"]
    create(lab, *tables)
    lab.execute("CREATE SCHEMA before")
    lab.publish("TABLES IN SCHEMA public")
    ignoring(lab)
    pipeline = lab.synced()
    keep(lab, *CASES)
    with lab.running(pipeline):
        pipeline.observer.until_ready("flows")
        for table, case in CASES.items():
            alter(lab, table, case)
        for table, (change, _) in WAITS.items():
            lab.execute(f"{change}; INSERT INTO {{t}} (id) VALUES (8)".format(t=table))
        until_waiting(pipeline, WAITS)
        until_in_step(lab, pipeline, "flows")
        # All rows of this one were written anew: a look at the catalog has it copied again, now or later.
        assert pipeline.observer.errors.keys() - {"computed"} == set(WAITS)
    go_on(lab, pipeline)
    for table, (_, sentence) in WAITS.items():
        status = waiting(pipeline)[table]
        assert sentence in str(status.error)
        assert status.waits_for == "ignore"
        assert f"etl approve public.{table}" in str(status.hint)
    assert told(pipeline) == {table: case.told for table, case in CASES.items()}
    for table, case in CASES.items():
        assert_kept(lab, table, case.rows)
    verified(pipeline, [*CASES, "flows"])
    copied = Counter(name for name, state in pipeline.observer.states if state is TableState.DATA_SYNC)
    assert {table for table in CASES if copied[table] > 1} <= {"computed"}
    pipeline.close()

    # A start changes nothing, nor does a new copy change the columns; a row that comes later is as the others.
    pipeline = lab.pipeline()
    for table, case in CASES.items():
        pipeline.resync(TableName("public", table))
        lab.execute(f"INSERT INTO {table} ({case.key}) VALUES (9)")
    assert not [outcome for outcome in pipeline.sync() if isinstance(outcome, EtlError)]
    for table, case in CASES.items():
        lab.execute(f"INSERT INTO {table} ({case.key}) VALUES (10)")
    lab.caught_up(pipeline)
    for table, case in CASES.items():
        assert_kept(lab, table, case.copied or case.rows)
    verified(pipeline, [*CASES, "flows"])
    assert told(pipeline) == {table: case.told for table, case in CASES.items()}
    assert waiting(pipeline).keys() == set(WAITS)

    # A person takes some over, and the settings take the others.
    approve(pipeline, "added", "swapped", *WAITS)
    pipeline.close()
    pipeline = lab.pipeline()
    go_on(lab, pipeline)
    assert told(pipeline).keys() == CASES.keys() - {"added", "swapped"}
    assert not waiting(pipeline)
    lab.execute("ALTER TABLE swapped DROP n; INSERT INTO swapped (id) VALUES (11)")
    lab.caught_up(pipeline)
    assert told(pipeline)["swapped"] == "column n (dropped)"
    pipeline.close()
    lab.config = replace(lab.config, policy=TablePolicy(SchemaChanges.APPLY, Recopy.ASK))
    settled(lab, lab.pipeline())


SETTINGS = (
    TableSettings(
        "hidden", ColumnSettings(exclude=("word",), rename={"note": "remark"}, transforms={"null": {"n": None}})
    ),
    TableSettings("soft", write_mode=WriteMode.SOFT_DELETE),
    TableSettings("log", write_mode=WriteMode.APPEND),
    TableSettings("bag_log", write_mode=WriteMode.APPEND),
)
CHANGES = {
    "hidden": "ALTER TABLE {t} RENAME word TO s; ALTER TABLE {t} RENAME note TO text; ALTER TABLE {t} RENAME n TO m",
    "soft": "ALTER TABLE {t} DROP note; ALTER TABLE {t} RENAME id TO note",
    "log": "ALTER TABLE {t} DROP note; ALTER TABLE {t} RENAME id TO note; ALTER TABLE {t} ADD note_2 text DEFAULT 'x'",
    "bag": "ALTER TABLE {t} RENAME note TO remark; ALTER TABLE {t} ADD note text DEFAULT 'x'",
    "bag_log": "ALTER TABLE {t} RENAME note TO remark; ALTER TABLE {t} ADD note text DEFAULT 'x'",
}


def test_settings_and_write_modes_are_about_the_columns_that_are_kept(lab: Lab) -> None:
    create(lab, *CHANGES)
    lab.publish()
    ignoring(lab, *SETTINGS)
    pipeline = lab.synced()
    described = {table: lab.rows(f"DESCRIBE public.{table}") for table in CHANGES}
    for again in range(2):
        for table, change in CHANGES.items():
            key = "note" if table in ("soft", "log") else "id"
            lab.execute(
                f"DELETE FROM {table} WHERE {key if again else 'id'} = 2; {'' if again else change};"
                f"INSERT INTO {table} ({key}) VALUES ({8 + again}); UPDATE {table} SET {key} = 7 WHERE {key} = 1;"
                f"UPDATE {table} SET {key} = {key} WHERE {key} = 3; DELETE FROM {table} WHERE {key} = 4".format(t=table)
            )
        lab.caught_up(pipeline)
        verified(pipeline, [*CHANGES])
        assert {table: lab.rows(f"DESCRIBE public.{table}") for table in CHANGES} == described
        if not again:  # as a person's copy makes it
            assert lab.rows("SELECT id, note IS NULL FROM public.soft WHERE _etl_deleted_at IS NULL ORDER BY 1") == [
                (3, True),
                (7, True),
                (8, True),
            ]
            # Of rows that were deleted before the change what they had is there, of those after it the key.
            assert lab.rows("SELECT id, note IS NULL FROM public.soft WHERE _etl_deleted_at NOTNULL ORDER BY 1") == [
                (1, False),
                (2, False),
                (4, False),
            ]
            assert lab.rows("SELECT count(*), count(n), count(remark) FROM public.hidden") == [(3, 0, 2)]
        pipeline.close()
        pipeline = lab.pipeline()
        if not again:
            for table in CHANGES:
                pipeline.resync(TableName("public", table))
            assert not [outcome for outcome in pipeline.sync() if isinstance(outcome, EtlError)]
            lab.caught_up(pipeline)
            verified(pipeline, [*CHANGES])


def test_killed_before_it_is_known_what_is_ignored(lab: Lab) -> None:
    create(lab, "t", "flows")
    lab.publish()
    ignoring(lab)
    lab.synced().close()
    keep(lab, "t")
    case = CASES["took_a_name"]
    alter(lab, "t", case)
    for failpoint in (failpoints.BATCH_WRITTEN, failpoints.PROGRESS_STORED):
        assert lab.process("run", failpoint=f"{failpoint}:kill").wait(PATIENCE) == -signal.SIGKILL
        pipeline = lab.pipeline()
        lab.execute("INSERT INTO t (note) SELECT max(note) + 1 FROM t")
        lab.caught_up(pipeline)
        assert_kept(lab, "t", case.rows)
        assert told(pipeline) == {"t": case.told}
        pipeline.close()
        lab.execute("INSERT INTO flows (id) SELECT max(id) + 1 FROM flows")
