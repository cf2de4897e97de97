"""What the WAL does not say: found in the catalog at a start or while it runs, and copied again; nothing else is.

One database holds a table for each kind of change, so that every change also shows that it leaves the others alone.
"""
# ruff: noqa: S608 the tests write their own SQL

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from etl_core.errors import CopiedAgain, EtlError
from etl_core.identifiers import TableName
from etl_core.state.table_state import TableState
from tests.integration.replication.conftest import poll

if TYPE_CHECKING:
    from tests.integration.replication.conftest import Lab, Watched

ATTACH = "ALTER TABLE {t} ATTACH PARTITION {t}_3 FOR VALUES IN (3)"
FILLED = "CREATE TABLE {t}_3 (LIKE {t} INCLUDING ALL); INSERT INTO {t}_3 VALUES (9, 3)"
PER_ROW = "ALTER TABLE {t} ADD c uuid NOT NULL DEFAULT gen_random_uuid()"
UNLOGGED = ["ALTER TABLE {t} SET UNLOGGED", "UPDATE {t} SET n = 9", "ALTER TABLE {t} SET LOGGED"]
HARMLESS = {
    "vacuumed": ["VACUUM FULL {t}"],
    "clustered": ["CLUSTER {t} USING {t}_pkey", "REINDEX TABLE {t}", "ANALYZE {t}"],
    "granted": ["GRANT SELECT (n) ON {t} TO PUBLIC", "COMMENT ON TABLE {t} IS 'x'"],
    "granted_vacuumed": ["ALTER TABLE {t} ALTER n SET STATISTICS 7", "VACUUM FULL {t}"],
    "missing_vacuumed": ["ALTER TABLE {t} ADD c int DEFAULT 5", "UPDATE {t} SET n = 1 WHERE id = 1"],
    "truncated": ["TRUNCATE {t}", "INSERT INTO {t} VALUES (7, 7)"],
    "truncated_twice": ["BEGIN; TRUNCATE {t}; INSERT INTO {t} VALUES (7, 7); COMMIT", "TRUNCATE {t}"],
    "label_added": ["ALTER TYPE mood ADD VALUE 'calm'"],
    "column_added": [
        "ALTER TABLE {t} ADD c int",
        "ALTER TABLE {t} ALTER c SET DEFAULT 5",
        "INSERT INTO {t} VALUES (7)",
    ],
    "column_filled": ["ALTER TABLE {t} ADD c int", "UPDATE {t} SET c = 1", "ALTER TABLE {t} ALTER c SET NOT NULL"],
    "column_renamed": ["ALTER TABLE {t} RENAME n TO m", "UPDATE {t} SET m = 3 WHERE id = 2"],
    "column_longer": [
        "ALTER TABLE {t} ADD c varchar(3) DEFAULT 'abc'",
        "ALTER TABLE {t} ALTER c TYPE text",
        "UPDATE {t} SET n = 3 WHERE id = 2",
    ],
    "renamed": ["ALTER TABLE {t} RENAME TO renamed_away"],
    "key_moved": ["ALTER TABLE {t} DROP CONSTRAINT {t}_pkey, ADD PRIMARY KEY (n)", "DELETE FROM {t} WHERE n = 2"],
    "column_replaced": ["UPDATE {t} SET n = 3", "ALTER TABLE {t} DROP n, ADD m text", "UPDATE {t} SET m = 'm'"],
}
COPIED = {
    "rewritten": ["ALTER TABLE {t} ALTER n TYPE int USING n * 10"],
    "truncated_and_rewritten": [
        "TRUNCATE {t}",
        "INSERT INTO {t} VALUES (7, 7)",
        "ALTER TABLE {t} ALTER n TYPE int USING n * 10",
    ],
    "unlogged": UNLOGGED,
    "per_row": [PER_ROW, "ALTER TABLE {t} ALTER c DROP DEFAULT"],
    "came_twice": [
        "ALTER TABLE {t} ADD c int",
        "UPDATE {t} SET c = id",
        "ALTER TABLE {t} DROP c",
        "ALTER TABLE {t} ADD c int",
        "INSERT INTO {t} VALUES (7, 7)",
    ],
    "expression": ["ALTER TABLE {t} ALTER g DROP EXPRESSION", "UPDATE {t} SET n = 1 WHERE id = 1"],
    "labelled": ["ALTER TYPE feeling RENAME VALUE 'sad' TO 'blue'", "INSERT INTO {t} VALUES (7, 7, 'blue')"],
    "composed": ["ALTER TYPE pair ADD ATTRIBUTE c int"],
}
PARTITIONED = {
    "created": (["CREATE TABLE {t}_3 PARTITION OF {t} FOR VALUES IN (3)", "INSERT INTO {t} VALUES (7, 3)"], False),
    "vacuumed_part": (["VACUUM FULL {t}_1"], False),
    "truncated_root": (["TRUNCATE {t}", "INSERT INTO {t} VALUES (7, 1)"], False),
    "attached": ([FILLED, ATTACH], True),
    "attached_at_once": ([f"BEGIN; {FILLED}; {ATTACH}; COMMIT"], True),
    "detached": (["ALTER TABLE {t} DETACH PARTITION {t}_1", "DROP TABLE {t}_1"], True),
    "dropped": (["DROP TABLE {t}_1"], True),
    "truncated_part": (["TRUNCATE {t}_1", "INSERT INTO {t} VALUES (7, 2)"], True),
}
"""What is done to a table, and whether it has to be copied again."""


