"""The embedded server and the client, against a real MLflow server in a process of its own."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from segserve import process, tracking
from segserve.errors import AccessDenied, NotFound, TrackingUnreachable, UsageError
from segserve.layout import Home
from segserve.tracking import client, record, rest
from tests.pythons import make_environment
from tests.waiting import wait_for

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A home with a server, for all tests that don't harm it. Its name needs care in URIs."""
    home = Home(tmp_path_factory.mktemp("a home%20#é")).ensure()
    tracking.ensure_server(home)
    yield home
    tracking.stop_server(home)


@pytest.fixture
def tracker(served: Home) -> tracking.Tracker:
    return tracking.Tracker(tracking.resolve(served), served)


@pytest.fixture
def run(tracker: tracking.Tracker) -> tracking.RunHandle:
    return tracker.create_run(tracker.experiment("tests"), name="a run")


@pytest.fixture
def stopping(home: Home) -> Iterator[Home]:
    yield home
    tracking.stop_server(home)


def data_of(tracker: tracking.Tracker, run_id: str) -> dict[str, dict[str, Any]]:
    """params, tags, metrics as the server has them."""
    data = call(tracker.server.uri, f"/api/2.0/mlflow/runs/get?run_id={run_id}")["run"]["data"]
    return {kind: {e["key"]: e["value"] for e in data.get(kind, [])} for kind in ("params", "tags", "metrics")}


