"""A site with an authority and a proxy of its own: git, conda channels and packages learn of both in the same way."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from segserve import process
from segserve.environments import conda, pip
from segserve.environments.base import BuildOptions
from segserve.errors import EnvironmentBuildFailed, RepositoryUnreachable, SegserveError
from segserve.layout import Home
from segserve.refs import parse
from segserve.store import Store
from tests import channel
from tests.repositories import git, make_repository
from tests.test_conda import make_project, silent
from tests.tls import make_authority, secure

pytest_plugins = ["tests.packages"]

HOST = "site.test"  # a name that nobody resolves: what reaches it came through the proxy
_SETTINGS = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO")


class Proxy(AbstractContextManager["Proxy"]):
    """A proxy that knows CONNECT and one host, `HOST`; `asked` is what it was asked for."""

    def __init__(self, port: int) -> None:
        asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_CONNECT(self) -> None:
                asked.append(self.path)
                if self.path != f"{HOST}:443":
                    self.send_error(502)
                    return
                with socket.create_connection(("127.0.0.1", port)) as behind:
                    self.send_response(200)
                    self.end_headers()
                    _exchange(self.connection, behind)

            def log_message(self, *_args: object) -> None:
                """Nothing: `asked` is what the tests look at."""

        self.asked = asked
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_details: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _exchange(one: socket.socket, other: socket.socket) -> None:
    while True:
        for ready in select.select([one, other], [], [], 60)[0]:
            data = ready.recv(65536)
            if not data:
                return
            (other if ready is one else one).sendall(data)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_args: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """A server over TLS with a repository, a conda channel and a package index; its port, and the authority's file."""
    folder = tmp_path_factory.mktemp("site")
    served = folder / "served"
    make_repository(folder / "work", {"MLproject": "name: x\n"})
    git(folder, "clone", "-q", "--bare", "work", "served/executor.git")
    git(served / "executor.git", "update-server-info")
    channel.add_package(served / "channel", "thing", "1.0", {"share/thing.txt": b"here\n"}, noarch="generic")
    channel.index(served / "channel")
    wheel = channel.make_wheel(served / "simple" / "colours", "colours", "1.0", "RED = 1\n")
    (wheel.parent / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')
    authority, certificate = make_authority(folder, HOST)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=served))
    secure(server, certificate)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, authority
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def _nothing_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV_")) or name.lower().endswith("_proxy") or name in _SETTINGS:
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("UV_NO_CACHE", "1")
    monkeypatch.setenv("RATTLER_CACHE_DIR", str(tmp_path / "rattler"))


def clone(url: str, home: Home, folder: Path, python: Path) -> None:
    assert len(Store(home).resolve(parse(f"{url}/executor.git")).pin.sha) == 40


def solve(url: str, home: Home, folder: Path, python: Path) -> None:
    loaded = make_project(folder / "project", "dependencies: [thing]\n")
    spec = conda.detect(loaded, BuildOptions(channels=(f"{url}/channel",)))
    assert spec is not None
    conda.build(spec, loaded, folder / "prefix", silent)
    assert (folder / "prefix" / "share" / "thing.txt").read_text() == "here\n"


def install(url: str, home: Home, folder: Path, python: Path) -> None:
    os.environ["UV_DEFAULT_INDEX"] = f"{url}/simple"
    pip.install(python, pip.read(["colours"], folder, folder, source="x"), folder / "scratch", silent)
    assert process.run([python, "-c", "import colours; print(colours.RED)"]).stdout == "1\n"


Use = Callable[[str, Home, Path, Path], None]
USES = pytest.mark.parametrize("use", [clone, pytest.param(solve, marks=pytest.mark.conda), install])


@USES
@pytest.mark.parametrize("setting", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT"])
def test_a_sites_own_authority(
    tmp_path: Path,
    home: Home,
    site: tuple[int, Path],
    python: Path,
    monkeypatch: pytest.MonkeyPatch,
    use: Use,
    setting: str,
) -> None:
    port, authority = site
    monkeypatch.setenv(setting, str(authority))
    use(f"https://127.0.0.1:{port}", home, tmp_path, python)


@USES
def test_an_authority_that_nobody_named(
    tmp_path: Path, home: Home, site: tuple[int, Path], python: Path, use: Use
) -> None:
    with pytest.raises(SegserveError) as caught:
        use(f"https://127.0.0.1:{site[0]}", home, tmp_path, python)
    assert isinstance(caught.value, RepositoryUnreachable | EnvironmentBuildFailed)
    assert "certificate" in f"{caught.value.message} {caught.value.quote}".lower()


@USES
@pytest.mark.parametrize("setting", ["https_proxy", "HTTPS_PROXY"])
def test_a_sites_proxy(
    tmp_path: Path,
    home: Home,
    site: tuple[int, Path],
    python: Path,
    monkeypatch: pytest.MonkeyPatch,
    use: Use,
    setting: str,
) -> None:
    port, authority = site
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    with Proxy(port) as proxy:
        monkeypatch.setenv(setting, proxy.url)
        use(f"https://{HOST}", home, tmp_path, python)
    assert set(proxy.asked) == {f"{HOST}:443"}
