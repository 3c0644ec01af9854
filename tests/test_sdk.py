"""The kit and segserve together: original names, images done, logging to an MLflow server that has its moments."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from segserve import api
from segserve.backends import local
from segserve.layout import AttemptDir
from segserve.model import Progress
from tests.repositories import make_repository

pytest_plugins = ["tests.command_fixtures"]

MLPROJECT = """\
name: squares
python_env: python_env.yaml
entry_points:
  main:
    parameters:
      input_images: path
      pause: {type: float, default: 0}
    command: "python main.py {input_images} --pause {pause}"
  info:
    command: "python main.py --info"
"""
MAIN = '''\
import json
import time

import numpy as np
from segserve_sdk import Runner


class Squares(Runner):
    """One object per image; it writes down what it was told of the images."""

    name = "squares"
    pause: float = 0.0

    def load_assets(self):
        self.seen = []

    def segment(self, image):
        time.sleep(self.pause)
        self.seen.append([self.staged[0].name, self.staged[0].t])
        with open("names.json", "w") as stream:
            json.dump(self.seen, stream)
        labels = np.zeros(image.shape[:2], np.int32)
        labels[2:9, 3:12] = 1
        return labels, [0.5]


Squares.main()
'''


class Recording:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.progressed: list[tuple[int, int, str]] = []

    def phase(self, text: str) -> None: ...
    def note(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def line(self, text: str) -> None: ...
    def progress(self, done: int, total: int, what: str) -> None:
        self.progressed.append((done, total, what))


@pytest.fixture
def executor(tmp_path: Path) -> Path:
    make_repository(tmp_path / "squares", {"MLProject": MLPROJECT, "python_env.yaml": "", "main.py": MAIN})
    return tmp_path / "squares"


@pytest.mark.usefixtures("python_on_path")
def test_names_and_progress_under_segserve(executor: Path, images: Path, tmp_path: Path) -> None:
    reporter = Recording()
    with api.session(reporter=reporter) as session:
        try:
            request = session.request(str(executor), [images], kind="local", parameters={"pause": 0.5}, keep=True,
                                      output=tmp_path / "result")  # fmt: skip
            result = session.run(request)
        finally:
            session.stop_ui()
        assert isinstance(result, api.Result)
        attempt = session.ctx.home.job(result.job_id).attempt(1)
    names = json.loads((attempt.checkout / "names.json").read_text())
    assert names == [["cells1.png", None], ["cells2.png", None], ["cells10.png", None]]
    executors = [said for said in reporter.progressed if said[2] == "images"]
    assert executors[-1] == (3, 3, "images")
    assert len(executors) > 2
    assert executors == sorted(executors)
    assert result.counts == (1, 1, 1)
    assert json.loads((tmp_path / "result" / "output.json").read_text())["model"].count("#") == 1


@pytest.mark.usefixtures("python_on_path")
def test_a_running_job_says_how_far_it_is(executor: Path, images: Path, tmp_path: Path) -> None:
    with api.session() as session:
        try:
            started = session.run(session.request(str(executor), [images], kind="local", parameters={"pause": 30},
                                                  detach=True, output=tmp_path / "result"))  # fmt: skip
            assert isinstance(started, api.Started)
            attempt = session.ctx.home.job(started.job_id).attempt(1)
            for line in session.logs(started.job_id, follow=True):
                if "loaded in" in line:
                    break
            while local.progress(attempt) is None:  # the next thing that it does; ends with the test's own time limit
                assert not attempt.outcome.exists()
            (row,) = session.jobs()
            assert row["progress"] == {"done": 0, "total": 3}
            assert session.show(started.job_id)["progress"] == {"done": 0, "total": 3}
            session.cancel(started.job_id)
            assert session.show(started.job_id)["progress"] is None
        finally:
            session.stop_ui()


NONSENSE = ["", "{", "[1, 2]", '{"done": 3}', '{"done": 3, "total": 2}', '{"done": -1, "total": 2}', "[" * 250, "\x00"]
NONSENSE += ['{"done": true, "total": 1}', '{"done": 1, "total": 1e3}', '{"done": 1, "total": ' + "9" * 5000 + "}"]


@pytest.mark.parametrize("text", NONSENSE)
def test_progress_that_makes_no_sense_is_not_believed(text: str, tmp_path: Path) -> None:
    attempt = AttemptDir(tmp_path)
    attempt.progress.write_text(text, encoding="latin-1")
    assert local.progress(attempt) is None


def test_progress_that_is_no_file_is_not_opened(tmp_path: Path) -> None:
    attempt = AttemptDir(tmp_path)
    assert local.progress(attempt) is None
    (tmp_path / "elsewhere").write_text('{"done": 1, "total": 2}')
    attempt.progress.symlink_to(tmp_path / "elsewhere")
    assert local.progress(attempt) is None
    attempt.progress.unlink()
    attempt.progress.mkdir()
    assert local.progress(attempt) is None
    attempt.progress.rmdir()
    (tmp_path / "elsewhere").rename(attempt.progress)
    assert local.progress(attempt) == Progress(1, 2)


class _Moody(ThreadingHTTPServer):
    """Stands in front of a real MLflow server and answers 503 so many times."""

    daemon_threads = True

    def __init__(self, behind: str, refusals: int) -> None:
        super().__init__(("127.0.0.1", 0), _Forward)
        self.behind, self.refusals, self.refused = behind, refusals, 0


class _Forward(BaseHTTPRequestHandler):
    server: _Moody

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.refused < self.server.refusals:
            self.server.refused += 1
            self.send_error(503)
            return
        connection = HTTPConnection(self.server.behind)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.headers.get("Content-Type", ""))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_PUT = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def moody(mlflow_server: str) -> Iterator[_Moody]:
    with _Moody(mlflow_server.removeprefix("http://").rstrip("/"), 2) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


def test_logging_survives_a_server_in_trouble(
    executor: Path, images: Path, moody: _Moody, monkeypatch: pytest.MonkeyPatch, mlflow_server: str
) -> None:
    """Plain Python with the variables that `mlflow run` sets; mlflow's own retries are off: ours are at work."""
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_server)
    run = client.create_run(client.create_experiment("moody"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{moody.server_address[1]}")
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    done = subprocess.run([sys.executable, "main.py", str(images)], cwd=executor, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert moody.refused == 2
    assert "MLflow does not answer" in done.stdout
    assert "output.json" in [item.path for item in client.list_artifacts(run.info.run_id)]
