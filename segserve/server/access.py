"""Who calls, and what they may: the value that every route works with, and how a route asks for it.

A route names what it needs in its arguments: `caller: Reader` looks, `caller: Submitter` changes something,
`caller: Admin` is anybody's master. `caller.sees` goes to `desk.get` and `desk.jobs`, the caller to `desk.submit`. A
route that forgets it is not open: `guard` lets nobody through whom `door` does not know, but to `PUBLIC`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPBearer
from starlette.requests import HTTPConnection

from segserve.errors import AccessDenied, LoginNeeded
from segserve.tokens import Scope

# Whoever reaches the server may read these; nothing there depends on who it is. A path that ends with a slash stands
# for all below it.
PUBLIC = (
    "/",
    "/docs",
    "/openapi.json",
    "/livez",
    "/readyz",
    "/login",
    "/login/",
    "/logout",
    "/me",
    "/page/",
    "/favicon.ico",
)
# Routes of clients that know no tokens: `open_clients` may call them, and no answer is 401 or 403 (SegUI takes those
# for its own login), but 422 with our text in `detail` and `message`.
COMPATIBILITY = ("/image-prediction/", "/batch-image-prediction/", "/process", "/info")

# Of MLflow's pages; also all of the few calls that it has in GraphQL.
_SEARCHES = re.compile(
    r"/mlflow/(graphql|(ajax-)?api/[23]\.0/mlflow/(.*/)?(search|search-datasets|get-history-bulk(-interval)?))"
)

STATE = "segserve.caller"  # in the scope of a request
STILL = "segserve.still"  # asks once more who it is: for answers that take long
OPEN_USER = "open"
OPEN_PRIORITY = -20  # below the lowest that a user may ask for


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is. `user` is "" for nobody, who may read what is public.

    `local`: the user who runs the server; any path and any repository. `roots`: the folders (resolved) in which other
    callers may name files. `registered_only`: an open client, for whom the executors of config.toml count, and nothing
    else. `priority` is the highest that its jobs may have.
    """

    user: str
    scopes: frozenset[Scope]
    priority: int = 0
    local: bool = False
    roots: tuple[Path, ...] = ()
    registered_only: bool = False

    def may(self, scope: Scope) -> bool:
        """Whether the caller has this scope."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    @property
    def sees(self) -> str | None:
        """The user whose jobs the caller sees; None: everybody's."""
        return None if self.may(Scope.ADMIN) else self.user

    def share(self, name: str) -> str:
        """The user in the journal, for a request that says to be from `name`. That proves nothing: it only lets those
        share fairly who cannot be told apart, and is a name of no user. Whoever has a token is that user.
        """
        plain = "".join(character for character in name if character.isprintable())[:100]
        anybody = self.local or self.registered_only
        return f"{self.user}/{plain}" if plain and anybody else self.user


NOBODY = Caller("", frozenset())


def caller_of(request: HTTPConnection) -> Caller:
    """Who the guard found out to be calling."""
    caller = request.scope.get(STATE, NOBODY)
    assert isinstance(caller, Caller)  # the guard put it there
    return caller


def still_admitted(request: HTTPConnection) -> Callable[[], object]:
    """What raises `SegserveError` when this request would not be taken any more: its token was removed."""
    found: Callable[[], object] = request.scope[STILL]
    return found


def require(caller: Caller, scope: Scope) -> Caller:
    """The caller, if it has this scope.

    Raises:
        LoginNeeded: nobody is known.
        AccessDenied: the caller has it not.
    """
    if caller.may(scope):
        return caller
    if not caller.user:
        raise LoginNeeded(
            "This server wants a token.",
            hint="Send 'Authorization: Bearer TOKEN'; who runs the server makes one: segserve tokens add NAME",
        )
    raise AccessDenied(f"The token of '{caller.user}' may not {scope}.", hint=f"It needs the scope '{scope}'.")


# For the description alone (and the button in /docs): `door` reads the header.
_Described = Annotated[object, Depends(HTTPBearer(auto_error=False, description="segserve tokens add NAME"))]


def _reader(request: HTTPConnection, _: _Described) -> Caller:
    return require(caller_of(request), Scope.READ)


def _submitter(request: HTTPConnection, _: _Described) -> Caller:
    return require(caller_of(request), Scope.SUBMIT)


def _admin(request: HTTPConnection, _: _Described) -> Caller:
    return require(caller_of(request), Scope.ADMIN)


Anybody = Annotated[Caller, Depends(caller_of)]
Reader = Annotated[Caller, Depends(_reader)]
Submitter = Annotated[Caller, Depends(_submitter)]
Admin = Annotated[Caller, Depends(_admin)]


def route_path(request: HTTPConnection) -> str:
    """The path as the routes know it, without what a proxy put before it."""
    return str(request.scope["path"]).removeprefix(request.scope.get("root_path", ""))


def only_looks(request: HTTPConnection) -> bool:
    """Whether a request changes nothing, although it may be a POST: MLflow's pages search so."""
    safe = request.scope["method"] in ("GET", "HEAD", "OPTIONS")
    return safe or (request.scope["method"] == "POST" and _SEARCHES.fullmatch(route_path(request)) is not None)


def is_public(path: str) -> bool:
    """Whether anybody may read a path."""
    return any(path == known or (known.endswith("/") and known != "/" and path.startswith(known)) for known in PUBLIC)
