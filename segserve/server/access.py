"""Who may call. A server that nobody has configured listens on loopback and is the local user's.

A page that this user looks at can send requests to loopback, too, and a request can run any repository: so the Host
has to be ours (DNS rebinding), and a request that a page of another origin makes is refused.
"""

from __future__ import annotations

import getpass
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from segserve.errors import AccessDenied, SegserveError, UsageError
from segserve.server import problems

_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is. `sees` is the user whose jobs are shown, None for all of them."""

    user: str
    sees: str | None = None


def local_user() -> Caller:
    """Whoever runs the server: on loopback, nobody else is expected."""
    return Caller(getpass.getuser())


def check_address(host: str) -> None:
    """Refuse to listen where others can call.

    Raises:
        UsageError: it is no loopback address.
    """
    try:
        loopback = host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise UsageError(
            f"Without tokens the server listens on loopback only, not on '{host}'.",
            hint="Use 127.0.0.1 or ::1; from elsewhere, an ssh tunnel reaches it.",
        )


class Guard:
    """Middleware: Host and Origin are looked at before anything else."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = refused(Headers(scope=scope))
        answer: Callable[[Scope, Receive, Send], Awaitable[None]] = self._app
        if refusal is not None:
            answer = problems.answer(problems.problem(refusal))
        await answer(scope, receive, send)


def refused(headers: Headers) -> SegserveError | None:
    """Why a request with these headers is not taken; None when it is."""
    host = headers.get("host", "")
    if _name(f"//{host}") not in _NAMES:
        return AccessDenied(f"This server is not called '{host}'.", hint="Call it by localhost or 127.0.0.1.")
    origin = headers.get("origin")
    foreign = origin is not None and urlsplit(origin).netloc != host
    if foreign or headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return AccessDenied("A page of another origin may not use this server.", hint="Open the server's own page.")
    return None


def _name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
