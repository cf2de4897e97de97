"""`types.numeric: auto`: DECIMALs with the digits that the copy found, and a table that is copied again for more.

The oracle is the source: each value is compared as a decimal number, of any number of digits.
"""
# ruff: noqa: S608 the tests write their own SQL

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from etl_core.config import BatchConfig
from etl_core.config_tables import read_tables
from etl_core.errors import CopiedAgain, EtlError
from etl_core.identifiers import TableName
from etl_core.protocol.segment import Frames
from etl_core.replication import failpoints
from etl_core.replication.spool import Spool, SpooledFrames
from etl_core.shape.shapes import Shapes
from etl_core.state.table_state import TableState
from etl_core.write_mode import WriteMode

if TYPE_CHECKING:
    from tests.integration.replication.conftest import Lab, Watched

VALUES: dict[str, tuple[str, str, list[str | None]]] = {
    "few": ("numeric", "DECIMAL(38,9)", ["1.10", "-0.000000001", "12345678901234567890123456789.5", "0", None]),
    "more": ("numeric", "DECIMAL(38,20)", ["-0.00000000000000000001", "123456789012345678.5", "1.0000000000000000000"]),
    "whole": ("numeric", "DECIMAL(38,0)", ["9" * 38, "-" + "9" * 38, "1." + "0" * 30]),
    "wholes": ("numeric", "DECIMAL(38,8)", ["9" * 30 + ".12345678", "1"]),
    "tiny": ("numeric", "DECIMAL(38,38)", ["0." + "0" * 37 + "1", "-0.9", "0"]),
    "amount": ("amount", "DECIMAL(38,12)", ["0.123456789012", "7"]),
    "prisma": ("prisma", "DECIMAL(38,10)", ["0.123456789100000000000000000000", "7"]),
    "wide": ("numeric(40,2)", "DECIMAL(38,2)", ["9" * 36 + ".25", "7"]),
    "list": ("numeric[]", "DECIMAL(38,11)[]", ["{0.12345678901,NULL,-1}", "{}", None]),
    "amounts": ("amount[]", "DECIMAL(38,9)[]", ["{1.5}", "{2}"]),
    "rounded": ("numeric(5,-2)", "DECIMAL(7,0)", ["12345", "-99"]),
    "fraction": ("numeric(2,5)", "DECIMAL(5,5)", ["0.00012"]),
    "declared": ("numeric(10,2)", "DECIMAL(10,2)", ["1.25"]),
    "line": ("cost", "STRUCT(n INTEGER, price VARCHAR)", ['(1,"1.10")', "(2,NaN)"]),
}
TYPES = """
CREATE DOMAIN amount AS numeric;
CREATE DOMAIN prisma AS numeric(65,30);
CREATE TYPE cost AS (n int, price numeric)
"""
MOST = max(len(values) for _, _, values in VALUES.values())


def settings(tables: dict[str, Any], **types: Any) -> dict[str, Any]:
    return {"tables": read_tables("tables", tables), "types": types}


def stored(lab: Lab, table: str) -> dict[str, str]:
    return {row[0]: row[1].replace('"', "") for row in lab.rows(f"DESCRIBE public.{table}")}


def fill(lab: Lab, first: int) -> None:
    marks = ", ".join(["%s"] * len(VALUES))
    for at in range(MOST):
        row = [values[at % len(values)] for _, _, values in VALUES.values()]
        lab.execute(f"INSERT INTO t (id, {', '.join(VALUES)}) VALUES ({first + at}, {marks})", row)


def assert_same(lab: Lab, pipeline: Watched, table: str, columns: list[str]) -> None:
    """By SELECT on both sides, and by the engine's own comparison."""
    query = f"SELECT id, {', '.join(columns)} FROM public.{table} ORDER BY id"
    of_source = query.replace("amounts", "amounts::numeric[]")  # psycopg does not know the array of a domain
    assert lab.rows(query) == [tuple(row) for row in lab.execute(of_source)]
    [compared] = [one for one in pipeline.verify() if one.table.name == table]
    assert compared.is_equal, compared


