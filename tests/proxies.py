"""A proxy before a service: a path of its own, and connections that break when a test says so."""

from __future__ import annotations

import socket
from contextlib import AbstractContextManager, suppress
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import urlsplit


class Proxy(AbstractContextManager["Proxy"]):
    """What nginx does for a service below a path: `prefix` is taken away, bodies are streamed.

    `down = True` closes every connection and takes no new one's request, as a network that is gone. The answers of the
    next `swallow` requests are lost on the way.
    """

    def __init__(self, target: str, prefix: str) -> None:
        self.down = False
        self.swallow = 0
        self._open: set[socket.socket] = set()
        where = urlsplit(target)
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def _pass_on(self) -> None:
                self.close_connection = True
                proxy._open.add(self.connection)
                try:
                    if not proxy.down and self.path.startswith(prefix):
                        self._answer()
                except (OSError, HTTPException):
                    pass
                finally:
                    proxy._open.discard(self.connection)

            do_GET = do_POST = do_DELETE = _pass_on

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                upstream = HTTPConnection(where.hostname or "", where.port, timeout=300)
                headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
                upstream.request(self.command, self.path.removeprefix(prefix), body, headers)
                answer = upstream.getresponse()
                if proxy.swallow:
                    proxy.swallow -= 1
                    answer.read()
                    return
                self.send_response_only(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("transfer-encoding", "connection"):
                        self.send_header(name, value)
                self.send_header("Connection", "close")
                self.end_headers()
                while chunk := answer.read1(65536):
                    self.wfile.write(chunk)
                upstream.close()

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}{prefix}"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def lose(self) -> None:
        """Cut everything."""
        self.down = True
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
