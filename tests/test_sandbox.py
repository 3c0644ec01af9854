"""Executors that are shut in by a real bubblewrap, with a real MLflow behind the gate."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from segserve import tracking
from segserve.layout import Home
from tests.commands import Command
from tests.executors import MLPROJECT
from tests.repositories import make_repository

pytest_plugins = ["tests.command_fixtures"]
pytestmark = pytest.mark.sandbox

# An executor that does what `deeds` says, one Python line each, and logs how each of them ended.
PROBE = """\
import glob, json, os, sys, urllib.request
import mlflow

images = sorted(glob.glob(os.path.join(sys.argv[1], "*.png")))
said = {}
for name, deed in json.load(open("deeds.json")).items():
    try:
        said[name] = repr(eval(deed))
    except BaseException as error:
        said[name] = f"{type(error).__name__}: {error}"
ring = [[1, 1], [1, 9], [9, 9], [9, 1]]
cell = {"label": "Cell", "type": "Polygon", "contour_coordinates": ring}
with open("output.json", "w") as stream:
    json.dump({"model": "probe", "format_version": "0.2", "segmentation_data": [[cell] for _ in images]}, stream)
with open("said.json", "w") as stream:
    json.dump(said, stream)
with mlflow.start_run():
    mlflow.log_metric("cells", len(images))
    mlflow.log_artifact("said.json")
    mlflow.log_artifact("output.json")
"""

CONFIG = """\
[sandbox]
kind = "bubblewrap"
{sandbox}

