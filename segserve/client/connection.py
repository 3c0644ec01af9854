"""Requests to one server. What can be asked twice is tried again; what is refused raises the error that it is here."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from ipaddress import ip_address
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit

import httpx
from pydantic import TypeAdapter

import segserve
from segserve.errors import (
    AccessDenied,
    BackendError,
    LoginNeeded,
    NotFound,
    QuotaExceeded,
    RunCancelled,
    SegserveError,
    TooLarge,
    UsageError,
)
from segserve.findings import Finding, Place, Severity

TRIES = 7  # of a server that has answered before: about a minute, in which it starts again
_FIRST_TRIES = 3  # of one that has not: the address may be wrong
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0
_TIMEOUT = httpx.Timeout(60.0, connect=10.0)
_BLANK = re.compile(r"[\s\x00-\x1f]")
_NO_ROUTE = ("Not Found", "Method Not Allowed")  # a segserve, but not here, or of another version
_PASSING = frozenset({429, 502, 503, 504})  # a proxy without its server, a server that starts again
_BY_STATUS: Mapping[int, type[SegserveError]] = {
    401: LoginNeeded,
    403: AccessDenied,
    404: NotFound,
    413: TooLarge,
    429: QuotaExceeded,
}


# What trying again does not change → what to do about it.
_HOPELESS: Mapping[str, str] = {
    "CERTIFICATE_VERIFY_FAILED": "Its certificate is not trusted here; SSL_CERT_FILE names a file with yours.",
    "WRONG_VERSION_NUMBER": "It speaks no TLS there: is its address http://…?",
    "RECORD_LAYER_FAILURE": "It speaks no TLS there: is its address http://…?",
    "Name or service not known": "There is no host of this name. Is the address written correctly?",
    "No address associated": "There is no host of this name. Is the address written correctly?",
    "nodename nor servname": "There is no host of this name. Is the address written correctly?",
}
_Answer = TypeVar("_Answer")


class ServerUnreachable(BackendError):
    """The server does not answer."""


class NotUnderstood(BackendError):
    """Somebody answers, but not as a segserve of about this version does."""

    retryable = False


class Connection:
    """One server. The token goes to this server alone: redirects are not followed."""

    def __init__(self, url: str, token: str = "", *, note: Callable[[str], None] = lambda _: None) -> None:
        parts = _parts(url)
        self.url = url.rstrip("/")
        self.loopback = _is_loopback(parts.hostname or "")
        self.note = note
        self._met = False  # whether it has answered before
        if token and parts.scheme == "http" and not self.loopback:
            note("The token goes to the server without encryption: the address begins with http://.")
        headers = {"User-Agent": f"segserve/{segserve.__version__}"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        # A proxy of the environment is for the world outside; this machine is none of its business.
        self._http = httpx.Client(
            base_url=self.url, headers=headers, timeout=_TIMEOUT, trust_env=not self.loopback, follow_redirects=False
        )

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, kind: type[_Answer], **query: Any) -> Any:
        """JSON that can be read as `kind` (of `answers`), as it came."""
        given = {name: value for name, value in query.items() if value is not None}
        return self.read(self.ask("GET", path, params=given), kind)

    def read(self, answer: httpx.Response, kind: type[_Answer]) -> Any:
        """The JSON of an answer.

        Raises:
            NotUnderstood: it is none, or has not what the client needs.
        """
        try:
            document = answer.json()
            TypeAdapter(kind).validate_python(document)
        except ValueError:
            raise self.not_understood() from None
        return document

    def not_understood(self, what: str = "") -> NotUnderstood:
        """What to say of a server that speaks another language."""
        return NotUnderstood(
            f"{self.url} answers{what}, but not as a segserve {segserve.__version__} does.",
            hint="Is this its whole address, with the path below which a proxy shows it? URL/status says its version.",
        )

    def ask(
        self, method: str, path: str, *, body: Callable[[], Iterator[bytes]] | None = None, **options: Any
    ) -> httpx.Response:
        """One answer. `body` makes the same bytes at every try.

        Raises:
            ServerUnreachable: nobody answers, after some tries.
            SegserveError: what the server says.
        """
        pause = _FIRST_PAUSE
        for attempt in itertools.count(1):
            try:
                answer = self._http.request(method, path, content=body() if body else None, **options)
            except httpx.RequestError as error:
                if attempt >= (TRIES if self._met else min(TRIES, _FIRST_TRIES)) or _hopeless(error):
                    raise self.unreachable(error) from None
                if attempt == 1:
                    self.note(f"{self.url} does not answer ({_reason(error)}); trying again.")
            else:
                self._met = True
                if answer.status_code not in _PASSING or attempt >= TRIES or _is_ours(answer):
                    return self._checked(answer)
                if attempt == 1:
                    self.note(f"{self.url} answers {answer.status_code}; trying again.")
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
        raise AssertionError("unreachable")  # pragma: no cover

    @contextmanager
    def stream(self, path: str, headers: Mapping[str, str] | None = None) -> Iterator[httpx.Response]:
        """An answer that is read while it comes; tried once."""
        with self._http.stream("GET", path, headers=dict(headers or {})) as answer:
            if not answer.is_success:
                answer.read()
                self._checked(answer)
            yield answer

    def unreachable(self, error: Exception) -> ServerUnreachable:
        """What to say when nobody answers."""
        return ServerUnreachable(
            f"{self.url} cannot be reached: {_reason(error)}.",
            hint=_hopeless(error) or f"Does the server run, and is this its address?{self._perhaps_https(error)}",
        )

    def _perhaps_https(self, error: Exception) -> str:
        talks = isinstance(error, httpx.RemoteProtocolError) and self.url.startswith("http://") and not self._met
        return " It may want https://." if talks else " --server or SEGSERVE_SERVER names it."

    def _checked(self, answer: httpx.Response) -> httpx.Response:
        if answer.is_success:
            return answer
        status = answer.status_code
        if answer.is_redirect:
            location = answer.headers.get("location", "")[:200]
            raise UsageError(f"{self.url} leads elsewhere: to {location}", hint="If that is right, --server names it.")
        try:
            problem = answer.json()
        except ValueError:
            problem = None
        if isinstance(problem, dict) and "title" in problem and problem.get("message") not in _NO_ROUTE:
            raise error_of(problem, status)
        if status in _OF_PROXIES:
            kind, message, hint = _OF_PROXIES[status]
            raise kind(f"A proxy before {self.url} {message} ({status}).", hint=hint)
        raise self.not_understood(f" {status} {answer.reason_phrase}")


def error_of(problem: Mapping[str, Any], status: int = 0) -> SegserveError:
    """Problem details, or the error of a job, as the error that a local run would have raised."""
    name = str(problem.get("title") or problem.get("code") or "")
    kind = _kinds().get(name) or _BY_STATUS.get(status) or (BackendError if status >= 500 else UsageError)
    return kind(
        str(problem.get("message") or problem.get("detail") or f"The server answered {status}."),
        hint=str(problem.get("hint") or ""),
        quote=str(problem.get("quote") or ""),
        findings=tuple(_findings(problem.get("findings"))),
    )


def ended(state: str, error: Mapping[str, Any]) -> SegserveError:
    """Why a job has no result."""
    if not error and state == "cancelled":
        return RunCancelled("The job was cancelled.", hint="Run it again.")
    return error_of({**error, "message": error.get("message") or f"The job has {state}."}, 502)


_DOWN = (ServerUnreachable, "has no server behind it", "Does segserve run there? Its log says why not.")
_OF_PROXIES: Mapping[int, tuple[type[SegserveError], str, str]] = {
    401: (LoginNeeded, "wants a password of its own", "segserve cannot give it one; ask its administrator."),
    403: (AccessDenied, "lets nobody in from here", "Ask its administrator."),
    413: (TooLarge, "takes no body of this size", "Its administrator can allow more: client_max_body_size of nginx."),
    502: _DOWN,
    503: _DOWN,
    504: _DOWN,
}


def _is_ours(answer: httpx.Response) -> bool:
    """Whether the server itself says this, and not a proxy before it: then it does not pass by itself at once."""
    return bool(answer.headers.get("content-type", "").startswith("application/problem+json"))


@cache
def _kinds() -> dict[str, type[SegserveError]]:
    found: dict[str, type[SegserveError]] = {}
    waiting: list[type[SegserveError]] = [SegserveError]
    while waiting:
        kind = waiting.pop()
        found[kind.__name__] = kind
        waiting += kind.__subclasses__()
    del found["SegserveError"]
    return found


def _findings(rows: Any) -> Iterator[Finding]:
    for row in rows if isinstance(rows, list) else ():
        try:
            place = Place(**row["place"])
            yield Finding(row["rule"], Severity(row["severity"]), row["message"], place, row.get("fix", ""))
        except (KeyError, TypeError, ValueError):  # of another version: its message is what counts
            yield Finding("server", Severity.ERROR, json.dumps(row, ensure_ascii=False)[:500], Place())


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).rstrip(".")


def _hopeless(error: Exception) -> str:
    """What to do about a failure that trying again does not change; "" for others."""
    return next((hint for mark, hint in _HOPELESS.items() if mark in str(error)), "")


def _parts(url: str) -> SplitResult:
    with suppress(ValueError):  # an unclosed bracket, a port that is none
        parts = urlsplit(url)
        _ = parts.port
        plain = not (parts.query or parts.fragment or parts.username)
        if parts.scheme in ("http", "https") and parts.hostname and plain and not _BLANK.search(url):
            return parts
    raise UsageError(
        f"'{url}' is no address of a server.", hint="For example https://segserve.example.org or http://host:8000"
    )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
