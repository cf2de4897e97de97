"""`dagster dev` as a process of a test or a demo, driven over GraphQL as its own pages drive it.

The process is started with SIGINT as a terminal would send it, in a process group of its own, and nothing of it is left
at the end: runs that outlive `dagster dev` are ended with the group.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_LOAD = """
query Load { workspaceOrError { ... on Workspace { locationEntries { name loadStatus locationOrLoadError {
    __typename ... on PythonError { message errorChain { error { message } } }
    ... on RepositoryLocation { repositories { name } } } } } } }
"""
_LAUNCH = """
mutation Launch($params: ExecutionParams!) { launchRun(executionParams: $params) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
    ... on RunConfigValidationInvalid { errors { message } } ... on PipelineNotFoundError { message } } }
"""
_RUN = """
query Run($id: ID!) { runOrError(runId: $id) { ... on Run { status startTime endTime } } }
"""
_RUNS = """
query Runs($filter: RunsFilter, $limit: Int) { runsOrError(filter: $filter, limit: $limit) {
    ... on Runs { results { runId status jobName } } } }
"""
_SENSOR = """
mutation Start($selector: SensorSelector!) { startSensor(sensorSelector: $selector) {
    __typename ... on Sensor { id } ... on PythonError { message } } }
"""
_STOP_SENSOR = """
mutation Stop($id: String!) { stopSensor(id: $id) { __typename ... on PythonError { message } } }
"""
_SENSOR_STATE = """
query State($selector: SensorSelector!) { sensorOrError(sensorSelector: $selector) {
    ... on Sensor { id sensorState { id status ticks(limit: 5) { status skipReason timestamp endTimestamp
        error { message } runIds } } } } }
"""
_PREVIEW = """
mutation Preview($selector: SensorSelector!) { sensorDryRun(selectorData: $selector, cursor: null) {
    __typename ... on DryRunInstigationTick { evaluationResult { skipReason runRequests { runKey }
        error { message } } } ... on PythonError { message } } }
"""
_RELOAD = """
mutation Reload($location: String!) { reloadRepositoryLocation(repositoryLocationName: $location) {
    __typename ... on PythonError { message } ... on WorkspaceLocationEntry { loadStatus } } }
"""
_TERMINATE = """
mutation Terminate($id: String!) { terminateRun(runId: $id) { __typename } }
"""
_ASSETS = """
query Assets($keys: [AssetKeyInput!]!) { assetNodes(assetKeys: $keys) { assetKey { path }
    assetMaterializations(limit: 100) { runId timestamp tags { key value }
        metadataEntries { label ... on IntMetadataEntry { intValue } ... on TextMetadataEntry { text } } } } }
