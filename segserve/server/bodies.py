"""Bodies that are too large, or come too slowly, before any route reads them; and connections that never say anything.

Forms are streamed to the disk and may be large, everything else is held in memory and may not.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.types import Message, Receive
from uvicorn.protocols.http.h11_impl import H11Protocol

from segserve.config import ServerSettings

MAX_JSON_BYTES = 4 << 20
LEAST_RATE = 1024  # bytes a second on average, once the patience is over
_FORM = "multipart/form-data"


def bounded(receive: Receive, request: HTTPConnection, settings: ServerSettings) -> Receive:
    """`receive` of one request, which raises an HTTPException (408, 413) when the body is not taken any longer."""
    form = request.headers.get("content-type", "").lower().startswith(_FORM)
    most = settings.max_body_mb * 2**20 if form else MAX_JSON_BYTES
    return _Bounded(receive, most, settings.patience_s)


class _Bounded:
    def __init__(self, receive: Receive, most: int, patience_s: float) -> None:
        self._receive, self._most, self._patience_s = receive, most, patience_s
        self._size, self._waited, self._ended = 0, 0.0, False

    async def __call__(self) -> Message:
        if self._ended:  # what comes now is the end of the connection, whenever that is
            return await self._receive()
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._patience_s):
                message = await self._receive()
        except TimeoutError:
            raise _slow(f"nothing came for {self._patience_s:g} seconds") from None
        self._waited += time.monotonic() - began  # not what the disk needs
        self._size += len(message.get("body", b""))
        self._ended = not message.get("more_body", False)
        if self._size > self._most:
            raise HTTPException(413, f"The body is over {self._most / 2**20:g} MiB. Send fewer images at a time.")
        if not self._ended and self._waited > self._patience_s + self._size / LEAST_RATE:
            raise _slow(f"{self._size} bytes came in {self._waited:.0f} seconds")
        return message


def _slow(why: str) -> HTTPException:
    return HTTPException(408, f"The body comes too slowly: {why}. Send it again.", {"Connection": "close"})


class PatientProtocol(H11Protocol):
    """uvicorn's connection, which it would keep for as long as the head of a request is awaited."""

    patience_s = 30.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Somebody connects."""
        super().connection_made(transport)
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is over."""
        super().connection_lost(exc)
        self._stop()

    def data_received(self, data: bytes) -> None:
        """Some bytes of a request."""
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        """An answer was sent."""
        super().on_response_complete()
        self._look()

    def _look(self) -> None:
        """Have a timer whenever it is the client's turn to say what it wants."""
        busy = self.cycle is not None and not self.cycle.response_complete
        if busy:
            self._stop()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.patience_s, self.transport.close)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def protocol(patience_s: float) -> type[PatientProtocol]:
    """The class of connections for uvicorn."""
    return type("PatientProtocol", (PatientProtocol,), {"patience_s": patience_s})
