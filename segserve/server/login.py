"""`/login`: a token or a one-time link becomes a session of a browser; `/me`: who that is."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from segserve.server.access import Anybody
from segserve.server.door import Door
from segserve.server.problems import RESPONSES
from segserve.server.sessions import LONGEST_SECONDS

# A session that begins on a page of somebody else (a mail) is not sent with a redirect (SameSite=Strict): this page
# goes on by itself, and then it is.
_GO_ON = """\
<!doctype html><html lang="en"><meta charset="utf-8"><title>segserve</title>
<meta http-equiv="refresh" content="0; url={home}"><p><a href="{home}">Go on to segserve</a></p></html>
"""


class Login(BaseModel):
    """What a page sends."""

    model_config = ConfigDict(extra="forbid")

    token: str = Field(max_length=200)


class Me(BaseModel):
    """Who calls. `user` is "" for nobody; `local`: the user who runs the server, without a token."""

    user: str
    scopes: list[str]
    local: bool


def router(door: Door) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["access"], responses=RESPONSES)

    def remembered(request: Request, answer: Response, cookie: str) -> Response:
        answer.set_cookie(
            door.cookie,
            cookie,
            max_age=int(LONGEST_SECONDS),  # the server knows when it ends before that
            path=request.scope.get("root_path", "") or "/",
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="strict",
        )
        answer.headers["Cache-Control"] = "no-store"
        return answer

    @routes.post("/login", status_code=204, response_class=Response)
    def log_in(login: Login, request: Request) -> Response:
        """Begin a session with a token: a cookie that only this server reads, for 12 hours since its last use."""
        return remembered(request, Response(status_code=204), door.begin(login.token))

    @routes.get("/login/{secret}", response_class=HTMLResponse, include_in_schema=False)
    def follow(secret: Annotated[str, Path(max_length=100)], request: Request) -> Response:
        """A one-time link, as `segserve app` opens it."""
        home = f"{request.scope.get('root_path', '')}/"
        return remembered(request, HTMLResponse(_GO_ON.format(home=home)), door.follow(secret))

    @routes.post("/logout", status_code=204, response_class=Response)
    def log_out(request: Request) -> Response:
        """End the session."""
        door.end(request)
        answer = Response(status_code=204)
        answer.delete_cookie(door.cookie, path=request.scope.get("root_path", "") or "/")
        return answer

    @routes.get("/me")
    def me(caller: Anybody) -> Me:
        """Who calls, and what they may."""
        return Me(user=caller.user, scopes=sorted(map(str, caller.scopes)), local=caller.local)

    return routes