def call(uri: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(uri + path, data, {"Content-Type": "application/json", **(headers or {})})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


def pid_of(home: Home) -> int:
    known = record.read(home)
    assert known is not None
    return known.identity.pid


# --- which server ---------------------------------------------------------------------------------------------------


def test_importing_tracking_imports_no_mlflow() -> None:
    code = (
        "import sys, segserve.tracking; sys.exit(any(n.split('.')[0] in ('mlflow', 'requests') for n in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("uri", ["sqlite:///x.db", "file:///x", "./mlruns", "databricks", "databricks://p", "http://"])
def test_only_http_servers_are_taken(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UsageError, match="over http or https") as caught:
        tracking.external()
    assert "mlflow server" in caught.value.hint


def test_credentials_leave_the_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:p%40ss@host.example:8443/ml/")
    server = tracking.external()
    assert server is not None
    assert server.uri == "https://host.example:8443/ml"
    assert not server.embedded
    assert server.variables["MLFLOW_TRACKING_URI"] == server.uri
    assert server.variables["MLFLOW_TRACKING_USERNAME"] == "me"
    assert server.variables["MLFLOW_TRACKING_PASSWORD"] == "p@ss"
    assert "p@ss" not in repr(server)


def test_credentials_come_from_the_environment_or_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    file = Path.home() / ".mlflow" / "credentials"
    file.parent.mkdir(exist_ok=True)  # mlflow itself makes it, in other tests
    file.write_text("[mlflow]\nmlflow_tracking_username = filed\nmlflow_tracking_password = a%b\n")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host.example")
    try:
        server = tracking.external()
        assert server is not None
        assert server.variables["MLFLOW_TRACKING_USERNAME"] == "filed"
        assert server.variables["MLFLOW_TRACKING_PASSWORD"] == "a%b"
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "from-the-environment")
        server = tracking.external()
        assert server is not None
        assert server.variables["MLFLOW_TRACKING_USERNAME"] == "from-the-environment"
    finally:
        shutil.rmtree(file.parent)


def test_unsupported_ways_to_sign_in_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host.example")
    monkeypatch.setenv("MLFLOW_TRACKING_AWS_SIGV4", "true")
    with pytest.raises(UsageError, match="MLFLOW_TRACKING_AWS_SIGV4"):
        tracking.external()


def test_children_of_an_embedded_server_bypass_proxies(served: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "intranet.example")
    server = tracking.resolve(served)
    assert server.embedded
    assert server.variables["NO_PROXY"] == "intranet.example,127.0.0.1,localhost"
    assert tracking.Tracker(server, served).experiment("Default") == "0"


# --- runs -----------------------------------------------------------------------------------------------------------


def test_a_run_from_beginning_to_end(served: Home, tracker: tracking.Tracker, tmp_path: Path) -> None:
    experiment = tracker.experiment("round trip")
    assert tracker.experiment("round trip") == experiment
    run = tracker.create_run(experiment, name="r", tags={"segserve.commit": "abc"}, params={"p": "1"})
    assert tracker.get_status(run.run_id) == "RUNNING"
    assert run.url == f"{tracker.server.uri}/#/experiments/{experiment}/runs/{run.run_id}"
    tracker.set_tags(run.run_id, {f"t{i}": "x" for i in range(150)})
    assert tracker.log_params(run.run_id, {f"p{i}": "y" for i in range(150)}) == ()
    tracker.log_metrics(run.run_id, {"objects": 3, "nothing": float("nan"), "seconds/total": 1.5})
    (tmp_path / "r" / "overlays").mkdir(parents=True)
    (tmp_path / "r" / "output.json").write_text("{}")
    (tmp_path / "r" / "overlays" / "000.png").write_bytes(b"png")
    tracker.log_folder(run.run_id, tmp_path / "r")
    tracker.log_file(run.run_id, tmp_path / "r" / "output.json", tracking.EXECUTOR_LOG)
    tracker.finish(run.run_id, "FINISHED")

    assert tracker.get_status(run.run_id) == "FINISHED"
    data = data_of(tracker, run.run_id)
    assert data["tags"]["segserve.commit"] == "abc"
    assert len([name for name in data["tags"] if name.startswith("t")]) == 150
    assert len(data["params"]) == 151
    assert data["metrics"]["objects"] == 3
    assert data["metrics"]["seconds/total"] == 1.5
    folder = tracking.local_path(run.artifact_uri)
    assert folder is not None
    assert folder == tracker.local_artifacts(run.run_id)
    assert folder.is_relative_to(served.artifacts)
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == {"output.json", "overlays/000.png", "logs/executor.log"}
    listed = call(tracker.server.uri, f"/api/2.0/mlflow/artifacts/list?run_id={run.run_id}&path=overlays")
    assert [file["path"] for file in listed["files"]] == ["overlays/000.png"]


def test_a_later_command_finds_the_run_by_its_uri(served: Home, run: tracking.RunHandle) -> None:
    known = record.read(served)
    assert known is not None
    later = tracking.open_tracker(served, known.uri)
    assert later.server.embedded
    assert later.run(run.run_id) == run


def test_a_deleted_experiment_comes_back(tracker: tracking.Tracker) -> None:
    experiment = tracker.experiment("doomed")
    call(tracker.server.uri, "/api/2.0/mlflow/experiments/delete", {"experiment_id": experiment})
    assert tracker.experiment("doomed") == experiment
    tracker.create_run(experiment, name="alive")


def test_secrets_long_values_and_odd_names(tracker: tracking.Tracker, run: tracking.RunHandle) -> None:
    tracker.log_params(
        run.run_id,
        {
            "url": "https://me:hunter2@host/x",
            "hf_token": "correct horse battery",
            "long": "x" * 10_000,
            "a?b": "1",
            "a!b": "2",
            "../../up//x": "3",
        },
    )
    tracker.set_tags(run.run_id, {"segserve.message": "failed: --password hunter2 password=hunter2", "l": "y" * 9000})
    data = data_of(tracker, run.run_id)
    assert data["params"]["url"] == "https://***@host/x"
    assert data["params"]["hf_token"] == "***"
    assert len(data["params"]["long"]) == client.MAX_PARAM
    assert data["params"]["long"].endswith("… (shortened, 10000 characters)")
    assert (data["params"]["a_b"], data["params"]["a_b_2"], data["params"]["up/x"]) == ("1", "2", "3")
    assert "password=***" in data["tags"]["segserve.message"]
    assert len(data["tags"]["l"]) == client.MAX_TAG


def test_parameters_that_the_executor_logged_differently_stay(
    tracker: tracking.Tracker, run: tracking.RunHandle
) -> None:
    tracker.log_params(run.run_id, {"threshold": "0.5"})
    assert tracker.log_params(run.run_id, {"threshold": "0.6", "new": "1"}) == ("threshold",)
    assert data_of(tracker, run.run_id)["params"] == {"threshold": "0.5", "new": "1"}


def test_links_in_the_artifacts_are_not_followed(
    tracker: tracking.Tracker, run: tracking.RunHandle, tmp_path: Path
) -> None:
    outside, ours = tmp_path / "outside", tmp_path / "ours"
    (ours / "overlays").mkdir(parents=True)
    outside.mkdir()
    (outside / "secret").write_text("precious")
    (ours / "overlays" / "000.png").write_text("png")
    (ours / "output.json").write_text("{}")
    artifacts = tracker.local_artifacts(run.run_id)
    assert artifacts is not None
    artifacts.mkdir(parents=True)
    (artifacts / "overlays").symlink_to(outside)
    (artifacts / "output.json").symlink_to(outside / "secret")
    (artifacts / "leak").symlink_to(outside / "secret")
    tracker.log_folder(run.run_id, ours)
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_text() == "precious"
    assert (artifacts / "output.json").read_text() == "{}"
    with pytest.raises(NotFound):
        tracker.download(run.run_id, "leak", tmp_path / "got")
    tracker.download(run.run_id, "", tmp_path / "all")
    assert sorted(p.name for p in (tmp_path / "all").rglob("*")) == ["000.png", "output.json", "overlays"]
    with pytest.raises(UsageError):
        tracker.download(run.run_id, "../../mlflow.db", tmp_path / "got")


def test_downloads(tracker: tracking.Tracker, run: tracking.RunHandle, tmp_path: Path) -> None:
    (tmp_path / "model.txt").write_text("weights")
    tracker.log_file(run.run_id, tmp_path / "model.txt", "models/model.txt")
    got = tracker.download_uri(f"runs:/{run.run_id}/models/model.txt", tmp_path / "a")
    assert got == tmp_path / "a" / "model.txt"
    assert got.read_text() == "weights"
    assert (tracker.download(run.run_id, "models", tmp_path / "b") / "model.txt").read_text() == "weights"
    with pytest.raises(NotFound, match="no artifact 'nothing'"):
        tracker.download(run.run_id, "nothing", tmp_path / "c")


def test_twenty_clients_log_at_once(served: Home) -> None:
    def log(number: int) -> str:
        tracker = tracking.Tracker(tracking.resolve(served), served)
        run = tracker.create_run(tracker.experiment("crowd"), name=str(number), params={"n": str(number)})
        for step in range(3):
            tracker.log_metrics(run.run_id, {"m": number}, step=step)
            tracker.set_tags(run.run_id, {f"t{step}": "x"})
        tracker.finish(run.run_id, "FINISHED")
        return tracker.get_status(run.run_id)

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(log, range(20))) == ["FINISHED"] * 20


