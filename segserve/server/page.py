"""The page: plain files of this package, no build step, nothing from elsewhere."""

from __future__ import annotations

import mimetypes
from functools import cache
from html import escape
from importlib import resources

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from segserve import inputs
from segserve.errors import NotFound

# Scripts and styles are those of the package. What a repository or an image is called stays text (`web/dom.js`).
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self';"
    " form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
_KINDS = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_INDEX = "index.html"


@cache
def _files() -> dict[str, bytes]:
    folder = resources.files("segserve.server") / "web"
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def router() -> APIRouter:
    """The routes."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/")
    async def root(request: Request) -> Response:
        """The page for browsers; others are sent to the description of the routes."""
        below = request.scope.get("root_path", "")
        if "text/html" not in request.headers.get("accept", ""):
            return RedirectResponse(f"{below}/docs", status_code=307)
        text = _files()[_INDEX].replace(b"{{root}}", escape(below).encode())
        text = text.replace(b"{{suffixes}}", " ".join(inputs.SUFFIXES).encode())
        return Response(text, media_type="text/html", headers={**_HEADERS, "Vary": "Accept"})

    @routes.get("/page/{name}")
    async def file(name: str) -> Response:
        """A script, the style, the icon."""
        content = _files().get(name)
        if content is None or name == _INDEX:
            raise NotFound(f"The page has no file '{name}'.")
        suffix = name[name.rfind(".") :]
        kind = _KINDS.get(suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
        return Response(content, media_type=kind, headers=_HEADERS)

    return routes
