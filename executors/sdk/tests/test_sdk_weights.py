"""Downloads from a real HTTP server on loopback that cuts, refuses and lies."""

import hashlib
import multiprocessing
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Iterator, List

import pytest
from segserve_sdk import weights

CONTENT = bytes(range(256)) * 4096  # 1 MiB
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT. `cuts`: how many answers end after half of what they promise; `asked`: the ranges asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: List[str] = []
        self.cuts = 0
        self.ranges = True
        self.busy = 0

    @property
    def url(self) -> str:
        return "http://127.0.0.1:{}/models/blob.pt".format(self.server_address[1])


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        self.server.asked.append(wanted)
        if self.server.busy:
            self.server.busy -= 1
            self.send_error(503)
            return
        if "absent" in self.path:
            self.send_error(404)
            return
        start = int(wanted[6:-1]) if wanted and self.server.ranges else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", "bytes {}-{}/{}".format(start, len(CONTENT) - 1, len(CONTENT)))
        rest = CONTENT[start:]
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if self.server.cuts:
            self.server.cuts -= 1
            rest = rest[: len(rest) // 2]
        self.wfile.write(rest)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as one:
        threading.Thread(target=one.serve_forever, args=(0.05,), daemon=True).start()
        yield one
        one.shutdown()


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_FOLDER", str(tmp_path / "cache"))
    monkeypatch.setattr(weights.time, "sleep", lambda seconds: None)  # the pauses between tries


def test_downloaded_once(server: Server, tmp_path: Path) -> None:
    path = weights.fetch(server.url, DIGEST)
    assert path.read_bytes() == CONTENT
    assert path.name == "blob.pt"
    assert tmp_path / "cache" in path.parents
    assert weights.fetch(server.url, DIGEST) == path
    assert server.asked == [""]


def test_goes_on_where_it_was_cut(server: Server) -> None:
    server.cuts = 2
    assert weights.fetch(server.url, DIGEST).read_bytes() == CONTENT
    half = len(CONTENT) // 2
    assert server.asked == ["", "bytes={}-".format(half), "bytes={}-".format(half + half // 2)]


def test_goes_on_where_a_killed_process_stopped(server: Server) -> None:
    target = weights.fetch(server.url, DIGEST)
    target.rename(target.with_name("blob.pt.part"))
    os.truncate(target.with_name("blob.pt.part"), 1000)
    assert weights.fetch(server.url, DIGEST).read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=1000-"


def test_a_complete_part_of_a_killed_process_is_taken(server: Server) -> None:
    target = weights.fetch(server.url, DIGEST)
    target.rename(target.with_name("blob.pt.part"))
    assert weights.fetch(server.url, DIGEST) == target


def test_a_server_that_cannot_go_on_begins_anew(server: Server) -> None:
    server.cuts, server.ranges = 1, False
    assert weights.fetch(server.url, DIGEST).read_bytes() == CONTENT


def test_a_damaged_part_is_thrown_away(server: Server) -> None:
    target = weights.fetch(server.url, DIGEST)
    target.unlink()
    target.with_name("blob.pt.part").write_bytes(b"x" * 1000)
    assert weights.fetch(server.url, DIGEST).read_bytes() == CONTENT


def test_a_busy_server_is_asked_again(server: Server) -> None:
    server.busy = 2
    assert weights.fetch(server.url, DIGEST).read_bytes() == CONTENT


def test_another_file_than_expected_is_refused_and_not_kept(server: Server, tmp_path: Path) -> None:
    with pytest.raises(weights.WeightsError, match="the weights 'blob.pt' from http.*not what was expected: sha256 is"):
        weights.fetch(server.url, "0" * 64)
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert kept == []


def test_what_is_not_there_is_said_at_once(server: Server) -> None:
    with pytest.raises(weights.WeightsError, match="could not download the weights 'absent.pt' from .*404"):
        weights.fetch(server.url.replace("blob", "absent"), DIGEST)
    assert len(server.asked) == 1


def test_no_network_is_said_with_the_place_for_the_file(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = "http://user:secret@127.0.0.1:{}/blob.pt?token=secret".format(closed.getsockname()[1])
        with pytest.raises(weights.WeightsError, match="did not answer") as raised:
            weights.fetch(url, DIGEST)
    assert "secret" not in str(raised.value)
    place = Path(str(raised.value).rsplit(" ", 1)[1])
    place.write_bytes(CONTENT)
    assert weights.fetch(url, DIGEST) == place


@pytest.mark.parametrize(("url", "digest"), [("ftp://x/y", None), ("blob.pt", None), ("http://x/y", None),
                                             ("https://x/y", "abc")])  # fmt: skip
def test_what_is_no_address_or_hash_is_refused(url: str, digest: str) -> None:
    with pytest.raises(ValueError, match=r"https|sha256"):
        weights.fetch(url, digest)


def _fetch(url: str) -> None:
    assert weights.fetch(url, DIGEST).read_bytes() == CONTENT


def test_of_many_processes_one_downloads(server: Server) -> None:
    context = multiprocessing.get_context("spawn")
    several = [context.Process(target=_fetch, args=(server.url,)) for _ in range(2)]
    for one in several:
        one.start()
    for one in several:
        one.join()
    assert [one.exitcode for one in several] == [0, 0]
    assert server.asked == [""]
