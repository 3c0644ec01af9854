"""`/mlflow`: MLflow's pages behind the service's door."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from segserve import tracking
from segserve.server import access, mlflow
from segserve.server.access import Caller
from segserve.tokens import Scope
from tests.commands import SEGSERVE
from tests.executors import make_shell_executor
from tests.services import Service

SEARCH = "/mlflow/ajax-api/2.0/mlflow/experiments/search"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    make_shell_executor(folder / "executor")
    (folder / "images").mkdir()
    cv2.imwrite(str(folder / "images" / "a.png"), np.zeros((40, 60), np.uint8))
    return folder


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    with Service(folder / "home", folder / "at-work") as one:
        yield one


@pytest.fixture(scope="module")
def job(service: Service, folder: Path) -> dict[str, Any]:
    """A job of the local user that has succeeded."""
    body = {"executor": str(folder / "executor"), "images": [str(folder / "images")], "env": "local", "gpus": "0"}
    made = service.http.post("/jobs", json=body)
    assert made.status_code == 202, made.text
    return service.wait(made.json()["job"])


def test_the_pages_load_and_show_the_run_of_a_job(service: Service, job: dict[str, Any]) -> None:
    assert job["state"] == "succeeded", job
    assert job["mlflow"].startswith("mlflow/#/experiments/")
    front = service.http.get("/mlflow", follow_redirects=False)
    assert (front.status_code, front.headers["location"]) == (307, "/mlflow/")
    page = service.http.get("/mlflow/")
    assert "<title>MLflow</title>" in page.text
    script = page.text.split('src="static-files/static/js/')[1].split('"')[0]
    loaded = service.http.get(f"/mlflow/static-files/static/js/{script}")
    assert loaded.status_code == 200
    assert len(loaded.content) > 100_000
    run_id = job["mlflow"].rsplit("/", 1)[1]
    experiments = service.http.post(SEARCH, json={"max_results": 10}).json()["experiments"]
    wanted = {"experiment_ids": [one["experiment_id"] for one in experiments]}
    found = service.http.post("/mlflow/ajax-api/2.0/mlflow/runs/search", json=wanted).json()["runs"]
    assert [run["info"]["run_id"] for run in found] == [run_id]
    artifact = service.http.get("/mlflow/get-artifact", params={"path": "output.json", "run_id": run_id})
    assert artifact.json()["format_version"] == "0.2"
    assert artifact.headers["content-security-policy"].startswith("sandbox")


def test_what_is_none_of_its_pages(service: Service) -> None:
    for path in (
        "gateway/x",
        "ajax-api/2.0/mlflow/gateway-proxy",
        "%2e%2e/jobs",
        "static-filesx",
        "server/x",
    ):
        assert service.http.get(f"/mlflow/{path}").status_code == 404, path
    assert service.http.post("/mlflow/ajax-api/3.0/mlflow/ui-telemetry", json={}).status_code == 204


def test_who_looks_and_who_changes(folder: Path, job: dict[str, Any], service: Service) -> None:
    def token(*words: str) -> str:
        variables = {"SEGSERVE_HOME": str(folder / "guarded"), "SEGSERVE_CONFIG": "/dev/null"}
        return str(json.loads(_output(*words, **variables))["token"])

    reader = token("tokens", "add", "anna", "--scopes", "read", "--json")
    writer = token("tokens", "add", "berta", "--scopes", "read,submit", "--json")
    admin = token("tokens", "add", "clara", "--scopes", "admin", "--json")
    allow = '[repositories]\nallow = ["https://example.org/"]'
    with Service(folder / "guarded", folder / "guarded-at-work", server=allow) as guarded:
        assert guarded.http.get("/mlflow/").status_code == 401
        assert guarded.http.post(SEARCH, json={"max_results": 1}).status_code == 401
        create = "/mlflow/ajax-api/2.0/mlflow/experiments/create"
        for one, may in ((reader, 403), (writer, 403), (admin, 200)):
            with guarded.as_(one) as http:
                assert http.get("/mlflow/").status_code == 200
                assert http.post(SEARCH, json={"max_results": 1}).status_code == 200
                assert http.post(create, json={"name": "by hand"}).status_code == may
        with guarded.as_(reader) as http:
            crossed = http.post(SEARCH, json={"max_results": 1}, headers={"Origin": "https://elsewhere.example"})
            assert crossed.status_code == 403


def _output(*words: str, **variables: str) -> str:
    done = subprocess.run([*SEGSERVE, *words], env={**os.environ, **variables}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_of_a_request_leaks_and_answers_are_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []
    more = threading.Event()

    class Recorder(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(dict(self.headers))
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Set-Cookie", "mlflow=1")
            self.send_header("Server", "mlflow")
            self.end_headers()
            self.wfile.write(b"first")
            self.wfile.flush()
            assert more.wait(20)
            self.wfile.write(b"last")

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(tracking, "resolve", lambda home: tracking.TrackingServer(address, True, {}))
    desk: Any = SimpleNamespace(session=SimpleNamespace(ctx=SimpleNamespace(home=None)))
    app = FastAPI()
    app.include_router(mlflow.router(desk, Scope.READ))

    @app.middleware("http")
    async def somebody(request: Any, go_on: Any) -> Any:
        request.scope[access.STATE] = Caller("anna", frozenset({Scope.READ}))
        return await go_on(request)

    threading.Timer(0.2, more.set).start()
    answer = asyncio.run(_get(app, "/mlflow/version"))
    assert answer.text == "firstlast"
    assert {name.lower() for name in seen[0]} <= {"host", "accept", "user-agent", "accept-encoding", "connection"}
    assert "sgs_1" not in str(seen)
    assert not {"set-cookie", "server"} & set(answer.headers)
    server.shutdown()


async def _get(app: FastAPI, path: str) -> httpx.Response:
    headers = {"Cookie": "segserve=1", "Authorization": "Bearer sgs_1", "X-Forwarded-For": "1.2.3.4"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        return await client.get(path, headers=headers)


@pytest.mark.browser
def test_the_page_of_a_run_in_a_browser(service: Service, job: dict[str, Any], tmp_path: Path) -> None:
    picture, dom = tmp_path / "run.png", ""
    words = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000"]
    words += ["--window-size=1400,900", f"--user-data-dir={tmp_path / 'profile'}"]
    page = f"{service.url}/{job['mlflow']}"
    for _ in range(3):  # a cold start of everything on a loaded machine
        dom = subprocess.run([*words, "--dump-dom", page], capture_output=True, text=True, timeout=120).stdout
        if job["job"] in dom:
            break
    assert job["job"] in dom
    subprocess.run([*words, f"--screenshot={picture}", page], check=True, capture_output=True, timeout=120)
    drawn = cv2.imread(str(picture))
    assert drawn is not None
    assert len(np.unique(drawn)) > 30  # not one empty colour
