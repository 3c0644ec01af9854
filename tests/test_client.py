"""`--server`: the commands on a real service, through a proxy that loses connections when a test says so."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from segserve.client import events, upload
from segserve.layout import Home
from segserve.tokens import Scope, Tokens
from tests.commands import Command
from tests.executors import make_shell_executor
from tests.proxies import Proxy
from tests.services import Service

pytest_plugins = ["tests.command_fixtures"]

WORDS = ("--env", "local", "--gpus", "0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("client")
    make_shell_executor(folder / "executor")
    (folder / "images").mkdir()
    for name in ("t10", "t9"):
        picture = np.full((40, 60), int(name[1:]), np.uint8)
        (folder / "images" / f"{name}.png").write_bytes(bytes(cv2.imencode(".png", picture)[1]))
    return folder


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    with Service(folder / "home", folder / "config", server=f'[executors]\nshell = "{folder}/executor"\n') as service:
        yield service


@pytest.fixture
def proxy(service: Service) -> Iterator[Proxy]:
    with Proxy(service.url, "") as proxy:
        yield proxy


def names(result: Path) -> list[str]:
    return sorted(path.relative_to(result).as_posix() for path in result.rglob("*") if path.is_file())


def test_a_result_from_elsewhere_is_like_one_from_here(
    segserve: Command, service: Service, folder: Path, tmp_path: Path
) -> None:
    words = (str(folder / "images"), *WORDS, "--to", "coco,imagej", "-o")
    here = segserve("run", str(folder / "executor"), *words, str(tmp_path / "here"))
    there = segserve("run", "shell", *words, str(tmp_path / "there"), "--server", service.url)
    assert (here.code, there.code) == (0, 0), there.err + here.err
    assert names(tmp_path / "here") == names(tmp_path / "there")
    assert (tmp_path / "here/objects.csv").read_text() == (tmp_path / "there/objects.csv").read_text()
    pattern = re.compile(r"Result .*|MLflow .*|Next .*")
    assert pattern.sub("", here.out) == pattern.sub("", there.out)
    assert "t9.png" in there.out.split("t10.png")[0]  # in the same order
    assert "Sending 2 images" in there.err
    again = segserve("run", "shell", *words, str(tmp_path / "there"), "--server", service.url)
    assert (again.code, "exists already" in again.err) == (2, True)


def test_failures_have_the_same_codes_and_words(segserve: Command, service: Service, folder: Path) -> None:
    for words, code in (
        (("-P", "mark=crash"), 4),
        (("-P", "nope=1"), 2),
        (("-P", "nap=soon"), 2),
        (("--entry", "nothing"), 2),
        (("--rev", "nothing"), 3),
    ):
        line = (str(folder / "images"), *WORDS, *words, "--json")
        here = segserve("run", str(folder / "executor"), *line)
        there = segserve("run", "shell", *line, "--server", service.url)
        assert (here.code, there.code) == (code, code), (words, there.out)
        for key in ("code", "message", "hint", "exit_code"):
            assert here.error[key] == there.error[key], words
        assert ("the model file is empty" in here.error["quote"]) == ("the model file is empty" in there.error["quote"])


def test_nobody_there(segserve: Command, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segserve.client.connection.TRIES", 2)
    done = segserve("ps", "--server", "http://127.0.0.1:9")
    assert (done.code, "cannot be reached" in done.err) == (6, True)
    wrong = segserve("ps", "--server", "segserve.example.org")
    assert (wrong.code, "no address of a server" in wrong.err) == (2, True)
    refused = segserve("run", "shell", str(folder / "images"), "--memory", "2", "--server", "http://127.0.0.1:9")
    assert (refused.code, "--memory cannot be given with --server" in refused.err) == (2, True)
    foreign = segserve("run", str(folder / "executor"), str(folder / "images"), "--server", "https://example.org")
    assert (foreign.code, "folder of this machine" in foreign.err) == (2, True)


def test_a_lost_answer_makes_no_second_job(segserve: Command, service: Service, proxy: Proxy, folder: Path) -> None:
    before = len(service.http.get("/jobs", params={"limit": 1000}).json())
    proxy.swallow = 1  # the server takes the job, and its client never hears of it
    done = segserve("run", "shell", str(folder / "images"), *WORDS, "-P", "mark=lost", "-d", "--server", proxy.url)
    assert done.code == 0, done.err
    assert "trying again" in done.err
    rows = service.http.get("/jobs", params={"limit": 1000}).json()
    assert len(rows) == before + 1
    assert rows[0]["job"] in done.out
    assert service.wait(rows[0]["job"])["state"] == "succeeded"


def test_following_goes_on_after_a_lost_connection(
    segserve: Command, service: Service, proxy: Proxy, folder: Path, tmp_path: Path
) -> None:
    def trouble() -> None:
        while not any(row["state"] == "running" for row in service.http.get("/jobs").json()):
            time.sleep(0.2)
        proxy.lose()
        time.sleep(1)
        proxy.down = False

    thread = threading.Thread(target=trouble, daemon=True)
    thread.start()
    line = ("run", "shell", str(folder / "images"), *WORDS, "-P", "nap=8", "-v", "-o", str(tmp_path / "there"))
    done = segserve(*line, "--server", proxy.url)
    thread.join(240)
    assert done.code == 0, done.err
    assert done.err.count("The connection to the server was lost") == 1
    assert done.err.count("Running command") == 1  # nothing is told twice
    assert (tmp_path / "there/output.json").exists()


def test_jobs_elsewhere(segserve: Command, service: Service, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGSERVE_SERVER", service.url)
    started = segserve("run", "shell", str(folder / "images"), *WORDS, "-P", "nap=60", "-d", "--json")
    job = started.document["job"]
    assert job in [row["job"] for row in segserve("ps", "--json").document]
    assert segserve("show", job[:-1], "--json").document["job"] == job
    cancelled = segserve("cancel", job)
    assert cancelled.code == 0
    assert service.wait(job)["state"] == "cancelled"
    assert job not in segserve("ps").out
    assert job in segserve("ps", "-a").out
    failed = segserve("run", "shell", str(folder / "images"), *WORDS, "-P", "mark=crash", "-d", "--json").document[
        "job"
    ]
    followed = segserve("logs", "-f", failed)
    assert "the model file is empty" in followed.out
    assert segserve("logs", failed).out == followed.out
    assert segserve("show", "nothing").code == 2
    assert "shell" in segserve("executors", "list").out


def test_the_token_comes_from_the_environment_or_the_file(
    segserve: Command, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path / "guarded")
    home.path.mkdir()
    _, token = Tokens(home.tokens).add("anna", scopes=[Scope.READ])
    server = f'[executors]\nshell = "{folder}/executor"\n[repositories]\nallow = []\n'
    with Service(home.path, tmp_path / "config", server=server) as service:
        nobody = segserve("ps", "--server", service.url)
        assert (nobody.code, "wants a token" in nobody.err) == (6, True)
        monkeypatch.setenv("SEGSERVE_TOKEN", "sgs_00000000_" + "0" * 48)
        assert "not valid" in segserve("ps", "--server", service.url).err
        monkeypatch.setenv("SEGSERVE_TOKEN", token)
        assert segserve("ps", "--server", service.url).code == 0
        monkeypatch.delenv("SEGSERVE_TOKEN")
        config = tmp_path / "mine.toml"
        config.write_text(f'[client.tokens]\n"{service.url}/" = "{token}"\n')
        monkeypatch.setenv("SEGSERVE_CONFIG", str(config))
        assert segserve("ps", "--server", service.url).code == 0
        refused = segserve("run", "shell", str(folder / "images"), *WORDS, "--server", service.url)
        assert refused.code == 6
        assert "may not submit" in refused.err


def test_a_form_is_the_same_at_every_try(tmp_path: Path) -> None:
    (tmp_path / 'a"ö.png').write_bytes(b"x" * 300_000)
    form = upload.Form({"executor": "e", "parameters": '{"ä": 1}'}, [tmp_path / 'a"ö.png'])
    told: list[tuple[int, int]] = []
    first, second = (b"".join(form.chunks(lambda sent, total: told.append((sent, total)))) for _ in range(2))
    assert first == second
    assert len(first) == int(form.headers["Content-Length"]) == told[-1][0] == told[-1][1]


def test_events_that_are_cut_off_are_none() -> None:
    lines = ["event: state", "id: 1-1-1", 'data: {"state": "running"}', "", ": still here", "", "event: log", "data: {"]
    assert [(event.kind, event.id) for event in events.parsed(lines)] == [("state", "1-1-1")]
