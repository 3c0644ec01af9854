"""Sessions of browsers: one file that holds hashes, so that a restart of the service signs nobody out.

A session begins with a token and ends with it, twelve hours after its last use, or thirty days after it began. When one
was last used is written down once a minute at most, and when the server stops.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from segserve.model import write_atomically
from segserve.store import locked
from segserve.tokens import Token, Tokens

logger = logging.getLogger(__name__)

IDLE_SECONDS = 12 * 3600.0
LONGEST_SECONDS = 30 * 86400.0
_SAVE_SECONDS = 60.0
_MOST = 10_000
_MOST_OF_A_TOKEN = 50


@dataclass(slots=True)
class _Session:
    token: str  # its id; "": the local user, by a one-time link
    made: float  # when the token was: an id is no other token's, not even by chance
    began: float
    used: float

    @property
    def alive(self) -> bool:
        now = time.time()
        return now < self.used + IDLE_SECONDS and now < self.began + LONGEST_SECONDS


class Sessions:
    """Those of one server, by the hash of their cookie: nobody who reads file or memory can use them.

    `path` None: they end with the process. Safe for many threads; two servers on one home share the file.
    """

    def __init__(self, path: Path | None, tokens: Tokens) -> None:
        self._path, self._tokens = path, tokens
        self._lock = threading.RLock()
        self._known: dict[str, _Session] = {}
        self._seen: tuple[int, ...] = ()
        self._timer: threading.Timer | None = None

    def begin(self, token: Token | None) -> str:
        """A session for whoever has this token (None: the local user); returns its cookie."""
        text, now = secrets.token_urlsafe(32), time.time()
        new = _Session(token.id if token else "", token.created if token else 0.0, now, now)
        self._write(add={_hash(text): new})
        return text

    def find(self, cookie: str) -> tuple[bool, Token | None]:
        """Whether there is such a session, and its token. It counts as used now."""
        with self._lock:
            self._read()
            session = self._known.get(_hash(cookie))
            if session is None or not session.alive:
                return False, None
            token = self._tokens.get(session.token)
            linked = self._path is None and not session.token
            if not linked and (token is None or token.created != session.made):
                return False, None
            session.used = time.time()
            if self._timer is None and self._path is not None:
                self._timer = threading.Timer(_SAVE_SECONDS, self.save)
                self._timer.daemon = True
                self._timer.start()
        return True, token

    def end(self, cookie: str) -> None:
        """Forget a session."""
        if _hash(cookie) in self._known:
            self._write(remove=(_hash(cookie),))

    def save(self) -> None:
        """Write down when each was last used, if any was since it was written down."""
        with self._lock:
            timer, self._timer = self._timer, None
        if timer is None:
            return
        timer.cancel()
        try:
            self._write()
        except OSError as error:
            logger.warning("%s cannot be written: %s. Sessions may end early.", self._path, error.strerror)

    def _write(self, add: dict[str, _Session] | None = None, remove: Iterable[str] = ()) -> None:
        if self._path is None:
            with self._lock:
                self._known = _bounded({**self._known, **(add or {})})
                for name in remove:
                    self._known.pop(name, None)
            return
        with locked(self._path.with_suffix(".lock")), self._lock:
            self._read()
            self._known.update(add or {})
            for name in remove:
                self._known.pop(name, None)
            self._known = _bounded(self._known)
            rows = {name: asdict(session) for name, session in self._known.items()}
            write_atomically(self._path, json.dumps({"version": 1, "sessions": rows}), private=True)
            self._seen = _state(self._path)

    def _read(self) -> None:
        """Take over what somebody else has written."""
        if self._path is None or (seen := _state(self._path)) == self._seen:
            return
        try:
            rows = json.loads(self._path.read_text(encoding="utf-8"))["sessions"] if seen else {}
            found = {str(name): _Session(**row) for name, row in rows.items()}
        except FileNotFoundError:
            found = {}
        except OSError:  # no files left to open, for example: what is known still counts
            return
        except (ValueError, KeyError, TypeError, AttributeError):
            logger.warning("%s cannot be read: everybody has to sign in again.", self._path)
            found = {}
        for name, session in found.items():
            if name in self._known:
                session.used = max(session.used, self._known[name].used)
        self._known, self._seen = found, seen


def _bounded(sessions: dict[str, _Session]) -> dict[str, _Session]:
    """The living ones, not too many in all and of one token; those go that were not used for longest."""
    newest = sorted(sessions.items(), key=lambda one: one[1].used, reverse=True)
    kept: dict[str, _Session] = {}
    count: dict[str, int] = {}
    for name, session in newest:
        count[session.token] = count.get(session.token, 0) + 1
        if session.alive and len(kept) < _MOST and count[session.token] <= _MOST_OF_A_TOKEN:
            kept[name] = session
    return kept


def _state(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return ()
    return (found.st_ino, found.st_size, found.st_mtime_ns)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
