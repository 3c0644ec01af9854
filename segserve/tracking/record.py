"""tracking.json: what commands know of the embedded server. Written by the server itself, kept after its end."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from segserve.layout import Home
from segserve.model import write_atomically
from segserve.process import Identity

HOST = "127.0.0.1"
INSTANCE_HEADER = "X-Segserve-Instance"
HEALTH = "/health"


@dataclass(frozen=True, slots=True)
class Record:
    """One start of the server. `ports`: those that this home has used, latest first, so that old links keep working."""

    identity: Identity
    instance: str  # random; the server repeats it in the answer to /health
    hostname: str
    mlflow: str  # version
    ports: tuple[int, ...]
    idle_s: float
    started: float  # seconds since the epoch
    ready: bool

    @property
    def uri(self) -> str:
        """Its address."""
        return f"http://{HOST}:{self.ports[0]}"

    def healthy(self, timeout: float) -> bool:
        """Whether this very server answers within `timeout` seconds."""
        if not (self.ready and self.identity.alive):
            return False
        connection = http.client.HTTPConnection(HOST, self.ports[0], timeout=timeout)
        try:
            connection.request("GET", HEALTH)
            answer = connection.getresponse()
            return answer.status == http.client.OK and answer.headers[INSTANCE_HEADER] == self.instance
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def write(self, home: Home) -> None:
        """Put it where `read` finds it."""
        write_atomically(home.tracking_server, json.dumps(asdict(self), indent=2))


def read(home: Home) -> Record | None:
    """The latest record, of a server that may be gone; None when there is none (or one that nobody can read)."""
    try:
        data = json.loads(home.tracking_server.read_text(encoding="utf-8"))
        return Record(**{**data, "identity": Identity(**data["identity"]), "ports": tuple(data["ports"])})
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def start_lock(home: Home) -> Path:
    """Held by the command that starts or replaces the server."""
    return home.tracking_server.with_suffix(".lock")


def life_lock(home: Home) -> Path:
    """Held by the server as long as it lives: there are never two on one database."""
    return home.tracking_server.with_suffix(".alive")


@contextmanager
def shared_hold(home: Home) -> Iterator[int]:
    """Keep the server from ending for idleness. Yields the descriptor; it holds in every process that inherits it."""
    with _hold_file(home) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield descriptor


@contextmanager
def exclusive_hold(home: Home) -> Iterator[bool]:
    """Whether nobody holds the server; if so, new holders wait until this block ends (or the process that is in it)."""
    with _hold_file(home) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


@contextmanager
def _hold_file(home: Home) -> Iterator[int]:
    descriptor = os.open(home.tracking_server.with_suffix(".hold"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