[executors.probe]
ref = "{ref}"
network = "{network}"
"""


class Probe:
    """A repository with the probe, a configuration that shuts it in, and runs of it."""

    def __init__(self, folder: Path, segserve: Command, images: Path) -> None:
        self.folder, self.segserve, self.images = folder, segserve, images
        self.config = folder / "config.toml"
        self.repository = folder / "probe"

    def make(self, deeds: dict[str, str], *, network: str = "none", sandbox: str = "") -> None:
        make_repository(
            self.repository,
            {
                "MLProject": MLPROJECT.format(name="probe"),
                "python_env.yaml": 'python: "3.11"\ndependencies:\n  - mlflow-skinny\n',
                "main.py": PROBE,
                "deeds.json": json.dumps(deeds),
            },
        )
        text = CONFIG.format(ref=self.repository, network=network, sandbox=sandbox)
        self.config.write_text(text)
        os.environ["SEGSERVE_CONFIG"] = str(self.config)

    def run(self, *words: str) -> dict[str, str]:
        """What the deeds came to."""
        done = self.segserve("run", self.repository, self.images, "--json", "--keep", *words)
        assert done.code == 0, done.err
        self.document = done.document
        return self.said()

    def said(self) -> dict[str, str]:
        checkouts = Home(Path(os.environ["SEGSERVE_HOME"])).jobs.glob("*/*/checkout/said.json")
        newest = max(checkouts, key=lambda path: path.stat().st_mtime_ns)
        return dict(json.loads(newest.read_text()))

    @property
    def log(self) -> str:
        logs = Home(Path(os.environ["SEGSERVE_HOME"])).jobs.glob("*/*/log")
        return max(logs, key=lambda path: path.stat().st_mtime_ns).read_text()


@pytest.fixture
def probe(here: Path, segserve: Command, images: Path) -> Probe:
    return Probe(here, segserve, images)


class Outside:
    """A server on this machine that stands for the internet; it counts who came."""

    def __init__(self) -> None:
        outside = self
        self.visits: list[str] = []

        class Page(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outside.visits.append(self.path)
                self.send_response(200)
                self.send_header("Content-Length", "7")
                self.end_headers()
                self.wfile.write(b"weights")

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def outside() -> Iterator[Outside]:
    one = Outside()
    yield one
    one.close()


@pytest.mark.network  # its environment has an MLflow
def test_what_an_executor_sees_and_may_write(probe: Probe, tmp_path: Path, outside: Outside) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    home = Path(os.environ["SEGSERVE_HOME"])
    os.environ["AWS_SECRET_ACCESS_KEY"] = "hunter3"
    port = outside.url.rsplit(":", 1)[1]
    probe.make(
        {
            "secret": f"open({str(secret)!r}).read()",
            "journal": f"os.listdir({str(home)!r})",
            "jobs": f"os.listdir({str(home / 'jobs')!r})",
            "artifacts": f"[os.listdir(folder) for folder in glob.glob({str(home / 'mlartifacts' / '*')!r})]",
            "shadow": "open('/etc/shadow').read()",
            "system": "open('/usr/marked', 'w')",
            "root": "os.mkdir('/marked')",
            "inputs": "open(os.path.join(sys.argv[1], 'more.png'), 'w')",
            "environment": "open(os.path.join(sys.prefix, 'marked'), 'w')",
            "cache": "open(os.path.join(os.environ['CACHE_FOLDER'], 'marked'), 'w')",
            "home": "open(os.path.join(os.environ['HOME'], 'marked'), 'w')",
            "scratch": "open('/tmp/marked', 'w').write('x')",
            "checkout": "open('marked', 'w').write('x')",
            "processes": "[name for name in os.listdir('/proc') if name.isdigit()]",
            "capabilities": "[line for line in open('/proc/self/status') if line.startswith('CapEff')]",
            "devices": "sorted(os.listdir('/dev'))",
            "network": f"__import__('socket').create_connection(('127.0.0.1', {port}), 5)",
            "mlflow": "[a for a in __import__('mlflow').search_experiments()]",
            "variables": "[n for n in os.environ if n.startswith(('AWS', 'XDG')) or n.endswith('PASSWORD')]",
            "git": "__import__('subprocess').check_output(['git', 'rev-parse', 'HEAD'], text=True).strip()",
        }
    )
    said = probe.run()
    gone = "FileNotFoundError"
    assert said["secret"].startswith(gone)
    assert "segserve.db" not in said["journal"]
    assert len(eval(said["jobs"])) == 1  # its own
    assert [len(runs) for runs in eval(said["artifacts"])] == [1]
    assert said["shadow"].startswith(gone)
    for name in ("system", "root", "inputs", "environment", "cache", "home"):
        assert "Read-only file system" in said[name], (name, said[name])
    assert (said["scratch"], said["checkout"]) == ("1", "1")
    assert not Path("/tmp/marked").exists()
    assert len(eval(said["processes"])) < 10
    assert "0000000000000000" in said["capabilities"]
    assert not [name for name in eval(said["devices"]) if name.startswith(("nvidia", "sd", "nvme", "vd"))]
    assert said["network"].startswith("ConnectionRefusedError")
    assert "may only use its own run" in said["mlflow"]
    assert said["variables"] == "['MLFLOW_TRACKING_PASSWORD']"
    assert len(eval(said["git"])) == 40
    assert outside.visits == []
    run = probe.document["mlflow"]
    server, _, rest = run.partition("/#/")
    assert tracking.open_tracker(Home(home), server).get_status(rest.rsplit("/", 1)[1]) == "FINISHED"


# urllib goes to loopback, where our outside stands, without a proxy; so this is what it does for every other host.
FETCH = (
    "(lambda c: (c.request('GET', '%s'), c.getresponse())[1].read())"
    "(__import__('http.client').client.HTTPConnection(*os.environ['http_proxy'][7:].split(':')))"
)
TUNNEL = (
    "(lambda c: (c.set_tunnel('127.0.0.1', %s), c.request('GET', '/tunnel'), c.getresponse())[2].read())"
    "(__import__('http.client').client.HTTPConnection(*os.environ['https_proxy'][7:].split(':')))"
)


@pytest.mark.network
def test_the_network_of_a_first_run_fills_a_cache_that_is_read_only_afterwards(probe: Probe, outside: Outside) -> None:
    weights = "os.path.join(os.environ['CACHE_FOLDER'], 'weights')"
    port = outside.url.rsplit(":", 1)[1]
    probe.make(
        {
            "fetch": FETCH % f"{outside.url}/model.pt",
            "tunnel": TUNNEL % port,
            "keep": f"open({weights}, 'a').write('weights')",
            "read": f"open({weights}).read()",
            "directly": f"__import__('socket').create_connection(('127.0.0.1', {port}), 5)",
        },
        network="first-run",
        sandbox='allow = ["127.0.0.1"]',
    )
    first = probe.run()
    assert (first["fetch"], first["tunnel"]) == ("b'weights'", "b'weights'")
    assert (first["keep"], first["read"]) == ("7", "'weights'")
    assert first["directly"].startswith("ConnectionRefusedError")
    assert outside.visits == ["/model.pt", "/tunnel"]
    assert f"[segserve] Network: 127.0.0.1:{port}" in probe.log
    second = probe.run()
    assert second["fetch"].startswith("KeyError")  # there is no proxy any more
    assert "Read-only file system" in second["keep"]
    assert second["read"] == "'weights'"
    assert len(outside.visits) == 2
    make_repository(probe.repository, {"CHANGES": "a commit that nobody has run yet may fetch again"})
    assert probe.run()["fetch"] == "b'weights'"


@pytest.mark.network
def test_the_way_outside_does_not_lead_back_to_this_machine(probe: Probe, outside: Outside) -> None:
    port = outside.url.rsplit(":", 1)[1]
    probe.make(
        {
            "port": FETCH % outside.url,
            "spelled": FETCH % "http://0x7f000001/",
            "mapped": FETCH % "http://[::ffff:127.0.0.1]/",
            "private": FETCH % "http://10.0.0.1/",
            "metadata": FETCH % "http://169.254.169.254/latest/meta-data/",
            "tunnel": TUNNEL % port,
        },
        network="always",
    )
    said = probe.run()
    for name in ("port", "spelled", "mapped", "private", "metadata"):
        assert "segserve: " in said[name], said[name]
        assert "`sandbox.allow`" in said[name], said[name]
    assert "this machine" in said["spelled"]
    assert "this machine" in said["mapped"]
    assert "403" in said["tunnel"]
    assert outside.visits == []
    assert "[segserve] The network was refused" in probe.log