# --- the server's edges ---------------------------------------------------------------------------------------------


def test_the_server_has_the_ui_and_keeps_its_guards(served: Home) -> None:
    uri = tracking.ui(served)
    with urllib.request.urlopen(uri, timeout=30) as answer:
        page = answer.read().decode()
    script = page.split('src="', 1)[1].split('"', 1)[0].lstrip("./")
    with urllib.request.urlopen(f"{uri}/{script}", timeout=30) as answer:
        assert "javascript" in answer.headers["Content-Type"]
    search = "/api/2.0/mlflow/experiments/search"
    for headers in ({"Host": "rebound.example"}, {"Origin": "https://evil.example"}):
        with pytest.raises(urllib.error.HTTPError) as caught:
            call(uri, search, {"max_results": 1}, headers)
        assert caught.value.code == 403
    with pytest.raises(urllib.error.HTTPError) as caught:  # of the FastAPI application, which runs shell commands
        call(uri, "/ajax-api/3.0/mlflow/assistant/config")
    assert caught.value.code == 404


def test_the_home_stays_private(served: Home) -> None:
    for path in (served.mlflow_database, served.tracking_server, served.logs / "tracking.log"):
        assert path.stat().st_mode & 0o077 == 0, path
    environment = Path(f"/proc/{pid_of(served)}/environ").read_bytes().split(b"\0")
    assert not [entry for entry in environment if entry.startswith((b"SEGSERVE_", b"UV_", b"PIP_"))]


