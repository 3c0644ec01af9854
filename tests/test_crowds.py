"""Too many connections, too many requests, clients that say nothing, other users of the machine: real sockets."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from segserve.layout import Home
from segserve.server.connections import SPARE
from segserve.tokens import Scope, Tokens
from tests.executors import make_shell_executor
from tests.services import Service
from tests.uploads import files, png

MOST, STREAMS, WAITING = 20, 3, 2
LIMITS = f"max_connections = {MOST}\nmax_streams = {STREAMS}\nmax_waiting = {WAITING}\nsync_wait_s = 60\n"
FORM = "multipart/form-data; boundary=b"


@dataclass
class Field:
    service: Service
    texts: dict[str, str]
    executor: Path

    def as_(self, user: str) -> httpx.Client:
        return self.service.as_(self.texts[user])

    def connected(self) -> socket.socket:
        return connected(self.service)

    def uploading(self, user: str) -> socket.socket:
        """A request that is not over: the head of an upload."""
        one = self.connected()
        words = f"Authorization: Bearer {self.texts[user]}\r\nContent-Type: {FORM}\r\nContent-Length: 1000\r\n\r\n"
        one.sendall(f"POST /jobs HTTP/1.1\r\nHost: localhost\r\n{words}".encode())
        return one

    def requests(self) -> int:
        """How many the server answers now, as it says itself."""
        with self.as_("boss") as http:
            lines = http.get("/metrics").text.splitlines()
        return int(float(next(line for line in lines if line.startswith("segserve_requests ")).split()[1]))

    def until(self, requests: int) -> None:
        """Wait until so many are answered."""
        until = time.monotonic() + 60
        while (found := self.requests()) != requests:
            assert time.monotonic() < until, found
            time.sleep(0.1)


def connected(service: Service) -> socket.socket:
    parts = urlsplit(service.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=60)


def ended(one: socket.socket) -> bool:
    """Whether the server has closed a connection on which it never said anything."""
    one.settimeout(0)
    try:
        return one.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    top = tmp_path_factory.mktemp("crowds")
    make_shell_executor(top / "executor")
    tokens = Tokens(Home(top / "home").ensure().tokens)
    texts = {user: tokens.add(user)[1] for user in ("anna", "emil", "frida")}
    texts["boss"] = tokens.add("boss", scopes=[Scope.ADMIN])[1]
    settings = f'{LIMITS}[repositories]\nallow = ["file://{top}/"]\n[data_roots]\n"{top}" = ["*"]\n'
    with Service(top / "home", top, server=settings) as service:
        yield Field(service, texts, top / "executor")


def test_a_flood_of_silent_connections_pushes_out_itself(there: Field) -> None:
    with ExitStack() as stack, there.as_("anna") as http:
        upload = stack.enter_context(there.uploading("emil"))
        there.until(1)
        flood = []
        for number in range(400):
            flood.append(stack.enter_context(there.connected()))
            if number % 3 == 0:
                flood[-1].sendall(b"GET /jobs HTTP/1.1\r\nHost:")  # and never more
            if number % 50 == 0:
                assert http.get("/jobs").status_code == 200
        assert http.get("/status").status_code == 200
        assert sum(not ended(one) for one in flood) <= MOST + SPARE
        assert not ended(upload)  # what is answered is not given up


def test_when_all_places_are_taken_admins_and_watchers_get_in(there: Field) -> None:
    with ExitStack() as stack, there.as_("frida") as frida, there.as_("anna") as anna, there.as_("boss") as boss:
        for user in ("anna", "emil"):
            for _ in range(MOST // 2):
                stack.enter_context(there.uploading(user))
        there.until(MOST)
        busy = frida.get("/jobs")
        assert (busy.status_code, busy.headers["content-type"]) == (503, "application/problem+json")
        assert int(busy.headers["Retry-After"]) > 0
        assert "server.max_connections" in busy.json()["detail"]
        upstream = anna.post("/image-prediction/", params={"repo": str(there.executor)}, files={"file": ("a", png())})
        assert (upstream.status_code, set(upstream.json())) == (503, {"detail", "message"})
        assert boss.get("/jobs").status_code == 200
        assert httpx.get(there.service.url + "/livez").status_code == 200
        assert httpx.get(there.service.url + "/readyz").json() == {"status": []}  # nothing is built here
        assert frida.get("/metrics").status_code == 200
    there.until(0)
    with there.as_("frida") as frida:
        assert frida.get("/jobs").status_code == 200


def test_one_user_has_half_of_the_places_and_so_have_all_the_unknown(there: Field) -> None:
    with ExitStack() as stack:
        for _ in range(MOST // 2):
            stack.enter_context(there.uploading("anna"))
            unknown = stack.enter_context(there.connected())
            unknown.sendall(b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n")
        there.until(MOST)
    there.until(0)
    with ExitStack() as stack, there.as_("anna") as anna, there.as_("emil") as emil:
        for _ in range(MOST // 2):
            stack.enter_context(there.uploading("anna"))
        there.until(MOST // 2)
        refused = anna.get("/jobs")
        assert (refused.status_code, refused.json()["title"]) == (429, "QuotaExceeded")
        assert int(refused.headers["Retry-After"]) > 0
        assert emil.get("/jobs").status_code == 200
        assert httpx.get(there.service.url + "/").status_code == 307
    there.until(0)


def test_a_user_follows_so_many_jobs_and_waits_for_so_many(there: Field) -> None:
    form = {"executor": str(there.executor), "env": "local", "gpus": "0", "parameters": '{"nap": 600}'}
    with there.as_("anna") as anna, there.as_("boss") as boss, ExitStack() as stack:
        job = anna.post("/jobs", data=form, files=files("a.png")).json()["job"]
        stack.callback(anna.delete, f"/jobs/{job}")
        streams = [stack.enter_context(anna.stream("GET", f"/jobs/{job}/events")) for _ in range(STREAMS)]
        assert {one.status_code for one in streams} == {200}
        refused = anna.get(f"/jobs/{job}/events")
        assert refused.status_code == 429
        assert "server.max_streams" in refused.json()["detail"]
        assert anna.get(f"/jobs/{job}").status_code == 200
        with boss.stream("GET", f"/jobs/{job}/events") as theirs:  # others do not count
            assert theirs.status_code == 200
        streams[0].close()
        there.until(STREAMS - 1)
        with anna.stream("GET", f"/jobs/{job}/events") as again:
            assert again.status_code == 200


def test_requests_that_wait_for_a_result(there: Field) -> None:
    """An upload that goes on waits as one whose job runs."""
    with ExitStack() as stack, there.as_("anna") as anna:
        for _ in range(WAITING):
            one = stack.enter_context(there.connected())
            words = f"Authorization: Bearer {there.texts['anna']}\r\nContent-Type: {FORM}\r\nContent-Length: 1000"
            one.sendall(f"POST /batch-image-prediction/?repo=x HTTP/1.1\r\nHost: localhost\r\n{words}\r\n\r\n".encode())
        there.until(WAITING)
        refused = anna.post("/image-prediction/", params={"repo": "x"}, files={"file": ("a.png", png())})
        assert (refused.status_code, set(refused.json())) == (429, {"detail", "message"})
        assert "server.max_waiting" in refused.json()["message"]
        assert anna.get("/jobs").status_code == 200
    there.until(0)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A server that nobody has configured."""
    folder = tmp_path_factory.mktemp("local")
    with Service(folder / "home", folder, server="patience_s = 2") as service:
        yield service


