"""`etl metrics` as a process."""

from __future__ import annotations

import re
import signal
import urllib.request

from tests.integration.cli.conftest import Project


def test_it_serves_until_stopped_and_needs_an_address(project: Project) -> None:
    project.configure()
    assert project.run("sync").status == 0
    refused = project.run("metrics")
    assert refused.status == 2
    assert "metrics.prometheus: is missing" in refused.err

    project.configure(more='metrics: {prometheus: "127.0.0.1:0"}')
    running = project.start("metrics")
    port = re.search(r"at port (\d+)", running.wait_for("serving /metrics"))
    assert port is not None
    with urllib.request.urlopen(f"http://127.0.0.1:{port[1]}/metrics") as answer:
        assert f'etl_tables{{pipeline="{project.pipeline}",state="finished_copy"}} 2.0' in answer.read().decode()
    running.signal(signal.SIGTERM)
    assert running.wait().status == 128 + signal.SIGTERM