def create(lab: Lab) -> None:
    lab.execute("CREATE TYPE mood AS ENUM ('sad'); CREATE TYPE feeling AS ENUM ('sad'); CREATE TYPE pair AS (a int)")
    more = {
        "label_added": ", x mood DEFAULT 'sad'",
        "labelled": ", x feeling DEFAULT 'sad'",
        "composed": ", x pair DEFAULT '(1)'",
        "expression": ", g int GENERATED ALWAYS AS (id + 1) STORED",
    }
    for table in (*HARMLESS, *COPIED):
        lab.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, n int{more.get(table, '')})")
        lab.execute(f"INSERT INTO {table} SELECT i, i FROM generate_series(1, 5) i")
    for table in PARTITIONED:
        lab.execute(f"CREATE TABLE {table} (id int, k int, PRIMARY KEY (id, k)) PARTITION BY LIST (k)")
        for part in (1, 2):
            lab.execute(f"CREATE TABLE {table}_{part} PARTITION OF {table} FOR VALUES IN ({part})")
        lab.execute(f"INSERT INTO {table} SELECT i, 1 + i % 2 FROM generate_series(1, 6) i")


def version(lab: Lab) -> int:
    return int(lab.execute("SHOW server_version_num")[0][0])


def alter(lab: Lab, table: str, statements: Sequence[str]) -> None:
    for statement in statements:
        for part in [statement] if "BEGIN" in statement else statement.split("; "):
            lab.execute(part.format(t=table))


def until_copied(lab: Lab, pipeline: Watched) -> set[str]:
    """Copies and streams until no table is set back any more; the names of the tables that were copied."""
    while True:
        for outcome in pipeline.sync():
            assert not isinstance(outcome, EtlError), outcome
        lab.caught_up(pipeline)
        if all(status.state is TableState.READY for status in pipeline.store.tables()):
            return {table for table, state in pipeline.observer.states if state is TableState.DATA_SYNC}