def test_numerics_are_decimals_of_the_digits_that_they_have(lab: Lab) -> None:
    """By copy and by the stream, in arrays, as a key, in new columns; and as before after a restart and a new copy."""
    lab.execute(TYPES)
    columns = ", ".join(f"{name} {declared}" for name, (declared, _, _) in VALUES.items())
    lab.execute(f"CREATE TABLE t (id int PRIMARY KEY, {columns}); CREATE TABLE empty (id int PRIMARY KEY, a numeric)")
    lab.execute("CREATE TABLE k (price numeric PRIMARY KEY, n int); INSERT INTO k VALUES (1.0, 1), (2.50, 2), (3, 3)")
    lab.execute("CREATE TABLE part (id int PRIMARY KEY, a numeric); INSERT INTO part VALUES (1, 1.5), (-1, 1e-20)")
    fill(lab, 0)
    lab.publish("TABLE t, empty, k, part WHERE (id > 0)")
    pipeline = lab.synced()
    types = {name: kind for name, (_, kind, _) in VALUES.items()}
    assert stored(lab, "t") == {"id": "INTEGER", **types}
    assert stored(lab, "part") == stored(lab, "empty") == {"id": "INTEGER", "a": "DECIMAL(38,9)"}
    fill(lab, 100)
    lab.execute(
        "UPDATE t SET few = few + 0.5 WHERE id < 50; DELETE FROM t WHERE id = 1; INSERT INTO empty VALUES (1, 2)"
    )
    lab.execute("UPDATE k SET price = 1.000 WHERE n = 1; DELETE FROM k WHERE n = 3; INSERT INTO k VALUES (3.00, 30)")
    lab.caught_up(pipeline)
    lab.execute(
        "ALTER TABLE t ADD late numeric DEFAULT 1.25, ADD later numeric DEFAULT 0.00000000000001, ADD last numeric[]"
    )
    fill(lab, 200)
    lab.caught_up(pipeline)
    assert pipeline.observer.errors == {}
    added = {"late": "DECIMAL(38,9)", "later": "DECIMAL(38,14)", "last": "DECIMAL(38,9)[]"}
    assert stored(lab, "t") == {"id": "INTEGER", **types, **added}
    same = [name for name in (*types, *added) if name != "line"]
    assert_same(lab, pipeline, "t", same)
    assert lab.rows("SELECT price, n FROM public.k ORDER BY n") == [(1, 1), (2.5, 2), (3, 30)]
    assert lab.rows("SELECT line.price FROM public.t WHERE id < 102 ORDER BY id")[-2:] == [("1.10",), ("NaN",)]

    restarted = lab.pipeline()
    assert {status.state for status in restarted.store.tables()} == {TableState.READY}
    # What is there no more had its digits: readers keep their type, while the other values fit.
    lab.execute("UPDATE t SET more = 1, tiny = 0; UPDATE t SET amount = 123456789012345678901234567890")
    lab.caught_up(restarted)
    assert isinstance(restarted.observer.errors["t"], CopiedAgain)
    assert str(restarted.observer.errors["t"]) == (
        "table public.t: column amount: 30 digits before the point came, and DECIMAL(38,12) holds 26"
    )
    for outcome in restarted.sync():
        assert not isinstance(outcome, EtlError), outcome
    lab.caught_up(restarted)
    assert stored(lab, "t") == {"id": "INTEGER", **types, **added, "amount": "DECIMAL(38,8)"}
    assert_same(lab, restarted, "t", same)


