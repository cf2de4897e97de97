"""money of databases with other locales: PostgreSQL's own numeric is what the destination has, by copy and stream.

The machine may have no locale but C, so the test compiles its own: with localedef, which comes with glibc.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import pytest

from etl_core.errors import CopiedAgain
from etl_core.state.table_state import TableState
from etl_core.testing.postgres import PostgresServer, create_database, temporary_postgres
from tests.integration.replication.conftest import Lab

# Symbol, decimal point, separator of thousands, decimals, and where the symbol and the sign are.
LOCALES = {
    "yen": ("Y", ".", ",", 0, 'p_cs_precedes 1\nn_cs_precedes 1\nn_sign_posn 4\nnegative_sign "-"'),
    "dinar": ("KD", ",", ".", 3, 'p_cs_precedes 0\nn_cs_precedes 0\nn_sep_by_space 1\nn_sign_posn 0\nnegative_sign ""'),
    "franc": (
        "Fr",
        ".",
        "'",
        2,
        'p_cs_precedes 1\nn_cs_precedes 1\nn_sep_by_space 2\nn_sign_posn 2\nnegative_sign "-"',
    ),
}
LOCALE = """LC_MONETARY
int_curr_symbol "XXX "
currency_symbol "{}"
mon_decimal_point "{}"
mon_thousands_sep "{}"
frac_digits {}
mon_grouping 3
{}
END LC_MONETARY
"""
WHOLE = [0, 1, -1, 123456789, -123456789, 2**63 - 1, -(2**63)]
"""What is stored of a value: a number of 64 bits, whose decimal point is where the locale has it."""


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    if sys.platform != "linux" or shutil.which("localedef") is None:
        pytest.skip("only glibc's localedef compiles a locale for a server, and it is not here")
    with tempfile.TemporaryDirectory(prefix="etl-locales-") as folder, pytest.MonkeyPatch.context() as patch:
        Path(folder).chmod(0o755)
        for name, said in LOCALES.items():
            source = Path(folder, f"{name}.source")
            source.write_text(LOCALE.format(*said))
            # It warns of every category that is not there, and takes C's.
            subprocess.run(["localedef", "-c", "-i", source, Path(folder, name)], check=False, capture_output=True)
        patch.setenv("LOCPATH", folder)
        with temporary_postgres() as server:
            yield server


@pytest.fixture
def lab(server: PostgresServer, tmp_path: Path) -> Iterator[Lab]:
    database = create_database(server)
    with closing(Lab(database, tmp_path)) as lab:
        yield lab
    database.drop()


def set_locale(lab: Lab, name: str) -> None:
    lab.execute(f"ALTER DATABASE {lab.database.name} SET lc_monetary = '{name}'")


def assert_same(lab: Lab) -> None:
    """PostgreSQL says in the database's locale what each value is as a number."""
    ours = lab.execute("SELECT id, v::numeric, (p).a::numeric, vs::numeric[] FROM t ORDER BY id")
    assert lab.rows("SELECT id, v, p.a, vs FROM public.t ORDER BY id") == ours
    assert lab.rows("SELECT v, n FROM public.k ORDER BY v") == lab.execute("SELECT v::numeric, n FROM k ORDER BY v")


@pytest.mark.parametrize("name", LOCALES)
def test_money_is_the_number_that_it_is_in_its_database(lab: Lab, name: str) -> None:
    set_locale(lab, name)
    lab.execute("CREATE TYPE pair AS (a money, b text)")
    lab.execute("CREATE TABLE t (id int PRIMARY KEY, v money, vs money[], p pair)")
    lab.execute("CREATE TABLE k (v money PRIMARY KEY, n int)")
    values = [Decimal(whole).scaleb(-LOCALES[name][3]) for whole in WHOLE]
    written = (
        "INSERT INTO t SELECT n + {}, v::money, ARRAY[v::money, NULL], (v::money, 'x')::pair"
        " FROM unnest(%s::numeric[]) WITH ORDINALITY given(v, n)"
    )
    lab.execute(written.format(0), [values])
    lab.execute("INSERT INTO t (id) VALUES (0); INSERT INTO k SELECT v, 0 FROM t WHERE id > 0")
    lab.publish()
    pipeline = lab.synced()
    assert_same(lab)
    lab.execute(written.format(100), [values])
    lab.execute("UPDATE k SET n = 1; DELETE FROM k WHERE v = (SELECT v FROM t WHERE id = 2)")
    lab.execute("ALTER TABLE t ADD late money DEFAULT 12; UPDATE t SET p = NULL WHERE id = 3")
    lab.caught_up(pipeline)
    assert_same(lab)
    assert lab.rows("SELECT DISTINCT late FROM public.t") == lab.execute("SELECT DISTINCT late::numeric FROM t")
    assert all(comparison.is_equal for comparison in pipeline.verify())


def test_another_locale_gives_every_value_another_meaning(lab: Lab) -> None:
    """Its tables are copied again, at the next session that sees it."""
    set_locale(lab, "franc")
    lab.execute("CREATE TYPE pair AS (a money); CREATE TABLE t (id int PRIMARY KEY, v money, vs money[], p pair)")
    lab.execute("CREATE TABLE k (v money PRIMARY KEY, n int); CREATE TABLE other (id int PRIMARY KEY)")
    lab.execute("INSERT INTO t VALUES (1, 12.34, ARRAY[0.05::money], ROW(7.0::money)); INSERT INTO k VALUES (12.34, 1)")
    lab.publish()
    pipeline = lab.synced()
    assert_same(lab)
    set_locale(lab, "yen")
    problems = {comparison.table.name: comparison.problem or "" for comparison in pipeline.verify()}
    assert problems.pop("other") == ""
    assert all("have column v (money) in an older form" in problem for problem in problems.values()), problems
    lab.execute("INSERT INTO t VALUES (2, 12); INSERT INTO k VALUES (12, 2); INSERT INTO other VALUES (1)")
    lab.caught_up(pipeline)
    states = {status.name.name: status.state for status in pipeline.store.tables()}
    assert states == {"t": TableState.INIT, "k": TableState.INIT, "other": TableState.READY}
    assert isinstance(pipeline.observer.errors["k"], CopiedAgain)
    pipeline.sync()
    lab.caught_up(pipeline)
    assert_same(lab)
    assert lab.rows("SELECT v FROM public.k ORDER BY n") == [(Decimal(1234),), (Decimal(12),)]
    assert all(comparison.is_equal for comparison in pipeline.verify())