def test_changed_while_nobody_streamed(lab: Lab) -> None:
    create(lab)
    lab.publish()
    lab.synced()
    lab.execute("UPDATE vacuumed SET n = 0 WHERE id = 1")
    for table, statements in {**HARMLESS, **COPIED}.items():
        alter(lab, table, statements)
    for table, (statements, _) in PARTITIONED.items():
        alter(lab, table, statements)
    pipeline = lab.pipeline()
    copied = until_copied(lab, pipeline)
    expected = {*COPIED, *(table for table, (_, is_copied) in PARTITIONED.items() if is_copied)}
    assert copied == expected
    told = {name: error for name, error in pipeline.observer.errors.items() if isinstance(error, CopiedAgain)}
    assert told.keys() >= copied
    assert lab.rows("SELECT DISTINCT x FROM public.composed") == [({"a": 1, "c": None},)]
    lab.execute("ALTER TABLE composed DROP x; UPDATE composed SET n = 0")  # psycopg gives it as text
    lab.assert_equal(pipeline)
    # Nothing is found again, and what was harmless then is remembered: a rewrite after it is seen.
    again = lab.pipeline()
    assert until_copied(lab, again) == set()
    lab.execute("VACUUM FULL missing_vacuumed")
    lab.execute("ALTER TABLE truncated ALTER n TYPE int USING n + 1")
    lab.execute("ALTER TABLE created ALTER id SET STATISTICS 5; TRUNCATE created_3")
    assert until_copied(lab, lab.pipeline()) == {"truncated", "created"}
    lab.assert_equal()


def test_changed_while_it_runs(lab: Lab) -> None:
    """Published, unpublished, created, dropped and exchanged beside a stream that goes on."""
    for table in ("a", "b", "left_alone", "again"):
        lab.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, n int); INSERT INTO {table} VALUES (1, 1)")
    lab.execute("CREATE SCHEMA others; CREATE TABLE others.c (id int PRIMARY KEY)")
    lab.publish("TABLES IN SCHEMA public") if lab.execute("SHOW server_version_num")[0][
        0
    ] >= "150000" else lab.publish()
    pipeline = lab.synced()
    watch = pipeline.observer
    with lab.running(pipeline):
        lab.execute("UPDATE a SET n = 2")
        watch.until_flushed(pipeline.current_lsn())
        ready = watch.states.count(("again", TableState.READY))
        lab.execute("CREATE TABLE later (id int PRIMARY KEY); INSERT INTO later VALUES (1)")
        pipeline.watch.wake()
        watch.until_ready("later")
        lab.execute("DROP TABLE again; CREATE TABLE again (id int PRIMARY KEY, n int); INSERT INTO again VALUES (2, 2)")
        pipeline.watch.wake()
        watch.until_state("again", TableState.READY, times=ready + 1)
        lab.execute("UPDATE left_alone SET n = 2; INSERT INTO later VALUES (2); INSERT INTO again VALUES (3, 3)")
        lab.execute("TRUNCATE b; INSERT INTO b VALUES (5, 5)")
        watch.until_flushed(pipeline.current_lsn())
    assert {table for table, state in watch.states if state is TableState.INIT} == {"later", "again"}
    following = lab.pipeline()
    lab.assert_equal(following)
    assert not following.observer.errors  # the truncation was read before, and is remembered


def test_a_key_dropped_while_it_runs_is_said(lab: Lab) -> None:
    """PostgreSQL refuses UPDATE and DELETE of the table from then on: the pipeline does harm to its source."""
    for table in ("a", "b"):
        lab.execute(f"CREATE TABLE {table} (id int CONSTRAINT {table}_key PRIMARY KEY); INSERT INTO {table} VALUES (1)")
    lab.publish("TABLE a, b")
    pipeline = lab.synced()
    watch = pipeline.observer
    assert pipeline.status().unsafe == []

    def is_told() -> bool:
        return any("UNSAFE: table public.a has no primary key" in sentence for sentence in watch.notices)

    with lab.running(pipeline):
        for _ in range(2):
            watch.notices.clear()
            lab.execute("ALTER TABLE a DROP CONSTRAINT a_key")
            pipeline.watch.wake()
            watch.until(is_told, "the notice")
            (sentence,) = pipeline.status().unsafe
            assert "refuses its UPDATE and DELETE while publication lab_pub publishes it" in sentence
            lab.execute("ALTER TABLE a ADD CONSTRAINT a_key PRIMARY KEY (id)")
            pipeline.watch.wake()
            poll(lambda: not pipeline.watch._told_harms, "a look that finds it well")
        assert len(watch.notices) == 1
    assert pipeline.status().unsafe == []


