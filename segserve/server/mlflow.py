"""`/mlflow`: MLflow's own pages for people, behind this server's door.

MLflow knows no users: whoever may look sees the runs of all. Looking needs the scope `server.mlflow` (read); changing
(notes, tags, deleting) is for admins. Nothing of a request reaches MLflow but what is listed here: no cookie, no token,
no origin. A tracking server of one's own (`MLFLOW_TRACKING_URI`) has a door of its own: requests are sent there.
"""

from __future__ import annotations

import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from segserve import tracking
from segserve.errors import NotFound, TooLarge, TrackingUnreachable
from segserve.server import access
from segserve.server.desk import Desk
from segserve.server.problems import RESPONSES
from segserve.tokens import Scope
from segserve.tracking import connection

PREFIX = "/mlflow"
_ANY = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
_BODY_BYTES = 32 << 20
_TIMEOUT_S = 120.0
_CHUNK = 1 << 16
_PATHS = re.compile(
    r"|static-files/.*|(ajax-)?api/[23]\.0/mlflow(-artifacts)?/(?!gateway).*|(model-versions/)?get-artifact"
    r"|graphql|version|health"
)
_TELEMETRY = re.compile(r".*/ui-telemetry")
_TO_MLFLOW = ("accept", "content-type", "range", "if-none-match", "if-modified-since", "if-range")
_TO_PEOPLE = (
    *("content-type", "content-length", "content-disposition", "content-range", "accept-ranges", "content-encoding"),
    *("etag", "last-modified", "cache-control", "x-content-type-options"),
)
# What an executor has logged is no page of ours: shown by itself, it runs no script and knows no cookie.
_ARTIFACT_POLICY = "sandbox; default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'"


def router(desk: Desk, scope: Scope) -> APIRouter:
    """The routes. `scope`: who may look."""
    routes = APIRouter(tags=["mlflow"], responses=RESPONSES)

    @routes.get(PREFIX, include_in_schema=False)
    def front(request: Request) -> RedirectResponse:
        return RedirectResponse(f"{request.scope.get('root_path', '')}{PREFIX}/", status_code=307)

    @routes.api_route(f"{PREFIX}/{{path:path}}", methods=_ANY, include_in_schema=False)
    async def everything(path: str, request: Request) -> Response:
        looks = request.method in ("GET", "HEAD") or access.only_looks(request)
        access.require(access.caller_of(request), scope if looks else Scope.ADMIN)
        if not _PATHS.fullmatch(path) or ".." in path.split("/"):
            raise NotFound(f"MLflow's pages have no '{path}'.", hint=f"They begin at {PREFIX}/.")
        if _TELEMETRY.fullmatch(path):
            return Response(status_code=204)
        body = await request.body()
        if len(body) > _BODY_BYTES:
            raise TooLarge(f"A request to MLflow may have {_BODY_BYTES >> 20} MiB.")
        return await run_in_threadpool(_pass_on, desk, path, request, body)

    return routes


def _pass_on(desk: Desk, path: str, request: Request, body: bytes) -> Response:
    """Send a request on and answer with what comes, as it comes.

    Raises:
        TrackingUnreachable: MLflow does not answer.
    """
    server = tracking.resolve(desk.session.ctx.home)
    if not server.embedded:
        return RedirectResponse(server.uri, status_code=307)
    query = f"?{request.url.query}" if request.url.query else ""
    headers = {name: request.headers[name] for name in _TO_MLFLOW if name in request.headers}
    asked = urllib.request.Request(  # noqa: S310 - our own server's address
        f"{server.uri}/{quote(path)}{query}", data=body or None, headers=headers, method=request.method
    )
    try:
        answer: Any = connection.opener(server).open(asked, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        answer = error
    except (OSError, http.client.HTTPException) as error:
        raise TrackingUnreachable(f"MLflow does not answer: {error}.", hint="Try again in a moment.") from None
    shown = {name: answer.headers[name] for name in _TO_PEOPLE if answer.headers[name]}
    if path.endswith("get-artifact") or "/artifacts/" in path:
        shown["content-security-policy"] = _ARTIFACT_POLICY
    return StreamingResponse(_pieces(answer), status_code=answer.status, headers=shown)


def _pieces(answer: Any) -> Iterator[bytes]:
    with answer:
        while data := answer.read(_CHUNK):
            yield data
