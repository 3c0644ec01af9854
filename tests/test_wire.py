"""Byte for byte what SegUI, acia and the CI of executors send, over a socket; the answers are compared in full.

The requests are written down as those programs write them: a browser's FormData, `requests` 2 (multipart by urllib3,
`urlencode`d parameters). None of them knows a token: they come as open clients, to a server below a path of a proxy.
"""

from __future__ import annotations

import gzip
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest

from segserve.layout import Home
from segserve.tokens import Scope, Tokens
from tests.executors import make_shell_executor
from tests.repositories import PrivateServer, git
from tests.services import Service
from tests.tls import make_certificate, secure
from tests.uploads import png

SQUARE = '[{"label": "Cell", "type": "Polygon", "contour_coordinates": [[1, 1], [1, 9], [9, 9], [9, 1]]}]'
SECURITY = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "x-frame-options": "SAMEORIGIN",
}
CORS = {
    "access-control-allow-origin": "https://segui.example.org",
    "access-control-expose-headers": "Location, Retry-After",
}
SECRET = "canary-of-the-ci-7d3"


def document(images: int, filename: str = "") -> bytes:
    """The executor's output.json as it wrote it; of a single image, with its name."""
    name = f',"filename":"{filename}"' if filename else ""
    return (
        f'{{"model": "shell", "format_version": "0.2", "segmentation_data": [{", ".join([SQUARE] * images)}]{name}}}'
    ).encode()


@dataclass
class World:
    service: Service
    repo: str
    sha: str
    private: str  # the address of the same behind a login, without it
    admin: str

    def send(self, request: bytes) -> socket.socket:
        """Send a request as it is, but for the address."""
        parts = urlsplit(self.service.url)
        connection = socket.create_connection((parts.hostname, parts.port), timeout=300)
        connection.sendall(request.replace(b"{HOST}", parts.netloc.encode()))
        return connection

    def ask(self, request: bytes) -> tuple[str, dict[str, str], bytes]:
        """Status line, all headers but `date`, `vary` and `x-request-id`, body."""
        with self.send(request) as connection:
            return answer_on(connection)