def test_taken_out_of_the_publication_and_back_while_it_runs(lab: Lab) -> None:
    for table in ("a", "b"):
        lab.execute(f"CREATE TABLE {table} (id int PRIMARY KEY); INSERT INTO {table} VALUES (1)")
    lab.publish("TABLE a, b")
    pipeline = lab.synced()
    watch = pipeline.observer
    ready = watch.states.count(("b", TableState.READY))
    with lab.running(pipeline):
        lab.execute("INSERT INTO b VALUES (9)")
        watch.until_flushed(pipeline.current_lsn())
        lab.execute("ALTER PUBLICATION lab_pub DROP TABLE b")
        pipeline.watch.wake()
        watch.until_state("b", TableState.ERRORED)
        status = pipeline.find(TableName("public", "b"))
        assert "no longer published" in (status.error or "")
        assert 'ALTER PUBLICATION "lab_pub" ADD TABLE ONLY "public"."b"' in (status.hint or "")
        lab.execute("INSERT INTO b VALUES (2); INSERT INTO a VALUES (2)")
        lab.execute("ALTER PUBLICATION lab_pub ADD TABLE b")
        pipeline.watch.wake()
        watch.until_state("b", TableState.READY, times=ready + 1)
        lab.execute("INSERT INTO b VALUES (3)")
    assert "a" not in watch.errors
    lab.assert_equal()


def test_a_table_that_was_away_before_its_first_copy_is_copied_when_it_is_back(lab: Lab) -> None:
    """Nothing is remembered of it, so that there is nothing to compare."""
    for table in ("a", "b"):
        lab.execute(f"CREATE TABLE {table} (id int PRIMARY KEY); INSERT INTO {table} VALUES (1)")
    lab.publish("TABLE a, b")
    pipeline = lab.pipeline()
    lab.execute("ALTER PUBLICATION lab_pub DROP TABLE b")
    pipeline.sync()
    assert "no longer in publication" in str(pipeline.observer.errors["b"])
    with lab.running(pipeline):
        lab.execute("INSERT INTO a VALUES (2)")
        pipeline.observer.until_flushed(pipeline.current_lsn())
        lab.execute("ALTER PUBLICATION lab_pub ADD TABLE b")
        pipeline.watch.wake()
        pipeline.observer.until_ready("b")
    lab.assert_equal()


def test_the_publication_was_altered_between_two_looks(lab: Lab) -> None:
    tables = ["dropped_added", "filtered", "listed", "untouched"]
    for table in tables:
        lab.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, n int); INSERT INTO {table} VALUES (1, 1), (2, 2)")
    lists = " WHERE (id > 1), listed (id)" if version(lab) >= 150000 else ", listed"
    lab.publish(f"TABLE dropped_added, untouched, filtered{lists}")
    lab.synced()
    lab.execute("ALTER PUBLICATION lab_pub DROP TABLE dropped_added, filtered, listed")
    lab.execute("UPDATE dropped_added SET n = 5; UPDATE filtered SET n = 5; UPDATE listed SET n = 5")
    lab.execute("ALTER PUBLICATION lab_pub ADD TABLE dropped_added, filtered, listed")
    lab.execute("UPDATE listed SET n = 6 WHERE id = 1; UPDATE untouched SET n = 6")
    assert until_copied(lab, lab.pipeline()) == {"dropped_added", "filtered", "listed"}
    lab.assert_equal()
    lab.execute("ALTER PUBLICATION lab_pub SET (publish = 'insert')")
    lab.execute("UPDATE untouched SET n = 7")
    lab.execute("ALTER PUBLICATION lab_pub SET (publish = 'insert, update, delete, truncate')")
    assert until_copied(lab, lab.pipeline()) == set(tables)
    lab.assert_equal()


