"""`--server`: the commands on a real service, through a proxy that loses connections when a test says so."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest

from segserve.client import events, upload
from segserve.layout import Home
from segserve.tokens import Scope, Tokens
from tests.commands import SEGSERVE, Command
from tests.executors import make_shell_executor
from tests.proxies import Proxy
from tests.services import Service
from tests.waiting import wait_for

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


# ------------------------------------------------------------------------------------------- what is broken off


@contextmanager
def typed(*words: object, ended: int = 130) -> Iterator[subprocess.Popen[str]]:
    """A command in a process of its own, as in a terminal; who leaves presses Ctrl-C."""
    argv = [*SEGSERVE, *map(str, words)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
            process.send_signal(signal.SIGINT)
            process.said = process.communicate(timeout=120)  # type: ignore[attr-defined]
            assert process.returncode == ended, process.said  # type: ignore[attr-defined]
        finally:
            process.kill()


def test_ctrl_c_while_images_are_sent(service: Service, proxy: Proxy, tmp_path: Path) -> None:
    np.save(tmp_path / "large.npy", np.zeros((5000, 5000), np.uint8))  # more than sockets hold
    before = service.http.get("/jobs").json()
    proxy.hold = "body"
    with typed("run", "shell", tmp_path / "large.npy", *WORDS, "--server", proxy.url) as process:
        assert proxy.held.wait(60)
    proxy.hold = ""
    assert "Stopping" not in process.said[1]  # type: ignore[attr-defined]
    assert service.http.get("/jobs").json() == before


def test_ctrl_c_before_the_server_has_answered(service: Service, proxy: Proxy, folder: Path) -> None:
    proxy.hold = "answer"
    line = ("run", "shell", folder / "images", *WORDS, "-P", "nap=60", "-P", "mark=unanswered", "-d")
    with typed(*line, "--server", proxy.url):
        assert proxy.held.wait(60)
        threading.Timer(1.0, lambda: setattr(proxy, "hold", "")).start()
    job = service.http.get("/jobs").json()[0]["job"]
    assert service.wait(job)["state"] == "cancelled"


def test_ctrl_c_while_it_runs_and_waits(segserve: Command, service: Service, proxy: Proxy, folder: Path) -> None:
    """Two run, so that a third one waits; all three are stopped, one of them by Ctrl-C."""
    line = ("run", "shell", folder / "images", *WORDS, "-P", "nap=300")

    def waiting() -> list[dict[str, str]]:
        return list(service.http.get("/jobs", params={"state": "queued"}).json())

    jobs = []
    for mark in ("mark=first", "mark=second"):
        done = segserve(*line, "-P", mark, "-d", "--json", "--server", service.url)
        jobs.append(done.document["job"])
    with typed(*line, "-P", "mark=third", "--server", proxy.url) as process:
        third = wait_for(lambda: {row["job"] for row in waiting()} - set(jobs)).pop()
        with typed("logs", "-f", third, "--server", service.url) as follows:
            assert follows.stderr is not None
            assert "waits in the queue" in follows.stderr.readline()
    assert f"Stopping job {third}" in process.said[1]  # type: ignore[attr-defined]
    for job in jobs:
        service.http.delete(f"/jobs/{job}")
    assert [service.wait(job)["state"] for job in (*jobs, third)] == ["cancelled"] * 3


def test_ctrl_c_while_the_result_comes(
    segserve: Command, service: Service, proxy: Proxy, folder: Path, tmp_path: Path
) -> None:
    line = ("run", "shell", folder / "images", *WORDS, "-P", "mark=coming", "-o", tmp_path / "results" / "out")
    proxy.hold = "file"
    with typed(*line, "--server", proxy.url) as process:
        assert proxy.held.wait(120)
    proxy.hold = ""
    job = service.http.get("/jobs").json()[0]["job"]
    assert f"segserve fetch {job} --server {proxy.url}" in process.said[1]  # type: ignore[attr-defined]
    assert not list((tmp_path / "results").iterdir())  # nothing half done
    fetched = segserve("fetch", job[:-1], "-o", tmp_path / "later", "--server", service.url)
    assert fetched.code == 0, fetched.err
    assert (tmp_path / "later/report/index.html").exists()


def test_a_result_that_comes_in_pieces(
    segserve: Command, service: Service, proxy: Proxy, folder: Path, tmp_path: Path
) -> None:
    line = ("run", "shell", folder / "images", *WORDS, "-P", "mark=pieces", "--server", service.url)
    assert segserve(*line, "-o", tmp_path / "whole").code == 0
    job = service.http.get("/jobs").json()[0]["job"]
    proxy.cut = ("/files/objects.csv", 100)  # more often than anything is tried that brings nothing
    done = segserve("fetch", job, "-o", tmp_path / "pieces", "--server", proxy.url)
    assert done.code == 0, done.err
    size = (tmp_path / "whole/objects.csv").stat().st_size
    assert proxy.ranges == [f"bytes={have}-" for have in range(100, size, 100)]
    for name in names(tmp_path / "whole"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "pieces" / name).read_bytes()


def test_a_result_for_which_there_is_no_space(
    segserve: Command, service: Service, folder: Path, small_disk: Path
) -> None:
    line = ("run", "shell", folder / "images", *WORDS, "-P", "mark=full", "--overlays", "all", "--server", service.url)
    done = segserve(*line, "-o", small_disk / "out")
    job = service.http.get("/jobs").json()[0]["job"]
    assert (done.code, "The disk is full" in done.err) == (6, True), done.err
    assert f"segserve fetch {job} --server {service.url}" in done.err
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]


def test_a_server_that_is_killed_and_starts_again(
    segserve: Command, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While images are sent, and while the job runs. Afterwards a token is taken away in the middle."""
    home = Home(tmp_path / "home")
    home.path.mkdir()
    _, token = Tokens(home.tokens).add("anna", scopes=[Scope.READ, Scope.SUBMIT])
    monkeypatch.setenv("SEGSERVE_TOKEN", token)
    server = f'[executors]\nshell = "{folder}/executor"\n[repositories]\nallow = []\n'

    def start() -> Service:
        return Service(home.path, tmp_path / "config", server=server)

    first = start()
    with Proxy(first.url, "") as proxy:
        proxy.hold = "body"
        line = ("run", "shell", folder / "images", *WORDS, "-P", "nap=6", "-o", tmp_path / "out", "--json")
        argv = [*SEGSERVE, *map(str, line), "--server", proxy.url]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as sender:
            assert proxy.held.wait(60)
            first.process.kill()
            with start() as second:
                proxy.target, proxy.hold = second.url, ""
                there = second.as_(token)
                wait_for(lambda: [row for row in there.get("/jobs").json() if row["state"] == "running"])
                second.process.kill()
                proxy.lose()
            with start() as third:
                proxy.target, proxy.down = third.url, False
                out, err = sender.communicate(timeout=240)
                assert sender.returncode == 0, err
                assert len(json.loads(out)["images"]) == 2
                assert len(third.as_(token).get("/jobs").json()) == 1
                _token_goes(segserve, third, home, folder, token)


