"""Middleware before all routes: who it is, or why it is not taken; whether there is a place; how much of a body is.

What it does not know, it does not let through.
"""

from __future__ import annotations

from functools import partial

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from segserve.config import ServerSettings
from segserve.errors import SegserveError
from segserve.server import access, bodies, compatibility, problems
from segserve.server.door import Door
from segserve.server.places import Places

# For every answer. The page brings a policy of its own, which is stricter where it can be.
_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin", "X-Frame-Options": "SAMEORIGIN"}


class Guard:
    """Middleware of one door."""

    def __init__(self, app: ASGIApp, door: Door, places: Places, settings: ServerSettings) -> None:
        self._app, self._door, self._places, self._settings = app, door, places, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, _with_headers(send))
        else:  # nothing of ours speaks over web sockets
            await send({"type": "websocket.close", "code": 1008})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = HTTPConnection(scope)
        try:
            caller = scope[access.STATE] = self._door.admit(request)
            scope[access.STILL] = partial(self._door.admit, request)
            leave = self._places.take(caller, request)
        except SegserveError as refusal:
            if access.route_path(request) in access.COMPATIBILITY:
                await compatibility.failure(refusal)(scope, receive, send)
            else:
                await problems.answer(problems.problem(refusal), problems.retry_after(refusal))(scope, receive, send)
            return
        try:
            await self._app(scope, bodies.bounded(receive, request, self._settings), send)
        finally:
            leave()


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return sent