"""

_ENDED = ("SUCCESS", "FAILURE", "CANCELED")


class DagsterDev:
    """A running `dagster dev`. `location` and `repository` are those of the first code location."""

    def __init__(self, process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
        self.process = process
        self.url = url
        self.log = log
        self.location = ""
        self.repository = ""

    def ask(self, query: str, **variables: Any) -> Any:
        """The `data` of a GraphQL answer. Raises RuntimeError with what the server says is wrong."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(  # noqa: S310 - our own server on this machine
            f"{self.url}/graphql", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
            answer = json.load(response)
        if answer.get("errors"):
            raise RuntimeError(f"Dagster: {answer['errors'][0]['message']}")
        return answer["data"]

    def wait_loaded(self, seconds: float) -> None:
        """Waits for the server and its code location. Raises RuntimeError if the location does not load."""
        deadline = time.monotonic() + seconds
        while True:
            if self.process.poll() is not None:
                raise RuntimeError(f"dagster dev ended at once; its words are in {self.log}")
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                entries = self.ask(_LOAD)["workspaceOrError"]["locationEntries"]
                if entries and all(entry["loadStatus"] == "LOADED" for entry in entries):
                    return self._take_location(entries[0])
            if time.monotonic() > deadline:
                raise RuntimeError(f"dagster dev did not load within {seconds:.0f} s; its words are in {self.log}")
            time.sleep(0.2)

    def _take_location(self, entry: Mapping[str, Any]) -> None:
        loaded = entry["locationOrLoadError"]
        if loaded["__typename"] != "RepositoryLocation":
            causes = [loaded["message"], *(link["error"]["message"] for link in loaded["errorChain"])]
            raise RuntimeError(f"the code location does not load: {causes[-1].strip()}")
        self.location, self.repository = entry["name"], loaded["repositories"][0]["name"]

    def launch(
        self,
        job: str,
        *,
        assets: Sequence[Sequence[str]] = (),
        checks: Sequence[tuple[Sequence[str], str]] = (),
        run_config: Any = None,
    ) -> str:
        """Starts a run of a job, or of some of its assets; returns its id.

        `checks`, each an asset and a name, are those of its checks to run; else all of these assets.
        """
        selector: dict[str, Any] = {
            "repositoryLocationName": self.location,
            "repositoryName": self.repository,
            "pipelineName": job,
        }
        if assets:
            selector["assetSelection"] = [{"path": list(path)} for path in assets]
        if checks:
            selector["assetCheckSelection"] = [
                {"assetKey": {"path": list(path)}, "name": name} for path, name in checks
            ]
        params = {"selector": selector, "runConfigData": run_config or {}, "mode": "default"}
        answer = self.ask(_LAUNCH, params=params)["launchRun"]
        if answer["__typename"] != "LaunchRunSuccess":
            raise RuntimeError(f"Dagster did not start {job}: {answer}")
        return str(answer["run"]["runId"])

    def status(self, run_id: str) -> str:
        return str(self.ask(_RUN, id=run_id)["runOrError"]["status"])

    def wait_run(self, run_id: str, seconds: float) -> str:
        """The status with which the run ended. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while (status := self.status(run_id)) not in _ENDED:
            if time.monotonic() > deadline:
                raise TimeoutError(f"run {run_id} is still {status} after {seconds:.0f} s")
            time.sleep(0.2)
        return status

    def runs(self, job: str, *, in_flight: bool = False) -> list[dict[str, str]]:
        """The last runs of a job, the newest first."""
        filter_: dict[str, Any] = {"pipelineName": job}
        if in_flight:
            filter_["statuses"] = ["QUEUED", "NOT_STARTED", "STARTING", "STARTED", "CANCELING"]
        results: list[dict[str, str]] = self.ask(_RUNS, filter=filter_, limit=50)["runsOrError"]["results"]
        return results

    def terminate(self, run_id: str) -> None:
        """As the button on the run's page does. Dagster refuses, without an error, while the run is only starting."""
        self.ask(_TERMINATE, id=run_id)

    def end_runs(self, job: str, seconds: float) -> None:
        """Terminates the runs of a job that are in flight, and waits until none is. Raises TimeoutError.

        It asks again and again: Dagster refuses to terminate a run that is only starting.
        """
        deadline = time.monotonic() + seconds
        while runs := self.runs(job, in_flight=True):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(runs)} runs of {job} are still in flight after {seconds:.0f} s")
            for run in runs:
                self.terminate(run["runId"])
            time.sleep(0.2)

    def start_sensor(self, name: str) -> None:
        answer = self.ask(_SENSOR, selector=self._sensor(name))["startSensor"]
        if answer["__typename"] != "Sensor":
            raise RuntimeError(f"Dagster did not start sensor {name}: {answer}")

    def stop_sensor(self, name: str) -> None:
        self.ask(_STOP_SENSOR, id=self.ask(_SENSOR_STATE, selector=self._sensor(name))["sensorOrError"]["id"])

    def ticks(self, name: str) -> list[dict[str, Any]]:
        """The last ticks of a sensor, the newest first."""
        state = self.ask(_SENSOR_STATE, selector=self._sensor(name))["sensorOrError"]["sensorState"]
        return list(state["ticks"])

    def preview(self, name: str) -> dict[str, Any]:
        """What "Preview tick result" shows: `skipReason`, `runRequests`, `error`. It evaluates the sensor for real."""
        answer = self.ask(_PREVIEW, selector=self._sensor(name))["sensorDryRun"]
        if answer["__typename"] != "DryRunInstigationTick":
            raise RuntimeError(f"Dagster did not preview sensor {name}: {answer}")
        result: dict[str, Any] = answer["evaluationResult"]
        return result

    def reload(self) -> None:
        """Loads the code location anew, as "Reload definitions" does."""
        answer = self.ask(_RELOAD, location=self.location)["reloadRepositoryLocation"]
        if answer["__typename"] != "WorkspaceLocationEntry":
            raise RuntimeError(f"Dagster did not reload {self.location}: {answer}")

    def materializations(self, *path: str) -> list[dict[str, Any]]:
        """The last 100 of an asset, the newest first."""
        nodes = self.ask(_ASSETS, keys=[{"path": list(path)}])["assetNodes"]
        return list(nodes[0]["assetMaterializations"]) if nodes else []

    def _sensor(self, name: str) -> dict[str, str]:
        return {
            "repositoryLocationName": self.location,
            "repositoryName": self.repository,
            "sensorName": name,
        }


@contextlib.contextmanager
def dagster_dev(
    workspace: Path,
    home: Path,
    *,
    environment: Mapping[str, str] | None = None,
    port: int | None = None,
    load_seconds: float = 120.0,
) -> Iterator[DagsterDev]:
    """`dagster dev -w workspace` in `home` (DAGSTER_HOME), its code location loaded; all of it is gone afterwards."""
    home.mkdir(parents=True, exist_ok=True)
    settings = home / "dagster.yaml"
    if not settings.exists():
        settings.write_text("telemetry: {enabled: false}\nnux: {enabled: false}\n")
    port = port or _free_port()
    log = home / "dagster-dev.log"
    command = [sys.executable, "-m", "dagster", "dev", "-w", str(workspace), "-h", "127.0.0.1", "-p", str(port)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **(environment or {}), "DAGSTER_HOME": str(home)},
            cwd=workspace.parent,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=_restore_interrupt,
        )
    try:
        dev = DagsterDev(process, f"http://127.0.0.1:{port}", log)
        dev.wait_loaded(load_seconds)
        yield dev
    finally:
        _end(process)


def _restore_interrupt() -> None:
    # A shell's background job ignores SIGINT, and so would all that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ctrl-C, as a person would; then whatever is left of the group, which a run process may be."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
