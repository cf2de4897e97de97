"""Metrics against a real PostgreSQL: what the endpoint says, and what a real Prometheus makes of it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from etl_core.config import DestinationConfig, PipelineConfig, SourceConfig, StateConfig
from etl_core.config_telemetry import ListenAddress, TelemetryConfig
from etl_core.pipeline import Pipeline
from etl_core.replication.observer import Observer, Observers
from etl_core.telemetry.endpoint import Endpoint
from etl_core.telemetry.setup import Telemetry
from etl_core.testing.postgres import Database, Postgres

MONITORING = Path(__file__).parents[3] / "examples" / "monitoring"
ANYWHERE = TelemetryConfig(ListenAddress("127.0.0.1", 0))
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def scrape(port: int) -> Samples:
    _, text = get(port, "/metrics")
    return {
        (sample.name, frozenset(sample.labels.items() - {("pipeline", "shop")})): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def one(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


@contextmanager
def shop(database: Database, folder: Path) -> Iterator[tuple[Pipeline, Endpoint, list[str]]]:
    """A pipeline of two tables, of which one cannot be copied, with its endpoint; and what it noted."""
    database.execute("CREATE TABLE orders (id int PRIMARY KEY, n int)")
    database.execute("INSERT INTO orders SELECT i, i FROM generate_series(1, 100) i")
    database.execute("CREATE TABLE carts (id int PRIMARY KEY)")
    database.execute("CREATE PUBLICATION shop_pub FOR TABLE orders, carts")
    config = PipelineConfig(
        "shop",
        SourceConfig("shop_pub", dsn=database.dsn),
        DestinationConfig("duckdb", {"path": str(folder / "shop.duckdb")}),
        StateConfig(f"sqlite:///{folder / 'state.db'}"),
        telemetry=ANYWHERE,
    )
    notices: list[str] = []

    class Notes(Observer):
        def on_notice(self, sentence: str) -> None:
            notices.append(sentence)

    telemetry = Telemetry(config.telemetry, config.pipeline)
    with ExitStack() as stack:
        pipeline = stack.enter_context(Pipeline(config, observer=Observers(Notes(), *telemetry.observers)))
        pipeline.prepare()
        endpoint = telemetry.endpoint(pipeline)
        assert endpoint is not None
        yield pipeline, stack.enter_context(endpoint), notices
    pipeline = Pipeline(config)
    pipeline.teardown()
    pipeline.close()


def test_what_is_done_and_how_it_stands(database: Database, postgres: Postgres, tmp_path: Path) -> None:
    with shop(database, tmp_path) as (pipeline, endpoint, notices):
        assert get(endpoint.port, "/healthz") == (200, "ok\n")
        assert get(endpoint.port, "/readyz") == (503, "nobody streams\n")
        assert get(endpoint.port, "/other")[0] == 404
        assert one(scrape(endpoint.port), "etl_tables", state="init") == 2

        pipeline.pause(pipeline.store.tables()[0].name)  # public.carts
        pipeline.sync()
        database.execute("UPDATE orders SET n = 0 WHERE id <= 5")
        database.execute("DELETE FROM orders WHERE id = 7")
        pipeline.stream(until=pipeline.current_lsn())

        while (slot := pipeline.source.slot_status("etl_shop")) is None or slot.active:
            pass  # the server notices a moment later that the stream has ended
        samples = scrape(endpoint.port)
        orders = {"table": "public.orders"}
        assert one(samples, "etl_copied_rows_total", **orders) == 100
        assert one(samples, "etl_rows_total", **orders, operation="update") == 5
        assert one(samples, "etl_rows_total", **orders, operation="delete") == 1
        assert one(samples, "etl_batch_seconds_count") >= 1
        assert one(samples, "etl_table_state", **orders, state="ready") == 1
        assert one(samples, "etl_table_state", table="public.carts", state="paused") == 1
        assert one(samples, "etl_tables", state="ready") == one(samples, "etl_tables", state="paused") == 1
        assert one(samples, "etl_source_up") == one(samples, "etl_state_store_up") == 1
        assert one(samples, "etl_stream_active") == one(samples, "etl_stream_failed") == 0
        assert one(samples, "etl_slot_kept_wal_bytes", slot="etl_shop") >= 0
        assert one(samples, "etl_spool_bytes") == 0
        assert one(samples, "process_resident_memory_bytes") > 1 << 20
        assert not [name for name, _ in samples if name.startswith("etl_copy_running")]

        taken = TelemetryConfig(ListenAddress("127.0.0.1", endpoint.port))
        with Telemetry(taken, "shop").served(pipeline):  # the work goes on
            pass
        [notice] = [notice for notice in notices if "metrics" in notice]
        assert notice.startswith(f"metrics cannot be served at 127.0.0.1:{endpoint.port}: ")

        pipeline.store.save_stream_error("the slot is lost", None, is_permanent=True)
        assert one(scrape(endpoint.port), "etl_stream_failed") == 1
        assert get(endpoint.port, "/readyz") == (503, "the stream has ended: the slot is lost\n")
        postgres.stop()
        samples = scrape(endpoint.port)
        assert one(samples, "etl_source_up") == 0
        assert ("etl_stream_active", frozenset()) not in samples  # not known, so not said
        assert get(endpoint.port, "/readyz")[1].startswith("the source is away: ")
        postgres.start()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs Debian's package prometheus: promtool")
def test_the_alerts_fire_when_they_should() -> None:
    done = subprocess.run(
        ["promtool", "test", "rules", "alerts_test.yml"], cwd=MONITORING, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs Debian's package prometheus")
def test_a_prometheus_reads_it_and_the_dashboard_asks_for_what_there_is(database: Database, tmp_path: Path) -> None:
    with shop(database, tmp_path) as (pipeline, endpoint, _):
        pipeline.sync()
        database.execute("INSERT INTO orders VALUES (1000, 1)")
        pipeline.stream(until=pipeline.current_lsn())
        with prometheus(tmp_path, endpoint.port) as ask:
            while not ask("query", query='etl_rows_total{table="public.orders"}'):
                pass
            known = {name for name in ask("label/__name__/values") if not name.startswith(("scrape_", "up", "ALERTS"))}
            groups = ask("rules")["groups"]
            assert [rule["lastError"] for group in groups for rule in group["rules"] if rule.get("lastError")] == []
            dashboard = json.loads((MONITORING / "dashboard.json").read_text())
            expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
            for expression in expressions:
                asked = expression.replace("$pipeline", "shop").replace("$__rate_interval", "1m")
                ask("query", query=asked)  # raises for what is no query
                names = {word for word in known if word in expression}
                absent = "etl_copy_", "etl_errors", "etl_retries", "etl_table_waits", "etl_slot_left"
                assert names or any(name in expression for name in absent), expression


@contextmanager
def prometheus(folder: Path, port: int) -> Iterator[Any]:
    """A Prometheus that scrapes the port each second, with the example's alerts; gives a function that asks its API."""
    config = (MONITORING / "prometheus.yml").read_text()
    config = config.replace("localhost:9187", f"127.0.0.1:{port}").replace("15s", "1s")
    (folder / "prometheus.yml").write_text(config.replace("alerts.yml", str(MONITORING / "alerts.yml")))
    with socket.create_server(("127.0.0.1", 0)) as found:
        web = found.getsockname()[1]
    with subprocess.Popen(
        [
            "prometheus",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{web}",
        ],
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        try:
            said = []
            for line in process.stderr:
                said.append(line)
                if "Server is ready to receive web requests" in line:
                    break
            else:
                raise AssertionError("".join(said))

            def ask(path: str, **query: str) -> Any:
                url = f"http://127.0.0.1:{web}/api/v1/{path}?{urllib.parse.urlencode(query)}"
                with urllib.request.urlopen(url) as answer:
                    data = json.load(answer)["data"]
                return data["result"] if isinstance(data, dict) and "result" in data else data

            yield ask
        finally:
            process.terminate()