def _token_goes(segserve: Command, service: Service, home: Home, folder: Path, token: str) -> None:
    def remove() -> None:
        there = service.as_(token)
        wait_for(lambda: [row for row in there.get("/jobs").json() if row["state"] == "running"])
        Tokens(home.tokens).remove("anna")

    Tokens(home.tokens).add("somebody-else")
    thread = threading.Thread(target=remove)
    thread.start()
    line = ("run", "shell", folder / "images", *WORDS, "-P", "nap=30", "-P", "mark=token")
    done = segserve(*line, "--server", service.url)
    thread.join()
    assert (done.code, "not valid" in done.err) == (6, True), done.err
    assert "The job goes on: segserve fetch " in done.err


# ------------------------------------------------------------------------------------------- others at the other end


class _Stranger(BaseHTTPRequestHandler):
    """What is no segserve; the first part of the path says which kind."""

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind = self.path.split("/")[1]
        status, body, headers = {
            "page": (200, b"<html>Welcome</html>", {"Content-Type": "text/html"}),
            "json": (200, b'{"hello": "world"}', {"Content-Type": "application/json"}),
            "newer": (200, b'[{"id": 7}]', {"Content-Type": "application/json"}),
            "missing": (404, b"nothing here", {}),
            "nginx": (413, b"<html>413</html>", {}),
            "login": (401, b"<html>401</html>", {}),
            "moved": (301, b"", {"Location": "https://segserve.example.org/jobs"}),
            "route": (404, b'{"title": "NotFound", "message": "Not Found"}', {}),
        }[kind]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_DELETE = _answer

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def stranger() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Stranger) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("kind", "code", "message"),
    [
        ("page", 6, "but not as a segserve"),
        ("json", 6, "but not as a segserve"),
        ("newer", 6, "but not as a segserve"),
        ("missing", 6, "answers 404 Not Found, but not as a segserve"),
        ("route", 6, "answers 404 Not Found, but not as a segserve"),
        ("nginx", 2, "takes no body of this size"),
        ("login", 6, "wants a password of its own"),
        ("moved", 2, "leads elsewhere: to https://segserve.example.org/jobs"),
    ],
)
def test_what_is_no_segserve(
    segserve: Command, stranger: str, folder: Path, kind: str, code: int, message: str
) -> None:
    for line in (("ps",), ("run", "shell", folder / "images"), ("show", "a-job"), ("cancel", "a-job")):
        done = segserve(*line, "--server", f"{stranger}/{kind}")
        assert (done.code, message in done.err) == (code, True), done.err
        assert "hint: " in done.err


def test_addresses_that_are_wrong(segserve: Command, service: Service, tmp_path: Path) -> None:
    for address in ("segserve.example.org", "http://", "http://[::1", "http://host:99999", "ftp://host", "http://a b"):
        done = segserve("ps", "--server", address)
        assert (done.code, "no address of a server" in done.err) == (2, True), done.err
    encrypted = segserve("ps", "--server", service.url.replace("http:", "https:"))
    assert (encrypted.code, "is its address http://" in encrypted.err) == (6, True)
    for job in ("../status", "a/b", "?", ""):
        done = segserve("show", job, "--server", service.url)
        assert (done.code, "is no job" in done.err) == (2, True)


def test_only_what_first_chooses_is_sent(segserve: Command, service: Service, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for number in range(20):
        picture = np.full((20, 20), number, np.uint8)
        (tmp_path / f"many/{number}.png").write_bytes(bytes(cv2.imencode(".png", picture)[1]))
    words = (tmp_path / "many", *WORDS, "--first", "3", "--json")
    here = segserve("run", folder / "executor", *words)
    there = segserve("run", "shell", *words, "--server", service.url)
    assert "Sending 3 images" in there.err
    chosen = [[Path(image["file"]).name for image in done.document["images"]] for done in (here, there)]
    assert chosen[0] == chosen[1] == ["0.png", "10.png", "19.png"]


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
