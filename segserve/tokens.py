"""Tokens: who may call the service, and for what. One file, which holds hashes; a token itself is shown once.

A token is `sgs_<id>_<secret>`: the id finds its line, SHA-256 of the whole is compared. The secret has 192 random bits,
so that a slow hash would protect nothing. Readers look at the file whenever it has changed: what was removed is refused
from then on. A file without tokens stays: a service that had users is never anybody's again by accident.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from segserve.errors import BackendError, NotFound, UsageError
from segserve.model import write_atomically
from segserve.store import locked

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # as for job ids
_SHAPE = re.compile(r"sgs_([0-9a-z]{8})_[0-9a-f]{48}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")  # no slash: `open/x` and `user/x` are shares, never users
_NOBODY = hashlib.sha256(b"").hexdigest()


class Scope(StrEnum):
    """What a token is good for."""

    READ = "read"  # look at one's own jobs, at executors, status and metrics
    SUBMIT = "submit"  # put jobs into the queue, and stop one's own
    ADMIN = "admin"  # everything, with everybody's jobs


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a token. `created` and `expires` are seconds since the epoch; `expires` 0: never."""

    id: str
    name: str
    user: str
    scopes: tuple[Scope, ...]
    created: float
    expires: float = 0.0

    @property
    def valid(self) -> bool:
        """Whether its time has not come yet."""
        return not self.expires or time.time() < self.expires


@dataclass(frozen=True, slots=True)
class _Line:
    token: Token
    hash: str


class Tokens:
    """The file. Safe for many processes and threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._read: tuple[tuple[int, ...], dict[str, _Line]] = ((), {})

    @property
    def exist(self) -> bool:
        """Whether there ever was a token here."""
        return self.path.exists()

    def all(self) -> list[Token]:
        """In the order in which they were made, expired ones too.

        Raises:
            BackendError: the file cannot be read.
        """
        return [line.token for line in self._lines().values()]

    def add(
        self, name: str, *, user: str = "", scopes: Iterable[Scope] = (Scope.SUBMIT, Scope.READ), expires: float = 0.0
    ) -> tuple[Token, str]:
        """Make a token, and return it with its text, which nobody can have again. `user` is `name` by default.

        Raises:
            UsageError: the name is taken, or it or the user is none; no scope; the time has passed.
        """
        _check(name, user or name, expires)
        number = "".join(secrets.choice(_ALPHABET) for _ in range(8))
        text = f"sgs_{number}_{secrets.token_hex(24)}"
        token = Token(number, name, user or name, tuple(sorted(set(scopes))), time.time(), expires)
        if not token.scopes:
            raise UsageError("A token needs a scope.", hint=f"One or more of {', '.join(Scope)}.")
        with locked(self.path.with_suffix(".lock")):
            lines = self._lines()
            if any(line.token.name == name for line in lines.values()):
                raise UsageError(f"There is a token '{name}'.", hint=f"segserve tokens rm {name}, or another name.")
            self._write([*lines.values(), _Line(token, _hash(text))])
        return token, text

    def remove(self, name: str) -> Token:
        """Take a token away, by its name or id; it is refused from now on.

        Raises:
            NotFound: there is none.
        """
        with locked(self.path.with_suffix(".lock")):
            lines = list(self._lines().values())
            gone = [line for line in lines if name in (line.token.name, line.token.id)]
            if not gone:
                raise NotFound(f"There is no token '{name}'.", hint="`segserve tokens list` shows them.")
            self._write([line for line in lines if line not in gone])
        return gone[0].token

    def find(self, text: str) -> Token | None:
        """The token whose text this is; None when there is none or its time has passed.

        Raises:
            BackendError: the file cannot be read.
        """
        shape = _SHAPE.fullmatch(text)
        line = self._lines().get(shape[1]) if shape else None
        known = hmac.compare_digest(_hash(text), line.hash if line else _NOBODY)
        return line.token if line and known and line.token.valid else None

    def get(self, number: str) -> Token | None:
        """The token with this id, while it is valid.

        Raises:
            BackendError: the file cannot be read.
        """
        line = self._lines().get(number)
        return line.token if line is not None and line.token.valid else None

    def _lines(self) -> dict[str, _Line]:
        try:
            state = self.path.stat()
            seen = (state.st_ino, state.st_size, state.st_mtime_ns)
            with self._lock:
                if self._read[0] != seen:
                    self._read = (seen, _parse(self.path.read_text(encoding="utf-8")))
                return self._read[1]
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BackendError(
                f"The tokens in {self.path} cannot be read: {type(error).__name__}.",
                hint="Take the file from a backup, or make new tokens without it.",
            ) from None

    def _write(self, lines: Iterable[_Line]) -> None:
        rows = [{**asdict(line.token), "hash": line.hash} for line in lines]
        write_atomically(self.path, json.dumps({"version": 1, "tokens": rows}, indent=1), private=True)


def _parse(text: str) -> dict[str, _Line]:
    lines = {}
    for row in json.loads(text)["tokens"]:
        known = str(row.pop("hash"))
        token = Token(**{**row, "scopes": tuple(Scope(scope) for scope in row["scopes"])})
        lines[token.id] = _Line(token, known)
    return lines


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _check(name: str, user: str, expires: float) -> None:
    for word in (name, user):
        if not _NAME.fullmatch(word):
            raise UsageError(f"'{word}' is no name.", hint="Letters, digits, '.', '_', '-' and '@'.")
    if expires and expires < time.time():
        raise UsageError("That time has passed.", hint="--expires 90d, or a day: --expires 2027-03-31")
