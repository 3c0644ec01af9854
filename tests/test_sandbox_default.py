"""`sandbox.kind = "auto"`, the default: the jobs of other people are shut in, or the service does not start."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from segserve import api, refs
from segserve.config import Settings
from segserve.layout import Home
from segserve.model import plan_from_json
from segserve.pipeline import Bounds, Request, confinement, wire
from segserve.server.access import Caller
from segserve.server.desk import Desk, JobRequest
from segserve.tokens import Scope, Tokens
from tests.commands import Command
from tests.pipelines import make_moody
from tests.repositories import make_repository
from tests.services import Service
from tests.spies import log, submit
from tests.tls import FileServer
from tests.uploads import png

pytest_plugins = ["tests.command_fixtures"]

# It says whether it sees the file `path`, and makes a result; `url` is fetched first, if there is one.
SPY = """\
name: spy
entry_points:
  main:
    parameters:
      input_images: path
      path: {type: string, default: /nowhere}
      url: {type: string, default: none}
    command: "sh spy.sh {input_images} {path} {url}"
"""
SCRIPT = """\
set -e
if [ -e "$2" ]; then echo "it sees $2"; else echo "it does not see $2"; fi
[ "$3" = none ] || python3 -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1])' "$3"
printf '{"model": "spy", "format_version": "0.2", "segmentation_data": [[]]}' > output.json
"""


@pytest.fixture
def spy(tmp_path: Path) -> Path:
    make_repository(tmp_path / "spy", {"MLproject": SPY, "spy.sh": SCRIPT})
    return tmp_path / "spy"


@pytest.fixture
def without_bwrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PATH with everything but bubblewrap."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for one in os.environ["PATH"].split(os.pathsep):
        for path in Path(one).glob("*"):
            if path.name != "bwrap" and not (folder / path.name).is_symlink():
                (folder / path.name).symlink_to(path)
    monkeypatch.setenv("PATH", str(folder))
    assert shutil.which("git")
    assert not shutil.which("bwrap")


def settings(spy: Path) -> str:
    return f'[executors]\nspy = "{spy}"\n'


def test_a_guarded_server_without_bubblewrap_does_not_start(home: Home, spy: Path, without_bwrap: None) -> None:
    config = spy.parent / "config.toml"
    config.write_text(f"[server]\nport = 0\n{settings(spy)}")
    Tokens(home.tokens).add("anna")
    words = [sys.executable, "-m", "segserve", "serve", "--config", str(config)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 6
    assert "Executors are to be shut in by bubblewrap, but there is no `bwrap` on PATH." in done.stderr
    said = " ".join(done.stderr.split())
    for part in ("apt-get install bubblewrap", 'kind = "none"', "[sandbox] in config.toml", "docs/isolation.md"):
        assert part in said
    checked = subprocess.run([*words[:3], "doctor"], capture_output=True, text=True, timeout=120)
    assert "no `bwrap` on PATH" in checked.stdout + checked.stderr


def test_the_local_users_server_needs_none(home: Home, spy: Path, without_bwrap: None) -> None:
    with Service(home.path, spy.parent / "config", server=settings(spy), sandbox="auto") as service:
        job = submit(service.http, path=str(home.database))
        assert service.wait(job)["state"] == "succeeded"
        assert f"it sees {home.database}" in log(service, job)


def test_whose_a_job_is_stands_in_the_journal() -> None:
    request = Request(refs.parse("https://host/group/cells"))
    assert wire.from_json(wire.to_json(replace(request, others=True))).others
    assert not wire.from_json(wire.to_json(request)).others

    def older(bounds: Bounds | None) -> dict[str, Any]:
        data = json.loads(wire.to_json(replace(request, bounds=bounds)))
        del data["others"]
        return dict(data)

    assert not wire.from_json(json.dumps(older(Bounds(None, 1, 1)))).others
    assert wire.from_json(json.dumps(older(Bounds((), 1, 1)))).others
    oldest = older(None)
    del oldest["bounds"]
    assert wire.from_json(json.dumps(oldest)).others  # it does not say: the careful answer


@pytest.mark.parametrize(
    ("kind", "own", "others"), [("auto", False, True), ("none", False, False), ("bubblewrap", True, True)]
)
def test_what_the_kinds_mean(kind: str, own: bool, others: bool) -> None:
    sandbox = Settings.model_validate({"sandbox": {"kind": kind}}).sandbox
    assert confinement.shuts_in(sandbox, others=False) is own
    assert confinement.shuts_in(sandbox, others=True) is others
    assert Settings().sandbox.kind == "auto"


@pytest.mark.sandbox
def test_a_guarded_server_shuts_executors_in(home: Home, spy: Path) -> None:
    _, token = Tokens(home.tokens).add("anna")
    with Service(home.path, spy.parent / "config", server=settings(spy), sandbox="auto") as service:
        http = service.as_(token)
        job = submit(http, path=str(home.database))
        assert service.wait(job, http)["state"] == "succeeded"
        assert f"it does not see {home.database}" in log(service, job, http)
        job = submit(http, url="http://weights.example.org/model.pt")
        failed = service.wait(job, http)
    assert "it wanted the network (weights?), and is shut in without one" in failed["error"]
    assert '`network = "first-run"` in its entry under [executors] of config.toml' in failed["hint"]


@pytest.mark.sandbox
def test_a_job_of_somebody_else_stays_shut_in_when_nobody_needs_a_token_any_more(home: Home, spy: Path) -> None:
    """It waits in the queue while the server is down and its tokens are removed; who drives it then is local."""
    config = spy.parent / "config.toml"
    config.write_text(settings(spy))
    (spy.parent / "a.png").write_bytes(png(5))
    anna = Caller("anna", frozenset({Scope.SUBMIT, Scope.READ}), roots=(spy.parent,))
    owner = Caller("owner", frozenset(Scope), local=True)
    with api.session(config=config) as session:
        desk = Desk(session, 0, {"cpu": 1}, lambda: None)
        wanted = JobRequest(
            executor="spy",
            env="local",
            gpus="0",
            images=[str(spy.parent / "a.png")],
            parameters={"path": str(home.database)},
        )
        hers, own = (desk.submit(wanted, caller=caller).job_id for caller in (anna, owner))
    with Service(home.path, spy.parent / "config", server=settings(spy), sandbox="auto") as service:
        assert service.wait(hers)["state"] == service.wait(own)["state"] == "succeeded"
        assert f"it does not see {home.database}" in log(service, hers)
        assert f"it sees {home.database}" in log(service, own)


@pytest.mark.sandbox
def test_doctor_says_who_is_shut_in(here: Path, segserve: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, words in (("auto", "the executors of other people are shut in"), ("none", "executors run as you")):
        monkeypatch.setenv("SEGSERVE_SANDBOX__KIND", kind)
        checks = {row["name"]: row["message"] for row in segserve("doctor", "--json").document}
        assert words in checks["sandbox"]


PIPELINE = """\
[fetch]
allow = ["127.0.0.1"]