def test_a_publication_that_is_gone_is_created_again_with_new_copies(lab: Lab) -> None:
    """Versions before 18 cannot decode what was written meanwhile; later ones leave it out."""
    lab.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    source = replace(lab.config.source, tables=(TableName("public", "t"),))
    lab.config = replace(lab.config, source=source)
    lab.synced()
    lab.execute("INSERT INTO t VALUES (2); DROP PUBLICATION lab_pub; INSERT INTO t VALUES (3)")
    pipeline = lab.pipeline()
    assert "publication lab_pub did not exist" in str(pipeline.observer.errors["t"])
    assert until_copied(lab, pipeline) == {"t"}
    lab.execute("INSERT INTO t VALUES (4)")
    lab.assert_equal(pipeline)


def test_what_cannot_be_seen(lab: Lab) -> None:
    """The lines of docs/delivery.md, each with a table that stays wrong until somebody verifies it."""
    for table in ("truncated_too", "column_unused", "labelled"):
        lab.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, n int); INSERT INTO {table} VALUES (1, 1)")
    lab.execute("CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY RANGE (id)")
    lab.execute("CREATE TABLE part PARTITION OF parted FOR VALUES FROM (0) TO (10); INSERT INTO parted VALUES (1)")
    lab.publish()
    lab.synced()
    lab.execute("ALTER TABLE column_unused ADD c int DEFAULT 5")
    # Both leave another file, and the truncation explains it.
    lab.execute("TRUNCATE truncated_too; INSERT INTO truncated_too VALUES (1, 1)")
    alter(lab, "truncated_too", UNLOGGED)
    for statement in ("TRUNCATE parted", "INSERT INTO parted VALUES (2)", "TRUNCATE part"):
        lab.execute(statement)
    lab.execute(
        "CREATE TYPE soon AS ENUM ('a'); ALTER TABLE labelled ADD m soon; INSERT INTO labelled VALUES (2, 2, 'a')"
    )
    lab.execute("ALTER TYPE soon RENAME VALUE 'a' TO 'z'")
    pipeline = lab.pipeline()
    assert until_copied(lab, pipeline) == set()
    different = {comparison.table.name for comparison in pipeline.verify() if not comparison.is_equal}
    assert different == {"truncated_too", "column_unused", "parted", "labelled"}
    assert [name for name, *_ in lab.rows("DESCRIBE public.column_unused")] == ["id", "n"]
    for table in ("truncated_too", "parted", "labelled"):
        pipeline.resync(TableName("public", table))
    lab.execute("INSERT INTO column_unused VALUES (2, 2)")
    assert until_copied(lab, pipeline) == {"truncated_too", "parted", "labelled"}
    lab.assert_equal(pipeline)


def test_rows_that_are_to_outlive_a_truncation_are_not_copied_anew(lab: Lab) -> None:
    """A publication without `truncate` keeps an archive, so that another file means nothing: see docs/delivery.md."""
    for table in ("archive", "unlogged"):
        lab.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, n int); INSERT INTO {table} VALUES (1, 1)")
    lab.execute("CREATE PUBLICATION lab_pub FOR ALL TABLES WITH (publish = 'insert, update')")
    lab.synced()
    lab.execute("TRUNCATE archive; INSERT INTO archive VALUES (2, 2)")
    alter(lab, "unlogged", UNLOGGED)
    pipeline = lab.pipeline()
    assert until_copied(lab, pipeline) == set()
    assert lab.rows("SELECT id FROM public.archive ORDER BY id") == [(1,), (2,)]
    assert not pipeline.verify([TableName("public", "unlogged")])[0].is_equal