def start_in_a_process(home: Home) -> subprocess.Popen[str]:
    code = "from segserve import layout, tracking; print(tracking.ensure_server(layout.home()))"
    environment = {**os.environ, "SEGSERVE_HOME": str(home.path)}
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def test_the_life_of_a_server(stopping: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty commands start one; a dead, a hung, an outdated one is replaced; it ends by itself, unless held."""
    home = stopping
    commands = [start_in_a_process(home) for _ in range(20)]
    addresses = {command.communicate()[0].strip() for command in commands}
    assert len(addresses) == 1
    log = home.logs / "tracking.log"
    assert log.read_text().count("segserve: MLflow") == 1
    first = pid_of(home)
    assert addresses == {tracking.ensure_server(home)}
    assert pid_of(home) == first

    tracker = tracking.Tracker(tracking.resolve(home), home)
    run = tracker.create_run(tracker.experiment("survivor"), name="r", params={"kept": "yes"})
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: not tracking.server_status(home).running)
    tracker.finish(run.run_id, "KILLED")  # finds a new server by itself
    second = pid_of(home)
    assert second != first
    assert data_of(tracker, run.run_id)["params"] == {"kept": "yes"}
    assert addresses == {tracker.server.uri}, "the port stays, so that links and running executors go on"

    os.kill(second, signal.SIGSTOP)
    tracking.ensure_server(home, patience=0.5)
    third = pid_of(home)
    assert third != second
    assert tracker.get_status(run.run_id) == "KILLED"

    known = record.read(home)
    assert known is not None
    replace(known, mlflow="3.0.0").write(home)  # as if an older mlflow had started it
    with tracking.hold(home):
        tracking.ensure_server(home)
        assert pid_of(home) == third, "a job uses it"
    monkeypatch.setenv("SEGSERVE_TRACKING_IDLE_MINUTES", str(1 / 60))
    with tracking.hold(home):
        pass
    tracking.ensure_server(home)
    fourth = pid_of(home)
    assert fourth != third

    with tracking.hold(home) as descriptor:
        child = subprocess.Popen(["sleep", "60"], pass_fds=[descriptor])
    time.sleep(2.5)
    held = record.read(home)
    assert held is not None
    assert held.identity.alive, "a process that inherited the descriptor holds it"
    child.kill()
    child.wait()
    wait_for(lambda: not held.identity.alive)
    assert not tracking.server_status(home).running


def test_a_port_that_is_taken_is_left_alone(stopping: Home) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:
        gone = replace(process.identity(), start_time=1.0)
        port: int = other.server_address[1]
        record.Record(gone, "x", "host", "3.0.0", (port,), 900.0, 1.0, ready=True).write(stopping)
        assert not tracking.stop_server(stopping)
        uri = f"http://127.0.0.1:{port}"
        moved = tracking.open_tracker(stopping, uri).server
    assert moved.embedded
    assert moved.uri != uri
    assert tracking.open_tracker(stopping, uri).server == moved, "the old address still means this home"


def test_a_database_that_is_none_is_an_error_with_the_log(home: Home) -> None:
    home.mlflow_database.write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(TrackingUnreachable) as caught:
        tracking.ensure_server(home)
    assert "not a database" in caught.value.quote
    assert caught.value.log == home.logs / "tracking.log"


def test_a_server_that_was_killed_while_it_made_its_database(stopping: Home) -> None:
    """Half a schema is nothing that alembic could go on with."""
    home = stopping
    words = [sys.executable, "-P", "-m", "segserve.tracking", str(home.path), "--idle=60"]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (home.logs / "killed.log").open("wb") as log:
        killed = subprocess.Popen(words, env=variables, stdout=log, stderr=log)
        while not _tables(home.mlflow_database) > 10:  # of some sixty
            assert killed.poll() is None, (home.logs / "killed.log").read_text()
            time.sleep(0.001)
        killed.kill()
        killed.wait()
    tracker = tracking.Tracker(tracking.resolve(home), home)
    assert tracker.experiment("Default") == "0"


def _tables(path: Path) -> int:
    if not path.exists():
        return 0
    try:
        with contextlib.closing(sqlite3.connect(path)) as database:
            return int(database.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone()[0])
    except sqlite3.OperationalError:  # it is being written
        return 0


OLDER = """
import sys
from alembic import command
from alembic.script import ScriptDirectory
from mlflow.store.db.utils import InitialBase, _get_alembic_config, create_sqlalchemy_engine
engine = create_sqlalchemy_engine("sqlite:///mlflow.db")
InitialBase.metadata.create_all(engine)
config = _get_alembic_config("sqlite:///mlflow.db")
older = [r.revision for r in ScriptDirectory.from_config(config).walk_revisions()][8]
with engine.begin() as connection:
    config.attributes["connection"] = connection
    command.upgrade(config, older)
    connection.exec_driver_sql(
        "insert into experiments (name, artifact_location, lifecycle_stage, creation_time, last_update_time) "
        "values ('from before', 'file:///nowhere', 'active', 1, 1)"
    )
"""


@pytest.mark.slow
def test_an_older_database_is_upgraded_once_and_a_newer_one_refused(stopping: Home) -> None:
    home = stopping
    subprocess.run([sys.executable, "-c", OLDER], cwd=home.path, check=True)
    tracker = tracking.Tracker(tracking.resolve(home), home)
    assert tracker.experiment("from before") == "1"
    copies = list(home.path.glob("mlflow.db.before-*"))
    assert len(copies) == 1
    with sqlite3.connect(copies[0]) as database:
        assert database.execute("select name from experiments").fetchall() == [("from before",)]
    tracking.stop_server(home)
    with sqlite3.connect(home.mlflow_database) as database:
        database.execute("update alembic_version set version_num = 'ffffffffffff'")
    with pytest.raises(TrackingUnreachable) as caught:
        tracking.ensure_server(home)
    assert "written by a newer MLflow" in caught.value.quote
    with sqlite3.connect(copies[0]) as database:
        (older,) = database.execute("select version_num from alembic_version").fetchone()
    with sqlite3.connect(home.mlflow_database) as database:  # the steps from there have been done: they must fail
        database.execute("update alembic_version set version_num = ?", (older,))
    with pytest.raises(TrackingUnreachable) as caught:
        tracking.ensure_server(home)
    assert "could not be upgraded" in caught.value.log.read_text()
    with sqlite3.connect(home.mlflow_database) as database:
        assert database.execute("select name from experiments where experiment_id = 1").fetchone() == ("from before",)
        assert database.execute("select version_num from alembic_version").fetchone() == (older,)


# --- external servers -----------------------------------------------------------------------------------------------


class _Gate(BaseHTTPRequestHandler):
    """A reverse proxy that wants a user and a password; `/moved/…` is redirected to another host."""

    behind = ""

    def _serve(self) -> None:
        if self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.end_headers()
            return
        expected = "Basic " + base64.b64encode(b"me:hunter2").decode()
        if self.headers["Authorization"] != expected:
            self.send_response(401)
            self.end_headers()
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
        headers = {name: value for name, value in self.headers.items() if name in ("Content-Type",)}
        request = urllib.request.Request(self.behind + self.path, body, headers, method=self.command)
        try:
            answer: Any = urllib.request.urlopen(request, timeout=30)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            content = answer.read()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = _serve

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def gate(served: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(_Gate, "behind", tracking.ensure_server(served))
    with ThreadingHTTPServer(("127.0.0.1", 0), _Gate) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_an_external_server_with_credentials_and_proxied_artifacts(
    gate: str, home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hunter2@{gate}")
    tracker = tracking.Tracker(tracking.resolve(home), home)
    assert not home.tracking_server.exists(), "no server of ours is started"
    body = {"name": "proxied", "artifact_location": "mlflow-artifacts:/proxied"}
    call(_Gate.behind, "/api/2.0/mlflow/experiments/create", body)
    run = tracker.create_run(tracker.experiment("proxied"), name="r")
    assert "hunter2" not in f"{run} {tracker.server} {tracking.external()}"
    assert tracker.local_artifacts(run.run_id) is None
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "output.json").write_text("{}")
    tracker.log_folder(run.run_id, tmp_path / "r", "sub")
    got = tracker.download(run.run_id, "sub", tmp_path / "got")
    assert (got / "output.json").read_text() == "{}"


def test_wrong_credentials_are_named(gate: str, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:wrong@{gate}")
    with pytest.raises(AccessDenied) as caught:
        tracking.Tracker(tracking.resolve(home), home).experiment("x")
    assert "MLFLOW_TRACKING_USERNAME" in caught.value.hint
    assert "wrong" not in str(caught.value)


def test_redirects_are_not_followed(gate: str, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hunter2@{gate}/moved")
    with pytest.raises(TrackingUnreachable, match=r"redirects to http://127\.0\.0\.1:9/elsewhere"):
        tracking.Tracker(tracking.resolve(home), home).experiment("x")


def test_a_server_that_is_down(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest, "PAUSES_S", (0.01, 0.01))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(TrackingUnreachable, match="refused") as caught:
        tracking.Tracker(tracking.resolve(home), home).experiment("x")
    assert caught.value.exit_code == 6
    assert "MLFLOW_TRACKING_URI" in caught.value.hint


def test_a_server_that_is_none(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"<ht>")

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_address[1]}")
        with pytest.raises(TrackingUnreachable, match="not that of an MLflow server"):
            tracking.Tracker(tracking.resolve(home), home).experiment("x")
        server.shutdown()


# --- what executors pin ---------------------------------------------------------------------------------------------

OLD_CLIENT = """
import mlflow
with mlflow.start_run():
    mlflow.log_param("p", 1)
    mlflow.log_artifact("output.json")
assert mlflow.__version__ == "1.30.1"
"""


@pytest.mark.network
def test_mlflow_1_30_on_python_3_8_logs_to_it(
    tracker: tracking.Tracker, run: tracking.RunHandle, tmp_path: Path
) -> None:
    programs = make_environment(tmp_path / "old", "3.8", "mlflow==1.30.1", "setuptools<70")
    (tmp_path / "output.json").write_text("{}")
    environment = {**os.environ, **tracker.server.variables, "MLFLOW_RUN_ID": run.run_id}
    subprocess.run([programs / "python", "-c", OLD_CLIENT], cwd=tmp_path, env=environment, check=True)
    artifacts = tracker.local_artifacts(run.run_id)
    assert artifacts is not None
    assert (artifacts / "output.json").read_text() == "{}"
    assert data_of(tracker, run.run_id)["params"] == {"p": "1"}
