"""The gate itself: an HTTP server on loopback that knows one attempt, and passes on what its rules let through."""

from __future__ import annotations

import base64
import http.client
import http.server
import json
import secrets
import socket
import socketserver
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from http import HTTPStatus
from io import BufferedIOBase
from typing import Any

from segserve.gate.elsewhere import Elsewhere
from segserve.gate.rules import Passed, Refused, Rules, Unsupported
from segserve.tracking import address, connection
from segserve.tracking.address import TrackingServer

MAX_MESSAGE = 32 << 20  # bytes of a call that is no upload
TIMEOUT_S = 120.0
_MOST_SAID = 20  # refusals in the log; an executor that tries for ever must not fill it
_CHUNK = 1 << 16
_HANDED_ON = ("Content-Type", "User-Agent", "Accept")
_HANDED_BACK = ("Content-Type", "Content-Disposition", "Content-Length")


class Gate:
    """Open it (`open`), give the executor `variables`, and MLflow in our own process as well.

    `shut_in`: it sees no folders of MLflow's but the one of its own run; `elsewhere`: and has that for the others.
    `say` gets refusals, for the log; `take` each number of bytes that is uploaded, and says whether they may be.

    Whoever calls has to know its password: other jobs on the same machine can reach a port on loopback, too.
    """

    def __init__(
        self,
        server: TrackingServer,
        rules: Rules,
        say: Callable[[str], None],
        take: Callable[[int], bool],
        *,
        shut_in: bool = False,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self.rules = rules
        self._server = server
        self._opener = connection.opener(server)
        self._authorization = connection.authorization(server.variables)
        self._say, self._take = say, take
        self._said = 0
        self._warns = shut_in
        self._elsewhere = elsewhere
        self._password = secrets.token_urlsafe(24)
        pair = base64.b64encode(f"attempt:{self._password}".encode()).decode()
        self._expected = f"Basic {pair}"
        self._http: _Server | None = None
        self._lock = threading.Lock()

    @property
    def uri(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        """Its port on loopback."""
        if self._http is None:
            raise ValueError("the gate is not open")
        return int(self._http.server_address[1])

    @property
    def password(self) -> str:
        """What nobody but the attempt may know."""
        return self._password

    @property
    def variables(self) -> dict[str, str]:
        """For the environment of whoever calls through it. Every MLflow client from 1.0 on understands them."""
        return {address.URI: self.uri, address.USERNAME: "attempt", address.PASSWORD: self._password}

    def open(self) -> None:
        """Listen on a free port of loopback, in threads of its own."""
        self._http = _Server(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 3600.0}, daemon=True).start()

    def serve(self, listener: socket.socket) -> None:
        """Serve a second listening socket, such as one that was made in the network of a sandbox."""
        server = _Server(listener.getsockname()[:2], _handler(self), bind_and_activate=False)
        server.socket.close()
        server.socket = listener
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 3600.0}, daemon=True).start()

    def admits(self, header: str) -> bool:
        """Whether a request's Authorization is that of the attempt."""
        return secrets.compare_digest(header.encode(), self._expected.encode())

    def refused(self, what: str, why: str, rule: str = "An executor may only use its own run.") -> str:
        """The sentence for a refusal, which stands in the attempt's log as well."""
        sentence = f"The gate to MLflow refused {what}: {why}. {rule}"
        with self._lock:
            self._said += 1
            if self._said <= _MOST_SAID:
                more = " (Further refusals are not shown.)" if self._said == _MOST_SAID else ""
                self._say(f"{sentence}{more}")
        return sentence

    def shown(self, answer: bytes) -> bytes:
        """What the executor hears of a run or model."""
        return answer if self._elsewhere is None else self._elsewhere.shown(answer)

    def learn(self, passed: Passed, answer: bytes) -> None:
        """Take note of a run or model that was created, and say once what an executor that is shut in cannot do."""
        in_a_folder = self.rules.learn(passed, answer)
        if self._elsewhere is not None:
            self._elsewhere.created(answer)
        elif in_a_folder and self._warns:
            self._warns = False
            self._say(
                f"A {passed.creates} was created. Values and tags of it are stored, its files are not: MLflow keeps "
                "them in folders of the machine, of which a sandbox shows that of the job's own run alone. Log files "
                "to the own run, or let MLflow's server store them (`mlflow-artifacts:`); see docs/isolation.md."
            )

    def counted(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Pieces of an upload without a length, as long as the attempt may write so much."""
        for piece in pieces:
            self.count(len(piece))
            yield piece

    def count(self, size: int) -> None:
        """Count bytes of an upload.

        Raises:
            _TooMuch: the attempt may not write so much.
        """
        if not self._take(size):
            raise _TooMuch("the executor has written and uploaded all that it may")

    def forward(self, passed: Passed, headers: dict[str, str], body: bytes | Iterator[bytes] | None) -> Any:
        """Send it on and return the server's answer, whatever its status.

        Raises:
            OSError, http.client.HTTPException: there was none.
        """
        request = urllib.request.Request(  # noqa: S310 - http(s), see tracking.address
            self._server.uri + passed.target,
            data=body or None,
            headers={**headers, **self._authorization},
            method=passed.method,
        )
        try:
            return self._opener.open(request, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as answer:
            return answer


class _TooMuch(Exception):
    """An upload goes beyond what the attempt may write."""


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    allow_reuse_address = False
    request_queue_size = 128

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer would look its own name up: seconds without a DNS
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a client that hangs up is no news
            super().handle_error(request, client_address)


def _handler(gate: Gate) -> type[http.server.BaseHTTPRequestHandler]:
    return type("Handler", (_Handler,), {"gate": gate})


class _Handler(http.server.BaseHTTPRequestHandler):
    gate: Gate
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = _CHUNK
    timeout = 600  # a connection that is kept open

    def log_message(self, *_: object) -> None:
        """Calls are not logged; refusals are, see `Gate.refused`."""

    def _serve(self) -> None:
        self._pieces = self._body()
        what = f"{self.command} {self.path.partition('?')[0][:200]!a}"
        try:
            if not self.gate.admits(self.headers.get("Authorization", "")):
                why = f"it came without {address.USERNAME} and {address.PASSWORD} of the attempt's environment"
                self._refuse(HTTPStatus.UNAUTHORIZED, "UNAUTHENTICATED", self.gate.refused(what, why))
                return
            self._pass_on()
        except Refused as refusal:
            self._refuse(HTTPStatus.FORBIDDEN, "PERMISSION_DENIED", self.gate.refused(what, str(refusal)))
        except Unsupported as answer:
            self._refuse(HTTPStatus.NOT_IMPLEMENTED, "NOT_IMPLEMENTED", str(answer))
        except _TooMuch as refusal:
            sentence = self.gate.refused(what, str(refusal), "The admin can allow more: `sandbox.output_gb`.")
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "RESOURCE_EXHAUSTED", sentence)
        except (OSError, http.client.HTTPException) as error:
            with suppress(OSError):  # 503: clients ask again, as they would if the server itself did not answer
                text = f"MLflow does not answer the gate: {error}"
                self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "TEMPORARILY_UNAVAILABLE", text)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815

    def _pass_on(self) -> None:
        upload = Rules.is_upload(self.command, self.path)
        body = None if upload else b"".join(_bounded(self._pieces, MAX_MESSAGE))
        passed = self.gate.rules.judge(self.command, self.path, body)
        headers = {name: self.headers[name] for name in _HANDED_ON if self.headers[name]}
        if not upload:
            headers["Content-Type"] = "application/json"  # that is what the rules have written
        elif self.headers["Content-Length"]:
            headers["Content-Length"] = str(self._length())
            self.gate.count(self._length())
        content = (self._pieces if "Content-Length" in headers else self.gate.counted(self._pieces)) if upload else None
        with self.gate.forward(passed, headers, content or passed.body) as answer:
            if answer.status == HTTPStatus.OK and (passed.creates or passed.names or passed.finds or passed.says):
                told = answer.read(MAX_MESSAGE)
                if passed.creates:
                    self.gate.learn(passed, told)
                    told = self.gate.shown(told)
                elif passed.finds:
                    self.gate.rules.found(passed, told)
                    told = self.gate.shown(told)
                elif passed.says:
                    told = self.gate.rules.here(told)
                else:
                    self.gate.rules.check_experiment(passed, told)
                self._answer(answer.status, {"Content-Type": "application/json"}, told)
            else:
                self._stream(answer)

    def _body(self) -> Iterator[bytes]:
        """The request's body in pieces.

        Raises:
            Refused: it has no length that is understood.
        """
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            yield from _chunks(self.rfile)
            return
        left = self._length()
        while left and (data := self.rfile.read(min(left, _CHUNK))):
            left -= len(data)
            yield data

    def _length(self) -> int:
        text = self.headers.get("Content-Length", "0")
        if not (text.isascii() and text.isdigit()):
            self.close_connection = True
            raise Refused("its Content-Length is no number")
        return int(text)

    def _stream(self, answer: Any) -> None:
        headers = {name: answer.headers[name] for name in _HANDED_BACK if answer.headers[name]}
        if "Content-Length" not in headers:
            self.close_connection = True
            headers["Connection"] = "close"
        self.send_response_only(answer.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        while data := answer.read(_CHUNK):
            self.wfile.write(data)
        self.wfile.flush()

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def _refuse(self, status: HTTPStatus, code: str, message: str) -> None:
        self.close_connection = True
        with suppress(Refused):  # who hangs up while the other still writes is not heard
            for _ in _bounded(self._pieces, MAX_MESSAGE):
                pass
        content = json.dumps({"error_code": code, "message": message}).encode()
        self._answer(status, {"Content-Type": "application/json", "Connection": "close"}, content)


def _chunks(stream: BufferedIOBase) -> Iterator[bytes]:
    """The pieces of a body in chunked coding (RFC 9112, 7.1)."""
    while True:
        size = stream.readline(_CHUNK).split(b";")[0].strip()
        try:
            left = int(size, 16)
        except ValueError:
            raise Refused("its chunks have no length") from None
        while left > 0 and (data := stream.read(min(left, _CHUNK))):
            left -= len(data)
            yield data
        if left or not size.isalnum():
            raise Refused("its body ends in the middle")
        if not int(size, 16):
            while stream.readline(_CHUNK).strip():  # trailers
                pass
            return
        stream.readline(_CHUNK)


def _bounded(pieces: Iterator[bytes], limit: int) -> Iterator[bytes]:
    total = 0
    for piece in pieces:
        total += len(piece)
        if total > limit:
            raise Refused(f"its body is longer than {limit} bytes")
        yield piece
