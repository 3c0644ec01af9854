"""A proxy before a service: a path of its own, and connections that break when a test says so."""

from __future__ import annotations

import socket
import time
from contextlib import AbstractContextManager, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from urllib.parse import urlsplit

_ALL = 1 << 60  # bytes


class Proxy(AbstractContextManager["Proxy"]):
    """What nginx does for a service below a path: `prefix` is taken away, bodies are streamed.

    `down = True` closes every connection and takes no new one's request, as a network that is gone. The answers of the
    next `swallow` requests are lost on the way. Answers to what `cut` occurs in break off after so many bytes each.
    `hold` stops what comes ("body"), its answer ("answer") or a file of a result ("file") until it is "" again; `held`
    says that somebody waits there.
    `target` may change. `ranges` are the parts of files that were asked for.
    """

    def __init__(self, target: str, prefix: str) -> None:
        self.target, self.prefix = target, prefix
        self.down = False
        self.swallow = 0
        self.cut: tuple[str, int] = ("/", _ALL)
        self.hold = ""
        self.held = Event()
        self.ranges: list[str] = []
        self.open: set[socket.socket] = set()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}{prefix}"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def lose(self) -> None:
        """Cut everything."""
        self.down = True
        for connection in list(self.open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def wait(self, at: str) -> None:
        """Where a test may hold what passes."""
        while self.hold == at:
            self.held.set()
            time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy

    def _pass_on(self) -> None:
        self.close_connection = True
        self.proxy.open.add(self.connection)
        try:
            if not self.proxy.down and self.path.startswith(self.proxy.prefix):
                self._answer()
        except (OSError, HTTPException):
            pass
        finally:
            self.proxy.open.discard(self.connection)

    do_GET = do_POST = do_DELETE = _pass_on

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if length:
            self.proxy.wait("body")
        if "Range" in self.headers:
            self.proxy.ranges.append(self.headers["Range"])
        body = self.rfile.read(length)
        if len(body) < length:  # given up in the middle
            return
        where = urlsplit(self.proxy.target)
        upstream = HTTPConnection(where.hostname or "", where.port, timeout=300)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
        upstream.request(self.command, self.path.removeprefix(self.proxy.prefix), body, headers)
        answer = upstream.getresponse()
        if self.proxy.swallow:
            self.proxy.swallow -= 1
            answer.read()
            return
        self.proxy.wait("file" if "/files/" in self.path else "answer" if length else "nothing")
        self._send(answer)
        upstream.close()

    def _send(self, answer: HTTPResponse) -> None:
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        part, most = self.proxy.cut
        left = most if part in self.path else _ALL
        while left and (chunk := answer.read1(min(65536, left))):
            self.wfile.write(chunk)
            left -= len(chunk)

    def log_message(self, *_: object) -> None:
        """Nothing."""