def test_more_digits_than_a_column_has(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the stream, in an array, in a spooled transaction; the others flow on, and nothing is rounded."""
    lab.execute("CREATE TABLE other (id int PRIMARY KEY, a numeric); CREATE TABLE emptied (id int PRIMARY KEY)")
    names = ("finer", "listed", "spooled", "filled", "nan", "nulled")
    for name in names:
        lab.execute(
            f"CREATE TABLE {name} (id int PRIMARY KEY, a numeric, many numeric[]); INSERT INTO {name} VALUES (0, 1)"
        )
    lab.publish()
    words = settings({"nulled": {"types": {"out_of_range": "null"}}})
    pipeline = lab.synced(batch=BatchConfig(max_rows=100, max_bytes=1 << 14, max_age=0.05), **words)
    spooled, put = [], Spool.put

    def count(spool: Spool, frames: Frames) -> SpooledFrames:
        spooled.append(frames.size)
        return put(spool, frames)

    monkeypatch.setattr(Spool, "put", count)
    lab.execute("INSERT INTO finer VALUES (1, 1.5), (3, NULL), (2, 0.1234567890120)")
    lab.execute("INSERT INTO listed VALUES (1, 1, '{1,0.00000000001}')")
    lab.execute("INSERT INTO filled VALUES (1, 0.12345678901234567891), (2, 12345678901234567890.12345678901234567891)")
    lab.execute("INSERT INTO nan VALUES (1, 'NaN'); INSERT INTO nulled VALUES (1, 'Infinity', '{NaN,1}')")
    lab.execute(
        "BEGIN; INSERT INTO spooled SELECT i, i, ARRAY[i] FROM generate_series(1, 2000) i; TRUNCATE emptied;"
        "INSERT INTO spooled VALUES (-1, 0.0000000000000001); INSERT INTO other VALUES (1, 2.5); COMMIT"
    )
    lab.caught_up(pipeline)
    assert sum(spooled) > 1 << 14, "what is before a TRUNCATE goes to the spool, and the digits come after it"
    errors = pipeline.observer.errors
    came = "table public.{}: column {}: {} digits after the point came, and DECIMAL(38,9) holds 9"
    told = {"finer": ("a", 12), "listed": ("many", 11), "spooled": ("a", 16)}
    assert {name: str(errors[name]) for name in told} == {
        name: came.format(name, column, digits) for name, (column, digits) in told.items()
    }
    assert all(isinstance(errors[name], CopiedAgain) for name in told)
    assert lab.rows("SELECT * FROM public.other") == [(1, Decimal("2.5"))]
    assert lab.rows("SELECT a::DOUBLE, many[1], many[2] FROM public.nulled WHERE id = 1") == [(None, None, 1)]
    assert str(errors["nan"]) == "column a of table public.nan holds NaN or infinity, which no DECIMAL(38,9) can hold"
    assert errors["nan"].hint is not None
    assert "types.out_of_range: null" in errors["nan"].hint
    assert "types.numeric: varchar" in errors["nan"].hint
    instead = "set types.numeric: varchar for column a, which loses nothing, or double, which rounds"
    assert errors["filled"].hint == instead
    said = "a number of 40 digits, and a DECIMAL has 38"
    assert str(errors["filled"]) == f"column a of table public.filled holds {said}"

    outcomes = pipeline.sync()
    assert not [outcome for outcome in outcomes if isinstance(outcome, EtlError)]
    lab.caught_up(pipeline)
    types = {name: (stored(lab, name)["a"], stored(lab, name)["many"]) for name in told}
    assert types == {
        "finer": ("DECIMAL(38,12)", "DECIMAL(38,9)[]"),
        "listed": ("DECIMAL(38,9)", "DECIMAL(38,11)[]"),
        "spooled": ("DECIMAL(38,16)", "DECIMAL(38,9)[]"),
    }
    for name in told:
        assert_same(lab, pipeline, name, ["a", "many"])

    # A copy is refused for the same, and what the sentence says helps: all of it is as text.
    pipeline.resync(TableName("public", "filled"))
    [refused] = pipeline.sync()
    assert str(refused) == (
        "column a of table public.filled holds numbers of up to 20 digits before the point and 20 after it, and a "
        "DECIMAL has 38 digits in all: the table is not copied"
    )
    as_text = {name: {"types": {"numeric": "varchar"}} for name in ("filled", "nan")}
    mended = lab.synced(**settings({**as_text, "nulled": {"types": {"out_of_range": "null"}}}))
    assert stored(lab, "filled")["a"] == "VARCHAR"
    assert lab.rows("SELECT a FROM public.nan WHERE id = 1") == [("NaN",)]
    assert [one.table.name for one in mended.verify() if not one.is_equal] == []


@pytest.mark.parametrize("failpoint", [failpoints.COPY_STAGED, failpoints.COPY_PUBLISHED])
def test_more_digits_while_the_table_is_copied(lab: Lab, failpoint: str) -> None:
    """The value is in no snapshot: the catch-up or the stream meets it, and the next copy has its digits."""
    lab.execute("CREATE TABLE t (id int PRIMARY KEY, a numeric); INSERT INTO t VALUES (1, 1.5)")
    lab.publish()
    with lab.process("sync", failpoint=f"{failpoint}=kill") as killed:
        killed.wait()
    pipeline = lab.pipeline()

    def write(*_: object) -> None:
        lab.execute("INSERT INTO t VALUES (2, 0.000000000001) ON CONFLICT DO NOTHING")

    with failpoints.activated(failpoint, write), lab.running(pipeline):
        copied, ready = ("t", TableState.FINISHED_COPY), ("t", TableState.READY)
        pipeline.observer.until(
            lambda: pipeline.observer.states.count(copied) > 1 and pipeline.observer.states[-1] == ready, "two copies"
        )
    assert isinstance(pipeline.observer.errors["t"], CopiedAgain)
    assert stored(lab, "t")["a"] == "DECIMAL(38,12)"
    lab.assert_equal()


def test_a_table_that_an_older_version_copied_keeps_its_text(lab: Lab) -> None:
    """Until it is copied again. Deleted rows that are kept keep text, too, and so do their keys."""
    for name in ("t", "soft"):
        lab.execute(
            f"CREATE TABLE {name} (id numeric PRIMARY KEY, a numeric); INSERT INTO {name} VALUES (1.0, 1.10), (2, 2)"
        )
    lab.publish()
    keeps = {"soft": {"write_mode": "soft_delete"}}
    older = lab.synced(**settings(keeps, numeric="varchar"))
    lab.execute("DELETE FROM soft WHERE id = 2")
    lab.caught_up(older)

    for words in ({"numeric": "varchar"}, {}):
        for status in older.store.tables():
            mode = WriteMode.SOFT_DELETE if status.name.name == "soft" else WriteMode.MIRROR
            older.store.save_shape(status.table_id, Shapes(write_mode=mode).rules(status.name).to_json())
        pipeline = lab.pipeline(**settings(keeps, **words))
        assert {status.state for status in pipeline.store.tables()} == {TableState.READY}
    lab.execute("INSERT INTO t VALUES (3.00, 'NaN'); INSERT INTO soft VALUES (3, 1.00); ALTER TABLE t ADD b numeric")
    lab.execute("UPDATE t SET b = 1.50")
    lab.caught_up(pipeline)
    assert stored(lab, "t") == {"id": "VARCHAR", "a": "VARCHAR", "b": "DECIMAL(38,9)"}
    assert lab.rows("SELECT a FROM public.t ORDER BY id") == [("1.10",), ("2",), ("NaN",)]
    assert [one.is_equal for one in pipeline.verify()] == [True, True]

    lab.execute("DELETE FROM t WHERE id = 3.0; ALTER TABLE soft ADD b numeric, ADD many numeric[]")
    lab.execute("INSERT INTO soft VALUES (4, 4, 1e-12, '{0.1,NULL}'), (5, 5, 5, '{}')")
    lab.caught_up(pipeline)
    assert pipeline.observer.errors.keys() == {"soft"}, "its b has more digits"
    pipeline.resync(TableName("public", "t"))

    def copied() -> dict[str, str]:
        assert not [outcome for outcome in pipeline.sync() if isinstance(outcome, EtlError)]
        lab.caught_up(pipeline)
        return stored(lab, "soft")

    kinds = copied()
    assert stored(lab, "t") == {"id": "DECIMAL(38,9)", "a": "DECIMAL(38,9)", "b": "DECIMAL(38,9)"}
    assert (kinds["id"], kinds["a"], kinds["b"], kinds["many"]) == (
        *("VARCHAR", "VARCHAR", "DECIMAL(38,12)", "DECIMAL(38,9)[]"),
    )
    lab.execute("DELETE FROM soft WHERE id = 4")
    lab.caught_up(pipeline)
    lab.execute("UPDATE soft SET many = '{1e-11}' WHERE id = 5")
    lab.caught_up(pipeline)
    kinds = copied()
    # Only a deleted row has 12 digits in b; its list has the digits of another's.
    assert (kinds["b"], kinds["many"]) == ("DECIMAL(38,12)", "DECIMAL(38,11)[]")
    rows = lab.rows("SELECT id, a, b, many, _etl_deleted_at IS NULL FROM public.soft ORDER BY id")
    assert rows == [
        ("1.0", "1.10", None, None, True),
        ("2", "2", None, None, False),
        ("3", "1.00", None, None, True),
        ("4", "4", Decimal("1e-12"), [Decimal("0.1"), None], False),
        ("5", "5", 5, [Decimal("1e-11")], True),
    ]
    assert [one.is_equal for one in pipeline.verify()] == [True, True]


def test_a_number_that_is_gone_when_its_table_is_copied(lab: Lab) -> None:
    """Its digits are what the copy is made for: it may come again, and its log is to have it."""
    modes = {"mirror": {}, "log": {"write_mode": "append"}}
    for table in modes:
        lab.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, a numeric); INSERT INTO {table} VALUES (0, 1)")
    lab.publish()
    pipeline = lab.synced(tables=read_tables("tables", modes))
    for digits in (13, 14, 12, 14):
        for table in modes:
            lab.execute(f"UPDATE {table} SET a = round(1/3.0, {digits}); UPDATE {table} SET a = 1")
        for _ in range(2):
            lab.caught_up(pipeline)
            pipeline.stop.clear()
            for outcome in pipeline.sync():
                assert not isinstance(outcome, EtlError), outcome
    assert [one.is_equal for one in pipeline.verify()] == [True, True]
    copies = [name for name, state in pipeline.observer.states if state is TableState.FINISHED_COPY]
    assert (copies.count("log"), stored(lab, "log")["a"]) == (3, "DECIMAL(38,14)")
    assert (copies.count("mirror"), stored(lab, "mirror")["a"]) == (1, "DECIMAL(38,9)"), "it never gets such a number"
    [(logged,)] = lab.rows("SELECT count(*) FROM public.log WHERE _etl_op = 'update'")
    assert logged == 4


def test_numbers_of_the_past_stay_or_the_table_is_not_copied(lab: Lab) -> None:
    """The state of the table is lost, with it what the destination has; today's rows need fewer digits."""
    modes = {"log": "append", "past": "history", "deleted": "soft_delete"}
    named = {f"{table}_{values}": {"write_mode": mode} for table, mode in modes.items() for values in ("few", "many")}
    for table in named:
        lab.execute(
            f"CREATE TABLE {table} (id int PRIMARY KEY, a numeric, b numeric[]);"
            f"INSERT INTO {table} VALUES (1, 1.10), (2, 2), (3, {'0.5' if table.endswith('few') else '0.123456789012'})"
        )
    lab.publish()
    texts = {table: {**said, "types": {"numeric": "varchar"}} for table, said in named.items()}
    pipeline = lab.synced(tables=read_tables("tables", {**texts, "log_many": named["log_many"]}))
    for table in named:
        lab.execute(f"DELETE FROM {table} WHERE id > 1")
    lab.caught_up(pipeline)
    pipeline.teardown()
    again = lab.pipeline(tables=read_tables("tables", named))
    again.sync()
    told = {name: str(error) for name, error in again.observer.errors.items()}
    assert told.keys() == {table for table in named if table.endswith("many")}
    for table in named:
        values = {None if value is None else Decimal(value) for (value,) in lab.rows(f"SELECT a FROM public.{table}")}
        kept = Decimal("0.123456789012") if table in told else Decimal("0.5")
        assert {Decimal("1.1"), Decimal(2), kept} <= values, table
        if table in told:
            assert f"column a of table public.{table}: 1 of the rows that the destination keeps" in told[table]