def test_an_answer_that_nobody_takes_ends_the_connection(local: Service) -> None:
    parts = urlsplit(local.url)
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.settimeout(60)
        one.connect((parts.hostname, parts.port))
        one.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 500)  # more than the kernel holds
        established = (f"{one.getsockname()[1]:04X}", "01")
        until = time.monotonic() + 60
        while any(established == port_and_state(line) for line in Path("/proc/net/tcp").read_text().splitlines()[1:]):
            assert time.monotonic() < until, "the server holds it for ever"
            time.sleep(0.2)
    assert local.http.get("/livez").status_code == 200


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be two users")
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "by IPv6"])
def test_another_user_of_the_machine_is_nobody(local: Service, family: socket.AddressFamily) -> None:
    address = ("127.0.0.1" if family is socket.AF_INET else "::ffff:127.0.0.1", urlsplit(local.url).port)

    def call(path: str, uid: int) -> str:
        os.seteuid(uid)  # whoever opens a socket owns it
        try:
            one = socket.socket(family)
        finally:
            os.seteuid(0)
        with one:
            one.settimeout(60)
            one.connect(address)
            one.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            return b"".join(iter(lambda: one.recv(65536), b"")).decode()

    for path, status in {"/jobs": 403, "/executors": 403, "/status": 403, "/livez": 200, "/me": 200}.items():
        assert call(path, 65534).startswith(f"HTTP/1.1 {status}"), path
        assert call(path, 0).startswith("HTTP/1.1 200"), path
    assert "segserve tokens add" in call("/jobs", 65534)
    assert '"user":""' in call("/me", 65534)


def port_and_state(line: str) -> tuple[str, str]:
    """Of the server's side of a connection: the client's port, and the state."""
    fields = line.split()
    return fields[2].rpartition(":")[2], fields[3]


def test_without_files_to_open_it_waits_and_goes_on(there: Field) -> None:
    pid = there.service.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208
    with ExitStack() as stack:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 5, before[1]))
        try:
            for _ in range(40):
                stack.enter_context(there.connected())
            time.sleep(1.5)
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        with there.as_("anna") as http:
            assert http.get("/jobs").status_code == 200
    assert there.service.process.poll() is None


LIMITED = """\
import logging, resource, sys
logging.basicConfig(format="%(message)s")
from segserve.server.connections import with_open_files
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
print(with_open_files(1000), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("soft", "hard", "expected", "said"),
    [
        (256, 8192, "1000 2256 8192", ""),
        (4096, 8192, "1000 4096 8192", ""),
        (256, 1024, "384 1024 1024", "LimitNOFILE"),
    ],
)
def test_the_limit_of_open_files_is_raised_as_far_as_needed(soft: int, hard: int, expected: str, said: str) -> None:
    words = [sys.executable, "-c", LIMITED, str(soft), str(hard)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected.split()
    assert said in done.stderr
    assert bool(said) == bool(done.stderr)
