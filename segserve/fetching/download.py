"""One file over http or https: every hop checked, no more bytes or seconds than allowed, nothing left when it fails."""

from __future__ import annotations

import hashlib
import http.client
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, quote, urljoin, urlsplit, urlunsplit

from segserve import redact
from segserve.errors import TooLarge, UsageError, disk_full
from segserve.fetching.addresses import Address, Policy

_CHUNK = 1 << 16
_HEAD_BYTES = 512  # as much as tells what kind of file it is
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PORTS = {"http": 80, "https": 443}
_AS_IT_IS = "/%?=&+:;,@!$'()*~-._[]"  # of path and query: what is escaped already stays so
_ODD = re.compile(r"[\x00-\x20\x7f\\]")  # whitespace and controls smuggle headers, a backslash confuses parsers


class Unfetchable(UsageError):
    """It cannot be had: the URL is wrong, or the server says no, or it is not what was asked for."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one fetch may take: bytes of content, seconds from first to last, hops."""

    max_bytes: int
    timeout_s: float = 30.0
    redirects: int = 5


@dataclass(frozen=True, slots=True)
class Downloaded:
    """A local copy, SHA-256 (hex) of its content, and its size in bytes."""

    path: Path
    sha256: str
    size: int


def download(
    url: str, target: Path, limits: Limits, policy: Policy, *, wanted: Callable[[bytes], str] | None = None
) -> Downloaded:
    """Fetch `url` into the file `target`, which appears when all of it has come. Proxies are not used.

    `wanted` gets the first bytes (at most 512) and says why they are not what is asked for, or "".

    Raises:
        AddressRefused, NoSuchHost: it is nowhere, or where a stranger's URL may not lead.
        TooLarge: it is over `limits.max_bytes`.
        Unfetchable: anything else; the messages have no secrets of the URL.
    """
    order = _Order(redact.url(url[:2000]), target, limits, wanted, time.monotonic() + limits.timeout_s)
    for _ in range(limits.redirects + 1):
        parts = _checked(url)
        connection = _connect(parts, policy, order)
        # A server that sends a byte from time to time would be within the time limit of every read.
        watchdog = threading.Timer(order.left(), connection.give_up)
        watchdog.daemon = True
        watchdog.start()
        try:
            answer = _asked(connection, parts)
            if answer.status not in _REDIRECTS:
                return _taken(answer, order)
            url = urljoin(url, answer.headers.get("Location") or "")
        except (OSError, http.client.HTTPException, ValueError) as error:
            if disk_full(error):
                raise
            said = _reason(error) if order.left() else f"it did not come within {limits.timeout_s:g} s"
            raise Unfetchable(f"{order.shown} cannot be fetched: {said}.", hint="Check the address.") from None
        finally:
            watchdog.cancel()
            connection.close()
    raise Unfetchable(f"{order.shown} cannot be fetched: it redirects more than {limits.redirects} times.")


@dataclass(frozen=True, slots=True)
class _Order:
    """What is fetched, and where to; `deadline` is monotonic."""

    shown: str
    target: Path
    limits: Limits
    wanted: Callable[[bytes], str] | None
    deadline: float

    def left(self) -> float:
        """Seconds until it is too late."""
        return max(0.0, self.deadline - time.monotonic())

    def look(self, head: bytes) -> None:
        """Refuse what begins like something else."""
        why = self.wanted(head) if self.wanted is not None else ""
        if why:
            raise Unfetchable(f"{self.shown} is not what was asked for: {why}.")

    def weigh(self, size: int) -> None:
        """Refuse what is too large."""
        if size > self.limits.max_bytes:
            most = f"{self.limits.max_bytes / 2**20:.3g} MiB"
            raise TooLarge(f"{self.shown} is larger than {most}.", hint="`fetch.max_mb` is the limit.")


