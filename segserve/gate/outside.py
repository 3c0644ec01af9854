"""The way out of a sandbox whose executor was granted the network: an HTTP proxy on a socket inside.

It connects to addresses of the public internet (and what `sandbox.allow` names), never to this machine: neither MLflow
nor the service nor another job's gate can be reached by it. Where this machine itself has to use a proxy, requests are
handed on to that one, which then decides what can be reached.
"""

from __future__ import annotations

import base64
import socket
import threading
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import unquote, urlsplit

from segserve.errors import SegserveError
from segserve.fetching.addresses import Policy

_HEAD_BYTES = 1 << 16
_CHUNK = 1 << 16
_CONNECT_S = 30.0
_IDLE_S = 600.0
_MOST_SAID = 50


class _Unclear(Exception):
    """What came is no request to a proxy."""


class Outside:
    """Serves one listening socket. `say` gets each host once, for the attempt's log."""

    def __init__(self, policy: Policy, say: Callable[[str], None]) -> None:
        self._policy, self._say = policy, say
        self._seen: set[str] = set()
        self._lock = threading.Lock()
        self._proxies = urllib.request.getproxies()  # of this machine, before the executor's environment is ours

    def serve(self, listener: socket.socket) -> None:
        """Answer on it, in threads."""
        threading.Thread(target=self._accept, args=(listener,), name="outside", daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # whoever has it served has closed it
                return
            threading.Thread(target=self._answer, args=(client,), daemon=True).start()

    def _answer(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            client.settimeout(_CONNECT_S)
            try:
                method, target, head, rest = _request(client)
                server, first = self._connect(method, target, head)
            except _Unclear as problem:
                _refuse(client, 400, str(problem))
                return
            except SegserveError as refusal:
                sentence = f"{refusal.message} The admin can allow it: `sandbox.allow` in config.toml."
                self._note(f"The network was refused: {sentence}")
                _refuse(client, 403, sentence)
                return
            except OSError as error:
                _refuse(client, 502, f"{target} cannot be reached: {error}")
                return
            with server:
                if first is None:
                    client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                server.sendall((first or b"") + rest)
                _relay(client, server)

    def _connect(self, method: str, target: str, head: bytes) -> tuple[socket.socket, bytes | None]:
        """A connection for a request, and what to send first; None: a tunnel, whose end has to be told."""
        if method == "CONNECT":
            scheme, parts = "https", urlsplit(f"//{target}")
        else:
            scheme, parts = "http", urlsplit(target)
            if parts.scheme != "http":
                raise _Unclear("The request names no http:// address.")
        try:
            host, port = parts.hostname or "", parts.port or (443 if scheme == "https" else 80)
        except ValueError:
            raise _Unclear("The request names no port.") from None
        if not host:
            raise _Unclear("The request names no host.")
        proxy = "" if urllib.request.proxy_bypass(host) else self._proxies.get(scheme, "")
        if proxy:
            self._note(f"Network: {host}:{port}, by this machine's proxy")
            return _by(proxy, method, target, head)
        addresses = self._policy.addresses(host, port, _CONNECT_S)
        self._note(f"Network: {host}:{port}")
        server = _any(host, [str(address) for address in addresses], port)
        if method == "CONNECT":
            return server, None
        path = parts._replace(scheme="", netloc="").geturl() or "/"
        return server, _rewritten(method, path, head, close=True)

    def _note(self, text: str) -> None:
        with self._lock:
            if text in self._seen or len(self._seen) >= _MOST_SAID:
                return
            self._seen.add(text)
        self._say(text)


def _request(client: socket.socket) -> tuple[str, str, bytes, bytes]:
    """Method, target, the header lines, and what of the body has come with them."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = client.recv(_CHUNK)
        if not more or len(data) > _HEAD_BYTES:
            raise _Unclear("The request has no end.")
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    first, _, lines = head.partition(b"\r\n")
    words = first.decode("latin-1").split(" ")
    if len(words) != 3:
        raise _Unclear("The first line is no request.")
    return words[0], words[1], lines, rest


def _rewritten(method: str, target: str, lines: bytes, *, close: bool = False, more: bytes = b"") -> bytes:
    """A request anew. `close`: the connection is for this one alone, the next may be for another host."""
    kept = [line for line in lines.split(b"\r\n") if line and not line.lower().startswith((b"proxy-", b"connection:"))]
    kept += ([b"Connection: close"] if close else []) + ([more] if more else [])
    return b"\r\n".join([f"{method} {target} HTTP/1.1".encode("latin-1"), *kept, b"", b""])


def _by(proxy: str, method: str, target: str, head: bytes) -> tuple[socket.socket, bytes]:
    parts = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    login = b""
    if parts.username:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        login = b"Proxy-Authorization: Basic " + base64.b64encode(pair)
    server = socket.create_connection((parts.hostname or "", parts.port or 3128), _CONNECT_S)
    return server, _rewritten(method, target, head, close=method != "CONNECT", more=login)


def _any(host: str, addresses: list[str], port: int) -> socket.socket:
    problem = OSError(f"{host} has no address")
    for address in addresses:
        try:
            return socket.create_connection((address, port), _CONNECT_S)
        except OSError as error:
            problem = error
    raise problem


def _relay(client: socket.socket, server: socket.socket) -> None:
    for one in (client, server):
        one.settimeout(_IDLE_S)
    back = threading.Thread(target=_copy, args=(server, client), daemon=True)
    back.start()
    _copy(client, server)
    back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(_CHUNK):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _refuse(client: socket.socket, status: int, message: str) -> None:
    body = f"segserve: {message}\n".encode()
    head = f"HTTP/1.1 {status} Refused\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
    client.sendall(f"{head}Connection: close\r\n\r\n".encode() + body)
