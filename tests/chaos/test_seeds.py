"""A few seeds of `make chaos` with every test run, and the auditor shown to find what it is there for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from etl_core.config import DestinationConfig, PipelineConfig, SourceConfig, StateConfig
from etl_core.errors import EtlError
from etl_core.identifiers import TableName
from etl_core.lsn import Lsn
from etl_core.pipeline import Pipeline
from etl_core.testing.database import Database
from etl_core.testing.postgres import PostgresServer, temporary_postgres
from tests.chaos.auditor import Auditor, Lost
from tests.chaos.campaign import Campaign
from tests.chaos.history import History
from tests.chaos.plan import Fault, plan_rounds
from tests.chaos.workload import KEYED, Workload, create_tables

pytestmark = pytest.mark.timeout(900)  # a busy machine needs minutes for a seed

# Their second rounds: a full disk, a restored state store, late packets.
SEEDS = (36, 129, 139)
ROUNDS = 2


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server that may be crashed."""
    with temporary_postgres() as server:
        yield server


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_ends_exact(server: PostgresServer, tmp_path: Path, seed: int) -> None:
    told: list[str] = []
    result = Campaign(server, tmp_path, seed, told.append).run(ROUNDS)
    assert len(result.faults) == len(told) == ROUNDS
    assert result.invariant_checks
    assert result.history_checks


def test_a_seed_is_one_plan() -> None:
    assert plan_rounds(7, 20) == plan_rounds(7, 20)
    assert plan_rounds(7, 5) == plan_rounds(7, 20)[:5]
    assert {step.fault for seed in range(30) for step in plan_rounds(seed, 8)} == set(Fault)


def test_the_auditor_finds_one_wrong_value_and_a_part_of_a_transaction(database: Database, tmp_path: Path) -> None:
    create_tables(database.execute)
    history = History(database.execute)
    history.begin()
    database.execute("CREATE PUBLICATION p FOR ALL TABLES WITH (publish_via_partition_root = true)")
    path, state = tmp_path / "a.duckdb", f"sqlite:///{tmp_path / 'state.db'}"
    config = PipelineConfig(
        "audited",
        SourceConfig("p", dsn=database.dsn),
        DestinationConfig("duckdb", {"path": str(path)}),
        StateConfig(state),
    )
    with Pipeline(config) as pipeline:
        pipeline.prepare()
        assert not [outcome for outcome in pipeline.sync() if isinstance(outcome, EtlError)]
        Workload(database.dsn, 1).write(10)
        pipeline.stream(until=pipeline.current_lsn())
    auditor = Auditor(database.dsn, path, state, "audited")
    # The seed also drops the journal and creates it anew: that is another table, which nothing copies here.
    names = [table.name for table in auditor.tables() if table.name.name != "journal"]
    assert TableName("public", "wide") in names
    assert auditor.compare(names) == []
    assert auditor.check_invariant({})
    assert auditor.check_history(history, {}) == len(KEYED)
    [(before,)] = database.execute("SELECT n FROM plain_a WHERE id = (SELECT max(id) FROM plain_a)")
    database.execute("UPDATE plain_a SET n = n + 1 WHERE id = (SELECT max(id) FROM plain_a)")
    with Pipeline(config) as pipeline:
        pipeline.prepare()
        pipeline.stream(until=pipeline.current_lsn())
    assert auditor.check_history(history, {}) == len(KEYED)
    with contextlib.closing(duckdb.connect(str(path))) as file:  # an older value that comes back
        older = "UPDATE public.plain_a SET n = ? WHERE id = (SELECT max(id) FROM public.plain_a)"
        file.execute(older, [before])
    with pytest.raises(Lost, match=r"plain_a at .* is not what the source was then"):
        auditor.check_history(history, {})
    assert auditor.check_history(history, {"plain_a": Lsn(2**63)}) == len(KEYED) - 1
    with contextlib.closing(duckdb.connect(str(path))) as file:
        file.execute("UPDATE public.wide SET note = 'x' WHERE id = (SELECT max(id) FROM public.wide)")
        file.execute("UPDATE public.account SET balance = balance + 1 WHERE id = 1")
    [account, plain_a, wide] = auditor.compare(names)
    assert plain_a.startswith("public.plain_a: 1 rows missing, 1 too many")
    assert account.startswith("public.account: 1 rows missing, 1 too many")
    assert wide.startswith("public.wide: 1 rows missing, 1 too many")
    with pytest.raises(Lost, match="part of a transaction"):
        auditor.check_invariant({})
