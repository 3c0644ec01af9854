"""`Door`: who calls. A token, a session that began with one (or with a one-time link), the local user, or nobody.

A server that nobody has configured listens on loopback and is the local user's. A page that this user looks at can send
requests to loopback, too, and a request can run any repository: so the Host has to be ours (DNS rebinding), and what a
page of another origin asks for is refused, unless `server.origins` names it. As soon as there is a token, or
`server.hosts` has a name, or the address is another one, nobody is known without a token.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import secrets
import time
from ipaddress import ip_address
from pathlib import Path
from threading import Lock
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection

from segserve.config import Settings
from segserve.errors import AccessDenied, LoginNeeded, UsageError
from segserve.server import access
from segserve.server.access import NOBODY, Caller
from segserve.server.peers import Peer
from segserve.server.sessions import Sessions
from segserve.tokens import Scope, Token, Tokens

LINK_SECONDS = 300.0
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_OF_PROXIES = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")
_ALL = frozenset(Scope)


class Door:
    """One per server. `linked`: the local user's own server (`segserve app`), who comes in by a one-time link only; its
    sessions end with it.
    """

    def __init__(
        self, settings: Settings, tokens: Tokens, sessions: Path | None = None, *, linked: bool = False
    ) -> None:
        self._settings, self._tokens, self._linked = settings, tokens, linked
        self._closed = linked or guarded(settings, tokens)  # never opens again while the server runs
        self._hosts = {*_LOOPBACK, *(name.lower() for name in settings.server.hosts)}
        self.sessions = Sessions(None if linked else sessions, tokens)
        self._links: dict[str, float] = {}
        self._lock = Lock()
        # Cookies do not know ports: two servers on one host must not take each other's.
        self.cookie = "segserve-" + hashlib.sha256(str(tokens.path).encode()).hexdigest()[:8]

    @property
    def open(self) -> bool:
        """Whether whoever reaches it is the local user."""
        self._closed = self._closed or self._tokens.exist
        return not self._closed

    def admit(self, request: HTTPConnection) -> Caller:
        """Who makes this request; `NOBODY` where that is enough. Host and Origin are looked at before anything else.

        Raises:
            AccessDenied, LoginNeeded: it is not taken.
        """
        self._check_host(request)
        path, safe = access.route_path(request), request.scope["method"] in _SAFE
        public = access.is_public(path)
        if not (public and safe):
            self._check_origin(request.headers)
        caller = self._known(request, path, safe=safe)
        if not public:
            access.require(caller, Scope.READ if access.only_looks(request) else Scope.SUBMIT)
        return caller

    def begin(self, text: str) -> str:
        """A session for whoever has this token; returns its cookie.

        Raises:
            LoginNeeded: it is no token.
        """
        return self.sessions.begin(self._token(text))

    def link(self) -> str:
        """The path of a link that lets whoever opens it first in as the local user, within five minutes."""
        secret = secrets.token_urlsafe(32)
        with self._lock:
            self._links[_hash(secret)] = time.monotonic() + LINK_SECONDS
        return f"/login/{secret}"

    def follow(self, secret: str) -> str:
        """The session that a one-time link begins; returns its cookie.

        Raises:
            LoginNeeded: it was used, or is too old, or none.
        """
        with self._lock:
            until = self._links.pop(_hash(secret), 0.0)
        if time.monotonic() > until:
            raise LoginNeeded("This link was used already, or is too old.", hint="Start `segserve app` again.")
        return self.sessions.begin(None)

    def end(self, request: HTTPConnection) -> None:
        """Forget the session of a request."""
        self.sessions.end(request.cookies.get(self.cookie, ""))

    # -- who it is ----------------------------------------------------------------------------------------------------

    def _known(self, request: HTTPConnection, path: str, *, safe: bool) -> Caller:
        scheme, _, text = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self._of(self._token(text.strip()))
        signed_in, token = self._session(request, safe=safe)
        if signed_in:
            return self._local() if token is None else self._of(token)
        if self.open:
            unknown = safe and access.is_public(path) and _of_another_user(request)
            return NOBODY if unknown else self._local(request)
        if path in access.COMPATIBILITY and self._is_open_client(request):
            scopes = frozenset({Scope.READ, Scope.SUBMIT})  # here, and nowhere else
            return Caller(access.OPEN_USER, scopes, access.OPEN_PRIORITY, registered_only=True)
        return NOBODY

    def _token(self, text: str) -> Token:
        found = self._tokens.find(text)
        if found is None:
            raise LoginNeeded("This token is not valid.", hint="It may have been removed, or its time has passed.")
        return found

    def _of(self, token: Token) -> Caller:
        roots = [
            Path(folder).resolve()
            for folder, users in self._settings.data_roots.items()
            if token.user in users or "*" in users
        ]
        return Caller(token.user, frozenset(token.scopes), roots=tuple(roots))

    def _local(self, request: HTTPConnection | None = None) -> Caller:
        if request is not None and any(name in request.headers for name in _OF_PROXIES):
            raise AccessDenied(
                "This server is the local user's alone, and the request came through a proxy.",
                hint="Whoever runs it makes tokens (segserve tokens add NAME) and sets server.hosts in config.toml.",
            )
        if request is not None and _of_another_user(request):
            raise AccessDenied(
                f"This server is '{getpass.getuser()}'s alone, and another user of this machine calls it.",
                hint="Whoever runs it makes a token for each user (segserve tokens add NAME).",
            )
        return Caller(getpass.getuser(), _ALL, local=True)

    def _is_open_client(self, request: HTTPConnection) -> bool:
        address = ip_address(request.client.host) if request.client else None
        mapped = getattr(address, "ipv4_mapped", None) or address
        return any(mapped in network for network in self._settings.open_clients.networks if mapped is not None)

    def _session(self, request: HTTPConnection, *, safe: bool) -> tuple[bool, Token | None]:
        text = request.cookies.get(self.cookie, "")
        own = _own_page(request.headers)
        if not text or own is False or (own is None and not safe):  # the browser sends it with whatever any page asks
            return False, None
        return self.sessions.find(text)

    # -- whether it is meant for us -----------------------------------------------------------------------------------

    def _check_host(self, request: HTTPConnection) -> None:
        host = request.headers.get("host", "")
        name = _name(f"//{host}")
        listens = (request.scope.get("server") or ("",))[0]
        # The address on which a request came is no name that somebody could point at us.
        if name not in self._hosts and name != listens:
            raise AccessDenied(
                f"This server is not called '{host}'.",
                hint="Call it by localhost or 127.0.0.1; config.toml has other names under server.hosts.",
            )

    def _check_origin(self, headers: Headers) -> None:
        origin = headers.get("origin")
        known = origin is not None and origin in self._settings.server.origins
        if not known and _own_page(headers) is False:
            raise AccessDenied(
                "A page of another origin may not use this server.",
                hint="Open the server's own page; config.toml names others that may under server.origins.",
            )


def _own_page(headers: Headers) -> bool | None:
    """Whether one of our own pages makes this request; None: no page does, or the browser does not say it."""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if origin is not None:
        return urlsplit(origin).netloc == headers.get("host", "") and site in (None, "same-origin")
    return {None: None, "none": None, "same-origin": True}.get(site, False)


def _of_another_user(request: HTTPConnection) -> bool:
    """Whether a process of another user of this machine calls. Root reads our files anyway."""
    peer = request.scope.get("state", {}).get(Peer.STATE)
    return peer is not None and peer.uid not in (None, 0, os.getuid())


def guarded(settings: Settings, tokens: Tokens) -> bool:
    """Whether only those are let in who have a token."""
    return bool(tokens.exist or settings.server.hosts or not is_loopback(settings.server.host))


def check_address(settings: Settings, tokens: Tokens) -> None:
    """Refuse to listen where others can call, while it is not decided who may, and what.

    Raises:
        UsageError: it says which key is missing.
    """
    if not guarded(settings, tokens):
        return
    why = f"'{settings.server.host}'" if not is_loopback(settings.server.host) else "others"
    missing = []
    if not tokens.all():
        missing.append("a token (segserve tokens add NAME)")
    if not (settings.repositories.allow or settings.executors):
        missing.append('the repositories that may run (config.toml: [repositories] allow = ["https://host/group/"])')
    if missing:
        raise UsageError(
            f"To serve {why}, the server needs {' and '.join(missing)}.",
            hint="For you alone it listens on 127.0.0.1, without server.hosts and without tokens"
            + (f" (remove {tokens.path})" if tokens.exist else "")
            + "; from elsewhere, an ssh tunnel reaches it.",
        )


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine only."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