def test_what_came_after_the_copy_is_watched_by_short_runs_too(lab: Lab) -> None:
    lab.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    lab.publish()
    lab.synced()
    lab.execute("CREATE TYPE later AS ENUM ('a', 'b'); ALTER TABLE t ADD m later DEFAULT 'a'; INSERT INTO t VALUES (2)")
    lab.caught_up(lab.pipeline())
    lab.execute("ALTER TYPE later RENAME VALUE 'a' TO 'z'")
    pipeline = lab.caught_up(lab.pipeline())
    status = pipeline.find(TableName("public", "t"))
    assert (status.state, "label" in (status.error or "")) == (TableState.INIT, True)
    pipeline.sync()
    lab.assert_equal()


def test_a_rewrite_after_a_truncation_is_seen(lab: Lab) -> None:
    """The truncation explains that the file is another one; not that the rows since were computed anew."""
    lab.execute("CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, 1)")
    lab.publish()
    pipeline = lab.synced()
    with lab.running(pipeline, pipeline.stream):
        lab.execute("UPDATE t SET n = 2")
        pipeline.observer.until_flushed(pipeline.current_lsn())  # after it nobody looks by himself for 15 s
        lab.execute("TRUNCATE t")
        lab.execute("INSERT INTO t VALUES (7, 7), (8, 8)")
        pipeline.observer.until_flushed(pipeline.current_lsn())
        lab.execute("ALTER TABLE t ALTER n TYPE int USING n * 10")
        lab.execute("INSERT INTO t VALUES (9, 9)")
        pipeline.watch.wake()
        pipeline.observer.until(lambda: "t" in pipeline.observer.errors, "the new copy that is needed")
    lab.assert_equal(lab.synced())


def test_a_rewrite_where_truncations_are_not_sent_stops_the_table(lab: Lab) -> None:
    """It may also be a truncation, whose rows are to be kept: a new copy would lose them, so a person is asked."""
    for table in ("rewritten", "truncated", "vacuumed", "altered"):
        lab.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, n int); INSERT INTO {table} VALUES (1, 1)")
    lab.execute("CREATE PUBLICATION lab_pub FOR ALL TABLES WITH (publish = 'insert, update, delete')")
    lab.synced()
    lab.execute("ALTER TABLE rewritten ALTER n TYPE int USING n * 10")
    lab.execute("TRUNCATE truncated")
    lab.execute("ALTER TABLE vacuumed ALTER n SET STATISTICS 7")
    lab.execute("VACUUM FULL vacuumed")
    lab.execute("ALTER TABLE altered ALTER n SET NOT NULL")
    pipeline = lab.pipeline()
    states = {status.name.name: status.state for status in pipeline.store.tables()}
    assert states.pop("rewritten") is TableState.ERRORED
    assert set(states.values()) == {TableState.READY}
    stopped = pipeline.find(TableName("public", "rewritten"))
    assert stopped.retry_at is None
    assert "computed anew, or truncated, which publication lab_pub does not send" in (stopped.error or "")
    assert "etl resync public.rewritten" in (stopped.hint or "")
    assert not lab.pipeline().observer.errors  # said once, not at every start
    pipeline.resync(stopped.name)
    again = lab.synced()
    assert again.find(stopped.name).state is TableState.READY
    assert lab.rows("SELECT * FROM public.rewritten") == [(1, 10)]
    assert lab.rows("SELECT * FROM public.truncated") == [(1, 1)]


