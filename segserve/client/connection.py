"""Requests to one server. What can be asked twice is tried again; what is refused raises the error that it is here."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import httpx

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

TRIES = 6
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0
_TIMEOUT = httpx.Timeout(60.0, connect=10.0)
_PASSING = frozenset({429, 502, 503, 504})  # a proxy without its server, a server that starts again
_BY_STATUS: Mapping[int, type[SegserveError]] = {
    401: LoginNeeded,
    403: AccessDenied,
    404: NotFound,
    413: TooLarge,
    429: QuotaExceeded,
}


class ServerUnreachable(BackendError):
    """The server does not answer."""


class Connection:
    """One server. The token goes to this server alone: redirects are not followed."""

    def __init__(self, url: str, token: str = "", *, note: Callable[[str], None] = lambda _: None) -> None:
        parts = urlsplit(url)
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or parts.query
            or parts.fragment
            or parts.username
        ):
            raise UsageError(
                f"'{url}' is no address of a server.",
                hint="For example https://segserve.example.org or http://host:8000",
            )
        self.url = url.rstrip("/")
        self.loopback = _is_loopback(parts.hostname)
        self.note = note
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

    def get(self, path: str, **query: Any) -> Any:
        """JSON."""
        return self.ask("GET", path, params={name: value for name, value in query.items() if value is not None}).json()

    def ask(
        self, method: str, path: str, *, body: Callable[[], Iterator[bytes]] | None = None, **options: Any
    ) -> httpx.Response:
        """One answer. `body` makes the same bytes at every try.

        Raises:
            ServerUnreachable: nobody answers, after some tries.
            SegserveError: what the server says.
        """
        pause = _FIRST_PAUSE
        for attempt in range(1, TRIES + 1):
            try:
                answer = self._http.request(method, path, content=body() if body else None, **options)
            except httpx.TransportError as error:
                if attempt == TRIES:
                    raise self.unreachable(error) from None
                if attempt == 1:
                    self.note(f"{self.url} does not answer ({_reason(error)}); trying again.")
            else:
                if answer.status_code not in _PASSING or attempt == TRIES or _is_ours(answer):
                    return _checked(answer)
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
        raise AssertionError("unreachable")  # pragma: no cover

    @contextmanager
    def stream(self, path: str, headers: Mapping[str, str] | None = None) -> Iterator[httpx.Response]:
        """An answer that is read while it comes; tried once."""
        with self._http.stream("GET", path, headers=dict(headers or {})) as answer:
            if not answer.is_success:
                answer.read()
                _checked(answer)
            yield answer

    def unreachable(self, error: Exception) -> ServerUnreachable:
        """What to say when nobody answers."""
        return ServerUnreachable(
            f"{self.url} cannot be reached: {_reason(error)}.",
            hint="Does the server run, and is this its address? --server or SEGSERVE_SERVER names it.",
        )


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


def _checked(answer: httpx.Response) -> httpx.Response:
    if answer.is_success:
        return answer
    try:
        problem = answer.json()
    except ValueError:
        problem = {}
    if not isinstance(problem, dict):
        problem = {}
    if not problem and answer.status_code < 400:
        raise UsageError("The address leads elsewhere.", hint=f"It says: {answer.headers.get('location', '')[:200]}")
    raise error_of(problem, answer.status_code)


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
    return str(error) or type(error).__name__


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
