"""MLflow's documented REST API 2.0 over the standard library: a few small calls need neither mlflow nor requests."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any
from urllib.parse import urlencode

from segserve.errors import AccessDenied, BackendError, TrackingUnreachable
from segserve.tracking import address, connection
from segserve.tracking.address import TrackingServer

TIMEOUT_S = 60.0
MAX_ANSWER = 32 << 20
PAUSES_S = (0.1, 0.4, 1.5, 4.0)  # between tries: a restarting server or proxy is back within seconds
_LATER = frozenset({429, 500, 502, 503, 504})


class Refused(BackendError):
    """The server understood and said no; `reason` is MLflow's error code, such as RESOURCE_DOES_NOT_EXIST."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class _Again(Exception):
    """Worth another try. `sent`: the server may have acted all the same."""

    def __init__(self, why: str, sent: bool) -> None:
        super().__init__(why)
        self.sent = sent


class Rest:
    """Calls to one server. `revive` gives the server's new address when it has gone (the embedded one is started)."""

    def __init__(self, server: TrackingServer, revive: Callable[[], TrackingServer] | None = None) -> None:
        self.server = server
        self._revive = revive

    def get(self, path: str, **query: str) -> dict[str, Any]:
        """GET /api/2.0/mlflow/`path`; see `post`."""
        return self._try(path, query=query)

    def post(self, path: str, body: Mapping[str, Any], *, repeatable: bool = True) -> dict[str, Any]:
        """POST JSON to /api/2.0/mlflow/`path`. A call that is not `repeatable` is sent again only if it never arrived.

        Raises:
            Refused: the server said no.
            AccessDenied: it wants (other) credentials.
            TrackingUnreachable: it does not answer, or not as an MLflow server.
        """
        return self._try(path, body=body, repeatable=repeatable)

    def _try(
        self,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        repeatable: bool = True,
    ) -> dict[str, Any]:
        for pause in (*PAUSES_S, None):
            try:
                return self._call(path, query, body)
            except _Again as problem:
                if pause is None or (problem.sent and not repeatable):
                    raise self._unreachable(str(problem)) from None
            time.sleep(pause)
            if self._revive is not None:
                self.server = self._revive()
        raise AssertionError("the last try raises")

    def _call(self, path: str, query: Mapping[str, str] | None, body: Mapping[str, Any] | None) -> dict[str, Any]:
        url = f"{self.server.uri}/api/2.0/mlflow/{path}" + (f"?{urlencode(query)}" if query else "")
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **connection.authorization(self.server.variables)}
        request = urllib.request.Request(url, data, headers)  # noqa: S310 - http(s), see address
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as answer:
                content = answer.read(MAX_ANSWER)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error.code, error.read(MAX_ANSWER), error.headers.get("Location")) from None
        except urllib.error.URLError as error:
            raise _Again(str(error.reason), not isinstance(error.reason, ConnectionRefusedError)) from None
        except (OSError, http.client.HTTPException) as error:
            raise _Again(f"{type(error).__name__}: {error}", True) from None
        return self._decode(content)

    def _decode(self, content: bytes) -> dict[str, Any]:
        try:
            decoded = json.loads(content or b"{}")
        except ValueError:
            decoded = None
        if not isinstance(decoded, dict):
            raise self._unreachable("the answer is not that of an MLflow server")
        return decoded

    def _refusal(self, status: int, content: bytes, location: str | None) -> Exception:
        try:
            problem = json.loads(content)
            message, reason = str(problem["message"]), str(problem["error_code"])
        except (ValueError, KeyError, TypeError):
            message, reason = f"HTTP {status}", ""
        if status in (401, 403):
            return AccessDenied(
                f"The tracking server {self.server.uri} refuses us: {message}.",
                hint=f"Set {address.USERNAME} and {address.PASSWORD}, or {address.TOKEN}.",
            )
        if status in _LATER:
            return _Again(message, True)
        if location is not None or not reason:
            where = f", which redirects to {location}" if location else ""
            return self._unreachable(f"HTTP {status}{where}: it is no MLflow server")
        return Refused(f"The tracking server refuses: {message}", reason)

    def _unreachable(self, why: str) -> TrackingUnreachable:
        hint = f"Check {address.URI} and that server, or unset the variable to use segserve's own."
        if self.server.embedded:
            hint = "`segserve doctor` checks the machine; `segserve ui --stop` ends a server that hangs."
        return TrackingUnreachable(f"The tracking server {self.server.uri} cannot be used: {why}.", hint=hint)

    @cached_property
    def _opener(self) -> urllib.request.OpenerDirector:
        return connection.opener(self.server)