def answer_on(connection: socket.socket) -> tuple[str, dict[str, str], bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        data += _more(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    assert length is not None, head
    while len(body) < int(length[1]):
        body += _more(connection)
    status, *lines = head.decode("ascii").split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert len(headers) == len(lines), "a header came twice"
    assert re.fullmatch("([0-9a-f]{16})?", headers.pop("x-request-id", ""))  # by which the log knows it
    return status, {name: value for name, value in headers.items() if name not in ("date", "vary")}, body


def _more(connection: socket.socket) -> bytes:
    more = connection.recv(65536)
    assert more, "the server has closed the connection"
    return more


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("wire")
    sha = make_shell_executor(folder / "executor", environment=True)
    (folder / "served").mkdir()
    git(folder, "clone", "-q", "--bare", "executor", "served/executor.git")
    tokens = Tokens(Home(folder / "home").ensure().tokens)
    admin = tokens.add("chef", scopes=[Scope.ADMIN])[1]
    patch = pytest.MonkeyPatch()
    certificate = make_certificate(folder)
    patch.setenv("GIT_SSL_CAINFO", str(certificate))
    with PrivateServer(folder / "served", user="gitlab-ci-token", password=SECRET) as server:
        private = secure(server._server, certificate) + "/executor.git"
        settings = f"""\
origins = ["https://segui.example.org"]
sync_wait_s = 280
[executors]
cells = "file://{folder}/executor@main"
ci = "{private}@{sha}"
[open_clients]
networks = ["127.0.0.1/32"]
"""
        with Service(folder / "home", folder, "--root-path", "/segService", server=settings) as service:
            service.url = service.url.removesuffix("/segService")  # the proxy takes it away
            yield World(service, f"file://{folder}/executor", sha, private, admin)
    patch.undo()


def plain(body: bytes, **more: str) -> dict[str, str]:
    """The headers of an answer with this body."""
    return {"content-length": str(len(body)), "content-type": "application/json", **SECURITY, **more}


def quoted(text: str) -> str:
    return text.replace(":", "%3A").replace("/", "%2F").replace("@", "%40")


# ----------------------------------------------------------------------------------------------------------- SegUI


def of_a_browser(world: World, images: list[bytes], parameters: str, *, encoding: str = "gzip, deflate, br") -> bytes:
    boundary = b"----WebKitFormBoundary7MA4YWxkTrZu0gW"
    body = b""
    for image in images:
        body += b"--" + boundary + b"\r\n"
        body += b'Content-Disposition: form-data; name="files"; filename="image.jpg"\r\n'
        body += b"Content-Type: image/jpeg\r\n\r\n" + image + b"\r\n"
    body += b"--" + boundary + b"--\r\n"
    query = f"repo={quoted(world.repo)}&entry_point=main&version=main&parameters={parameters}"
    head = (
        f"POST /batch-image-prediction/?{query} HTTP/1.1\r\n"
        "Host: {HOST}\r\n"
        "Connection: keep-alive\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Accept: application/json, text/plain, */*\r\n"
        "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0\r\n"
        "Content-Type: multipart/form-data; boundary=----WebKitFormBoundary7MA4YWxkTrZu0gW\r\n"
        "Origin: https://segui.example.org\r\n"
        "Sec-Fetch-Site: cross-site\r\n"
        "Sec-Fetch-Mode: cors\r\n"
        "Sec-Fetch-Dest: empty\r\n"
        "Referer: https://segui.example.org/\r\n"
        f"Accept-Encoding: {encoding}\r\n"
        "Accept-Language: en-GB,en;q=0.9\r\n"
        "\r\n"
    )
    return head.encode() + body


def test_segui_sends_an_image_and_undefined_parameters(world: World) -> None:
    status, headers, body = world.ask(of_a_browser(world, [png(1)], "undefined"))
    assert (status, body) == ("HTTP/1.1 200 OK", document(1))
    assert headers == plain(body, **CORS)


def test_segui_sends_parameters_as_json_and_gets_gzip_from_1000_bytes_on(world: World) -> None:
    images = [png(number) for number in range(20, 32)]
    request = of_a_browser(world, images, "%7B%22nap%22:0.1,%22mark%22:%22x%22%7D")
    status, headers, body = world.ask(request)
    assert (status, gzip.decompress(body)) == ("HTTP/1.1 200 OK", document(12))
    assert len(document(12)) >= 1000
    assert headers == {**plain(body), **CORS, "content-encoding": "gzip"}


def test_segui_is_told_why_it_may_not(world: World) -> None:
    text = (
        "https://host.example/group/x version main does not run here without a token."
        f" There is: {world.repo} version main, {world.private} version {world.sha}."
    )
    wrong = World(world.service, "https://host.example/group/x", "", "", "")
    status, headers, body = wrong.ask(of_a_browser(wrong, [png(1)], "undefined", encoding="identity"))
    assert body == f'{{"detail":"{text}","message":"{text}"}}'.encode()
    assert status.startswith("HTTP/1.1 422 Unprocessable")
    assert headers == plain(body, **CORS)


def test_the_browser_asks_first_whether_it_may(world: World) -> None:
    status, headers, body = world.ask(
        b"OPTIONS /batch-image-prediction/ HTTP/1.1\r\nHost: {HOST}\r\nOrigin: https://segui.example.org\r\n"
        b"Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: content-type\r\n\r\n"
    )
    assert (status, body) == ("HTTP/1.1 200 OK", b"OK")
    assert headers["access-control-allow-origin"] == "https://segui.example.org"
    assert headers["access-control-allow-methods"] == "GET, POST, DELETE"


# ------------------------------------------------------------------------------------------------------------ acia


def of_requests(path: str, query: str, parts: list[tuple[str, str, bytes]]) -> bytes:
    """As `requests.post(url, params=…, files=[("files", ("data.png", data))])` sends it: no Content-Type per part."""
    boundary = b"8f7b3c1d5e9a4b2c8d6e0f1a2b3c4d5e"
    body = b""
    for field, name, data in parts:
        disposition = f'Content-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'
        body += b"--" + boundary + b"\r\n" + disposition.encode() + data + b"\r\n"
    body += b"--" + boundary + b"--\r\n"
    head = (
        f"POST {path}?{query} HTTP/1.1\r\n"
        "Host: {HOST}\r\n"
        "User-Agent: python-requests/2.31.0\r\n"
        "Accept-Encoding: gzip, deflate\r\n"
        "Accept: */*\r\n"
        "Connection: keep-alive\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Content-Type: multipart/form-data; boundary=8f7b3c1d5e9a4b2c8d6e0f1a2b3c4d5e\r\n"
        "\r\n"
    )
    return head.encode() + body


def of_acia(world: World, image: bytes, parameters: str) -> bytes:
    query = f"repo={quoted(world.repo)}&entry_point=main&version=main&parameters={parameters}&username=acia"
    return of_requests("/batch-image-prediction/", query, [("files", "data.png", image)])


def test_acia_wants_exactly_200(world: World) -> None:
    status, headers, body = world.ask(of_acia(world, png(40), "%7B%7D"))
    assert (status, body) == ("HTTP/1.1 200 OK", document(1))
    assert headers == plain(body)


def test_acia_gives_up_reading_and_sends_the_same_again(world: World) -> None:
    """A ReadTimeout is tried again up to three times: that is one job, and each answer is the result."""
    request = of_acia(world, png(41), "%7B%22nap%22%3A+4%2C+%22mark%22%3A+%22acia%22%7D")
    with world.send(request):
        time.sleep(1)
    with world.send(request):
        time.sleep(0.2)
    status, _, body = world.ask(request)
    assert (status, body) == ("HTTP/1.1 200 OK", document(1))
    with world.service.as_(world.admin) as http:
        rows = http.get("/jobs", params={"limit": 1000}).json()
        same = [row for row in rows if http.get(f"/jobs/{row['job']}").json()["parameters"].get("mark") == "acia"]
    assert [(row["user"], row["state"]) for row in same] == [("open/acia", "succeeded")]


# --------------------------------------------------------------------------------------------------- CI of executors


def test_the_ci_of_an_executor_sends_a_full_id_and_credentials(world: World) -> None:
    private = world.private.replace("://", f"://gitlab-ci-token:{SECRET}@")
    query = f"repo={quoted(private)}&entry_point=main&version={world.sha}"
    request = of_requests("/image-prediction/", query, [("file", "test.png", png(50))])
    status, headers, body = world.ask(request)
    assert (status, body) == ("HTTP/1.1 200 OK", document(1, "test.png"))
    assert headers == plain(body)
    for path in (path for path in world.service.home.rglob("*") if path.is_file()):
        assert SECRET.encode() not in path.read_bytes(), path
    assert SECRET not in "".join(world.service.said)


def test_below_a_path_of_a_proxy(world: World) -> None:
    status, headers, _ = world.ask(b"GET / HTTP/1.1\r\nHost: {HOST}\r\nAccept: */*\r\n\r\n")
    assert (status, headers["location"]) == ("HTTP/1.1 307 Temporary Redirect", "/segService/docs")
    *_, body = world.ask(b"GET /openapi.json HTTP/1.1\r\nHost: {HOST}\r\n\r\n")
    assert b'"servers":[{"url":"/segService"}]' in body