def test_what_happens_to_what_a_look_saw_ahead_of_the_stream_is_seen(lab: Lab) -> None:
    """Each table has a column altered, so that what it was before is needed until the stream has come so far."""
    lab.execute("CREATE TYPE mood AS ENUM ('sad')")
    for table, kind in (("labelled", "mood"), ("unlogged", "text"), ("truncated", "text")):
        lab.execute(f"CREATE TABLE {table} (id int, k int, m {kind}, PRIMARY KEY (id, k)) PARTITION BY LIST (k)")
        lab.execute(f"CREATE TABLE {table}_1 PARTITION OF {table} FOR VALUES IN (1)")
        lab.execute(f"INSERT INTO {table} VALUES (1, 1, 'sad')")
    lab.publish()
    lab.synced()
    for table in ("labelled", "unlogged", "truncated"):
        lab.execute(f"ALTER TABLE {table} ALTER m SET NOT NULL")
        lab.execute(f"CREATE TABLE {table}_2 PARTITION OF {table} FOR VALUES IN (2)")
    lab.execute("ALTER TYPE mood ADD VALUE 'glad'")
    lab.pipeline().close()  # the look
    lab.execute("INSERT INTO labelled VALUES (2, 2, 'glad')")
    lab.execute("ALTER TYPE mood RENAME VALUE 'glad' TO 'merry'")
    alter(lab, "unlogged_2", ["ALTER TABLE {t} SET UNLOGGED", "INSERT INTO {t} VALUES (2, 2, 'sad')"])
    lab.execute("ALTER TABLE unlogged_2 SET LOGGED")
    lab.execute("TRUNCATE truncated; INSERT INTO truncated VALUES (7, 1, 'sad')")
    pipeline = lab.pipeline()
    assert until_copied(lab, pipeline) == {"labelled", "unlogged"}
    assert "label" in str(pipeline.observer.errors["labelled"])
    assert "unlogged for a while" in str(pipeline.observer.errors["unlogged"])
    lab.assert_equal(pipeline)


def test_a_truncation_after_a_look_that_the_stream_has_not_passed_is_carried(lab: Lab) -> None:
    for table in ("sent", "kept"):
        lab.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, n int); INSERT INTO {table} VALUES (1, 1)")
    lab.publish()
    lab.synced()
    lab.execute("ALTER TABLE sent ALTER n SET STATISTICS 7; ALTER TABLE kept ALTER n SET NOT NULL")
    lab.pipeline().close()  # the look
    lab.execute("TRUNCATE sent; TRUNCATE kept; INSERT INTO sent VALUES (7, 7); INSERT INTO kept VALUES (8, 8)")
    pipeline = lab.pipeline()
    assert until_copied(lab, pipeline) == set()
    lab.assert_equal(pipeline)


def test_a_truncation_that_is_not_sent_stops_no_table_after_a_look_ahead_of_the_stream(lab: Lab) -> None:
    lab.execute("CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, 1)")
    lab.execute("CREATE PUBLICATION lab_pub FOR ALL TABLES WITH (publish = 'insert, update, delete')")
    lab.synced()
    lab.execute("ALTER TABLE t ALTER n SET STATISTICS 7")
    lab.pipeline().close()  # the look
    lab.execute("TRUNCATE t; INSERT INTO t VALUES (2, 2)")
    pipeline = lab.pipeline()
    assert until_copied(lab, pipeline) == set()
    assert lab.rows("SELECT id FROM public.t ORDER BY id") == [(1,), (2,)]


def test_a_column_that_is_not_sent_is_waited_for_by_nobody(lab: Lab) -> None:
    lab.execute("CREATE TABLE t (id int PRIMARY KEY, n int, hidden int); INSERT INTO t VALUES (1, 1, 1)")
    lab.execute("CREATE PUBLICATION lab_pub FOR TABLE t (id, n)")
    pipeline = lab.synced()
    lab.execute("ALTER TABLE t ADD more int; INSERT INTO t VALUES (2, 2, 2, 2)")
    lab.caught_up(pipeline)
    pipeline = lab.pipeline()
    assert until_copied(lab, pipeline) == set()
    [remembered] = pipeline.store.fingerprints().values()
    assert (remembered.earlier, remembered.fingerprint.last_attnum) == (None, 4)
    assert lab.rows("SELECT id, n FROM public.t ORDER BY id") == [(1, 1), (2, 2)]
