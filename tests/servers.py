"""A real MLflow server on loopback, one per test session, for tests that launch executors."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def free_port() -> int:
    """A TCP port on loopback that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve_mlflow(folder: Path) -> Iterator[str]:
    """Start a server over sqlite in a new `folder`, yield its address, end it. The start takes some seconds."""
    folder.mkdir()
    address = f"127.0.0.1:{free_port()}"
    # What `mlflow server` does, in one process: that halves the start.
    program = "import sys; from mlflow.server import app; app.run('127.0.0.1', int(sys.argv[1]), threaded=True)"
    variables = {
        **os.environ,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{folder}/mlflow.db",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": f"file://{folder}/artifacts",
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",  # for experiments at mlflow-artifacts:/…
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": f"file://{folder}/proxied",
    }
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-c", program, address.split(":")[1]],
            cwd=folder,
            env=variables,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 90
        while not _healthy(address):
            assert server.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.2)
        yield f"http://{address}"
    finally:
        os.killpg(server.pid, 9)
        server.wait()


def _healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/health", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def call(server: str, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """One call of MLflow's REST interface, without the seconds that importing mlflow costs."""
    request = urllib.request.Request(
        f"{server}/api/2.0/mlflow/{path}",
        data=None if body is None else json.dumps(body).encode(),
        method=method,
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return dict(json.load(answer))


def new_run(server: str) -> str:
    """The id of a new run in the default experiment."""
    made = call(server, "POST", "runs/create", {"experiment_id": "0", "start_time": int(time.time() * 1000)})
    return str(made["run"]["info"]["run_id"])


def status_of(server: str, run_id: str) -> str:
    """`RUNNING`, `FINISHED`, `FAILED` or `KILLED`."""
    return str(call(server, "GET", f"runs/get?run_id={run_id}")["run"]["info"]["status"])