class _Connection(http.client.HTTPConnection):
    """To an address that was checked, whatever the name means by now."""

    def __init__(self, host: str, port: int, addresses: list[Address], deadline: float, tls: bool) -> None:
        super().__init__(host, port)
        self._addresses, self._deadline, self._tls = addresses, deadline, tls

    def connect(self) -> None:
        """Try one address after the other."""
        failed: OSError = OSError("it has no address")
        for address in self._addresses:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("it does not answer")
            try:
                self.sock = socket.create_connection((str(address), self.port), timeout=left)
                break
            except OSError as error:
                failed = error
        else:
            raise failed
        if self._tls:
            context = ssl.create_default_context()
            self.sock = context.wrap_socket(self.sock, server_hostname=self.host)

    def give_up(self) -> None:
        """Let whoever waits for this connection wait no longer."""
        if self.sock is not None:
            with suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)


def _checked(url: str) -> SplitResult:
    shown = redact.url(url[:2000])
    if len(url) > 8000 or _ODD.search(url):
        raise Unfetchable(f"{shown} is no URL: it is too long, or has blanks or control characters.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Unfetchable(f"{shown} is no URL: {error}.") from None
    if parts.scheme not in _PORTS or not parts.hostname or port == 0:
        raise Unfetchable(f"{shown} is not fetched.", hint="A URL begins with https:// or http:// and names a host.")
    if parts.username is not None or parts.password is not None:
        raise Unfetchable(f"{shown} is not fetched: it holds a user or a password.", hint="Sign the URL instead.")
    return parts


def _connect(parts: SplitResult, policy: Policy, order: _Order) -> _Connection:
    host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    addresses = policy.addresses(host, port, order.left())
    return _Connection(host, port, addresses, order.deadline, parts.scheme == "https")


def _asked(connection: _Connection, parts: SplitResult) -> http.client.HTTPResponse:
    path = urlunsplit(("", "", parts.path or "/", parts.query, ""))
    headers = {"Accept": "image/*, */*;q=0.5", "Accept-Encoding": "identity", "User-Agent": "segserve"}
    connection.request("GET", quote(path, safe=_AS_IT_IS), None, headers)
    return connection.getresponse()


def _taken(answer: http.client.HTTPResponse, order: _Order) -> Downloaded:
    if answer.status != 200:
        raise Unfetchable(f"{order.shown} cannot be fetched: the server says {answer.status} {answer.reason}.")
    if answer.headers.get("Content-Encoding", "identity").lower() not in ("", "identity"):
        raise Unfetchable(f"{order.shown} cannot be fetched: it is compressed for the way, which was not asked for.")
    announced = answer.length
    order.weigh(announced or 0)
    order.target.parent.mkdir(parents=True, exist_ok=True)
    part = order.target.with_name(f".{order.target.name}.part")
    try:
        digest, size = _written(answer, part, order)
        if announced is not None and size != announced:
            raise http.client.HTTPException(f"the connection ended after {size} of {announced} bytes")
        if not order.left():  # then it may have ended because we have ended it
            raise TimeoutError
        part.replace(order.target)
    finally:
        part.unlink(missing_ok=True)
    return Downloaded(order.target, digest, size)


def _written(answer: http.client.HTTPResponse, part: Path, order: _Order) -> tuple[str, int]:
    digest, size, head = hashlib.sha256(), 0, b""
    with part.open("wb") as stream:
        while chunk := answer.read1(_CHUNK):
            size += len(chunk)
            order.weigh(size)
            digest.update(chunk)
            stream.write(chunk)
            if len(head) < _HEAD_BYTES:
                head = (head + chunk)[:_HEAD_BYTES]
                if len(head) == _HEAD_BYTES:
                    order.look(head)
    if len(head) < _HEAD_BYTES:
        order.look(head)
    return digest.hexdigest(), size


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    if isinstance(error, ConnectionRefusedError):
        return "nobody listens there"
    return redact.text(getattr(error, "strerror", None) or str(error) or type(error).__name__)
