"""What the service says of itself: one line per request and per defect, as text or as JSON, without secrets.

Every request has an id: that of the client or of a proxy (`X-Request-ID`, if it is a plain word), else a new one. It
stands in the answer and in every line that is written meanwhile. Queries are left out: they may hold a repository's URL
with credentials.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from contextvars import ContextVar
from datetime import UTC, datetime

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from segserve import redact
from segserve.server import access

HEADER = "X-Request-ID"
_PLAIN = re.compile(r"[A-Za-z0-9._-]{1,64}")
_JOB = re.compile(r"/jobs/([0-9]{6}-[0-9]{6}-[a-z0-9]{5})\b")
_QUIET = frozenset({"/livez", "/readyz", "/metrics"})  # asked every few seconds by machines
_request: ContextVar[str] = ContextVar("request", default="")
_access = logging.getLogger("segserve.access")


class Requests:
    """Middleware: the id of a request, and its line."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        request = given if _PLAIN.fullmatch(given) else secrets.token_hex(8)
        said: dict[str, object] = {"status": 500, "job": ""}
        began = time.monotonic()

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers[HEADER] = request
                found = _JOB.search(scope["path"]) or _JOB.search(headers.get("location", ""))
                said.update(status=message["status"], job=found[1] if found else "")
            await send(message)

        token = _request.set(request)
        try:
            await self._app(scope, receive, sent)
        finally:
            self._tell(scope, said, time.monotonic() - began)
            _request.reset(token)

    @staticmethod
    def _tell(scope: Scope, said: dict[str, object], seconds: float) -> None:
        status = int(str(said["status"]))
        level = logging.DEBUG if scope["path"] in _QUIET and status < 400 else logging.INFO
        caller = scope.get(access.STATE, access.NOBODY)
        facts = {
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "ms": round(seconds * 1e3, 1),
            "user": caller.user,
            "job": said["job"],
        }
        _access.log(level, "%s %s %s", scope["method"], scope["path"], status, extra={"facts": facts})


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, request, and what else is known."""

    def format(self, entry: logging.LogRecord) -> str:
        """As text, redacted, without a line break in it."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(entry.created, UTC).isoformat(timespec="milliseconds"),
            "level": entry.levelname.lower(),
            "logger": entry.name,
            "message": redact.text(entry.getMessage()),
        }
        facts = {"request": _request.get(), **getattr(entry, "facts", {})}
        for name, value in facts.items():
            if value:
                line[name] = redact.text(value) if isinstance(value, str) else value
        if entry.exc_info:
            line["traceback"] = redact.text(self.formatException(entry.exc_info))
        return json.dumps(line, ensure_ascii=False)


class TextFormatter(redact.LogFormatter):
    """For people: the same without names."""

    def format(self, entry: logging.LogRecord) -> str:
        """The line, with the request's id behind it."""
        request = _request.get()
        return super().format(entry) + (f" [{request}]" if request else "")


def install(kind: str) -> None:
    """Write to stderr from now on: `text` has what is worth acting on, `json` has every request besides."""
    handler = logging.StreamHandler()
    text = TextFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if kind == "json" else text)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    _access.setLevel(logging.INFO if kind == "json" else logging.WARNING)