[executors]
moody = "{folder}/moody"

[[pipelines.find.stages]]
executor = "moody"
key = "finder"
"""


@pytest.mark.sandbox
@pytest.mark.network  # numpy and OpenCV
def test_the_stages_of_a_pipeline_are_shut_in_too(home: Home, tmp_path: Path) -> None:
    """They stay for many requests, and answer over a socket."""
    make_moody(tmp_path / "moody")
    _, token = Tokens(home.tokens).add("anna")
    settings = PIPELINE.format(folder=tmp_path)
    image = np.zeros((64, 64), np.uint8)
    image[20:28, 10:18] = image[30:50, 30:50] = 200
    squares = bytes(cv2.imencode(".png", image)[1].tobytes())
    with (
        FileServer(lambda path, login: (200, {}, squares)) as images,
        Service(home.path, tmp_path / "config", server=settings, sandbox="auto") as service,
    ):
        http = service.as_(token)
        for number in (1, 2):
            wanted = {"pipeline": "find", "source_images": [{"id": "1", "url": f"{images.url}/{number}"}]}
            answer = http.post("/process", json=wanted)
            while answer.status_code == 503:  # its environment is being built
                answer = http.post("/process", json=wanted)
            assert answer.status_code == 200, answer.text
            assert len(answer.json()["detections"]) == 2
    plans = [plan_from_json(path.read_text()) for path in home.jobs.glob("*/*/attempt.json")]
    assert [plan.sandbox is not None for plan in plans] == [True]
