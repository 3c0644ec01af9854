"""Places: how many requests are answered at a time, and how many of one user.

Most answers take milliseconds. Those that follow a job and those that wait for a result stay for minutes: a user may
have a number of them. Nobody takes more than half of all places: neither a user, nor all open clients, nor all whom
nobody knows. When all are taken, administrators and whoever watches the service still get in (`connections.SPARE`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

from starlette.requests import HTTPConnection

from segserve.config import ServerSettings
from segserve.errors import QuotaExceeded, SegserveError
from segserve.server import access
from segserve.server.access import Caller
from segserve.server.connections import SPARE
from segserve.tokens import Scope

WATCHED = frozenset({"/livez", "/readyz", "/metrics"})
_STREAM = re.compile(r"/jobs/[^/]+/events")
_AGAIN_SECONDS = 5.0


class ServerBusy(SegserveError):
    """All places are taken."""

    exit_code, http_status = 6, 503
    retryable = True


class Places:
    """Those of one server. Everything here happens in the event loop."""

    def __init__(self, settings: ServerSettings, most: int) -> None:
        self._most = most
        self._streams, self._waiting = settings.max_streams, settings.max_waiting
        self._taken: Counter[tuple[str, str]] = Counter()
        self.count = 0

    def take(self, caller: Caller, request: HTTPConnection) -> Callable[[], None]:
        """A place for a request; returns what gives it back.

        Raises:
            QuotaExceeded: this user has too many.
            ServerBusy: all are taken.
        """
        path = access.route_path(request)
        if path in WATCHED:
            return lambda: None
        admin = caller.may(Scope.ADMIN)
        if self.count >= self._most + (SPARE // 2 if admin else 0):
            raise ServerBusy(
                f"The server answers {self.count} requests already, which is its most.",
                hint="Try again in a moment. Whoever runs it may raise server.max_connections in config.toml.",
            )
        bounds = self._bounds(caller, request, path)
        for name, (most, what, key) in bounds.items():
            if self._taken[name] >= most and not (admin and name[0] == _ANY):
                raise QuotaExceeded(
                    f"{_whose(caller)} {self._taken[name]} {what} already, which is the most.",
                    hint=f"Try again when one of them has ended; {key} in config.toml is the limit.",
                    after_s=_AGAIN_SECONDS,
                )
        self.count += 1
        self._taken.update(bounds.keys())

        def leave() -> None:
            self.count -= 1
            for name in bounds:
                self._taken[name] -= 1
                if not self._taken[name]:
                    del self._taken[name]

        return leave

    def _bounds(
        self, caller: Caller, request: HTTPConnection, path: str
    ) -> dict[tuple[str, str], tuple[int, str, str]]:
        """What the request counts as, with how many of these there may be, in words, and the setting that says so."""
        bounds = {(_ANY, caller.user): (max(self._most // 2, 1), "requests", "half of server.max_connections")}
        if _STREAM.fullmatch(path):
            bounds["stream", caller.user] = (self._streams, "event streams", "server.max_streams")
        elif path in access.COMPATIBILITY and request.scope["method"] == "POST":
            # Open clients are one user, and know nothing of each other.
            who = f"{caller.user} {request.client.host if request.client else ''}"
            who = who if caller.registered_only else caller.user
            bounds["waiting", who] = (self._waiting, "requests that wait for a result", "server.max_waiting")
        return bounds


_ANY = "any"


def _whose(caller: Caller) -> str:
    if caller.registered_only:
        return "Your address has"
    return f"User '{caller.user}' has" if caller.user else "Those who have not signed in have"
