"""Bodies that are too large, or come too slowly, before any route reads them.

Forms are streamed to the disk and may be large, everything else is held in memory and may not.
"""

from __future__ import annotations

import asyncio
import time

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.types import Message, Receive

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
