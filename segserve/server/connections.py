"""Connections: how many may be open, and when the one at the other end is given up.

A client that says nothing, or half a request, or does not take its answer, costs us a place and itself nothing. It is
given up after `patience_s`. When all places are taken, whoever has been silent for longest makes room for the next one:
a flood of connections pushes out mostly itself, and a request that is being answered never.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import resource
import struct
import termios
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from segserve.server.bodies import LEAST_RATE
from segserve.server.peers import Peer

logger = logging.getLogger(__name__)

SPARE = 32  # beyond `server.max_connections`: for whoever watches the service, and its administrators
BACKLOG = 256  # accepted at once: fewer than the places, so that who speaks at once is heard before it makes room
_FILES_EACH = 2  # its socket, and what it sends or gets
_FILES_BESIDE = 192  # journal, logs, pipes


def with_open_files(wanted: int) -> int:
    """How many connections this process can hold, at most `wanted`; its limit of open files is raised for them.

    Only as far as needed: what we start inherits the limit, and some programs close every number below it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = _FILES_BESIDE + _FILES_EACH * (wanted + SPARE)
    if soft != resource.RLIM_INFINITY and soft < need:
        soft = need if hard == resource.RLIM_INFINITY else min(need, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= need:
        return wanted
    possible = max((soft - _FILES_BESIDE) // _FILES_EACH - SPARE, 1)
    logger.warning(
        "server.max_connections is %d, and this process may open %d files only: it takes %d connections."
        " The limit is LimitNOFILE of systemd, `ulimit -Hn` of a shell; %d would do.",
        *(wanted, soft, possible, need),
    )
    return possible


class Connections:
    """Those of one server, at most `most`. Everything here happens in the event loop."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: set[PatientProtocol] = set()
        self._silent: dict[PatientProtocol, None] = {}  # in the order in which their turn began

    def __len__(self) -> int:
        return len(self._open)

    def opened(self, one: PatientProtocol) -> None:
        """A new one: the most silent one goes when there are too many, or the new one where nobody is silent."""
        self._open.add(one)
        if len(self._open) > self._most:
            leaving = next(iter(self._silent), one)
            self.closed(leaving)
            leaving.transport.abort()

    def closed(self, one: PatientProtocol) -> None:
        """It is over."""
        self._open.discard(one)
        self._silent.pop(one, None)

    def speaks(self, one: PatientProtocol, *, silent: bool) -> None:
        """Whether we wait for its request."""
        if not silent:
            self._silent.pop(one, None)
        elif one in self._open:
            self._silent.setdefault(one)


class PatientProtocol(H11Protocol):
    """uvicorn's connection, which it would keep for as long as a head is awaited, or an answer not taken."""

    patience_s: float
    all: Connections

    _timer: asyncio.TimerHandle | None = None
    _left = 0  # bytes that the client had not taken when the timer began
    _lost = False

    def connection_made(self, transport: Any) -> None:
        """Somebody connects."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, Peer.STATE: Peer(self.client, self.server)}
        self.all.opened(self)
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is over."""
        self._lost = True
        super().connection_lost(exc)
        self._stop()
        self.all.closed(self)

    def data_received(self, data: bytes) -> None:
        """Some bytes of a request."""
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        """An answer was written."""
        super().on_response_complete()
        self._look()

    def pause_writing(self) -> None:
        """The client does not take its answer as fast as it comes."""
        super().pause_writing()
        self._look()

    def resume_writing(self) -> None:
        """It has taken most of it."""
        super().resume_writing()
        self._look()

    def _look(self) -> None:
        """Have a timer whenever it is the client's turn: to say what it wants, or to take what it gets."""
        if self._lost:
            return
        answered = self.cycle is None or self.cycle.response_complete
        self.all.speaks(self, silent=answered)
        if not (answered or self.flow.write_paused):
            self._stop()
        elif self._timer is None:
            self._left = self._untaken()
            self._timer = self.loop.call_later(self.patience_s, self._overdue)

    def _overdue(self) -> None:
        left, before = self._untaken(), self._left
        self._timer = None
        if before - left >= min(LEAST_RATE * self.patience_s, before) > 0:  # slowly, but it takes something
            self._left = left
            self._timer = self.loop.call_later(self.patience_s, self._overdue)
        else:
            self.transport.abort()

    def _untaken(self) -> int:
        """Bytes of answers that the client has not acknowledged, ours and the kernel's."""
        queued = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
        return self.transport.get_write_buffer_size() + int(struct.unpack("i", queued)[0])

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def protocol(connections: Connections, patience_s: float) -> type[PatientProtocol]:
    """The class of connections for uvicorn."""
    return type("PatientProtocol", (PatientProtocol,), {"patience_s": patience_s, "all": connections})
