"""`segserve serve`: uvicorn in this process, the scheduler in one beside it, started again whenever it ends."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import uvicorn

from segserve import api, devices, process
from segserve.config import ServerSettings
from segserve.layout import Home
from segserve.pipeline import confinement
from segserve.scheduler import slots
from segserve.server import connections, logs
from segserve.server.app import create_app
from segserve.server.desk import Desk
from segserve.server.door import Door, check_address, guarded
from segserve.server.places import Places
from segserve.server.prewarm import Prewarming
from segserve.tokens import Tokens
from segserve.tracking.embedded import with_import_path

logger = logging.getLogger(__name__)

_PAUSE_SECONDS = 1.0  # before a scheduler that has ended is started again
_STOP_SECONDS = 30.0
_GRACE_SECONDS = 10  # for requests in flight, when the server is stopped


class Scheduler:
    """The process that works on the queue. It ends with us, whatever ends us: its stdin does."""

    def __init__(self, home: Home, config: Path | None) -> None:
        self._home = home
        self._variables = {**os.environ, **({"SEGSERVE_CONFIG": str(config.absolute())} if config else {})}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._process = self._start()
        threading.Thread(target=self._watch, name="scheduler", daemon=True).start()

    @property
    def working(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def wake(self) -> None:
        """Say that there is something new; without this it looks twice a second."""
        with self._lock, suppress(OSError, ValueError):  # it has ended: the next one looks at everything
            assert self._process.stdin is not None  # it was started with a pipe
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()

    def stop(self) -> None:
        """Let it hand its jobs over."""
        self._stopping.set()
        with self._lock, suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        with suppress(process.TimeoutExpired):
            self._process.wait(_STOP_SECONDS)

    def _start(self) -> process.Popen[bytes]:
        with open(self._home.workers_log, "ab", opener=_private) as log:
            return process.spawn(
                [sys.executable, "-P", "-m", "segserve.scheduler"],
                cwd=self._home.path,
                env=with_import_path(self._variables),
                stdin=process.PIPE,
                stdout=log,
                stderr=log,
            )

    def _watch(self) -> None:
        while not self._stopping.wait(_PAUSE_SECONDS):
            if self._process.poll() is not None:
                try:
                    with self._lock:
                        self._process = self._start()
                except OSError as failure:  # no process or no disk to be had now: this thread must not end of it
                    logger.warning("The scheduler could not be started: %s", failure)


def serve(session: api.Session, settings: ServerSettings, *, started: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C, which is no failure. `started` gets the address when it can be called.

    Raises:
        UsageError: the address is not ours to listen on.
        BackendError: executors are to be shut in, and that does not work here.
    """
    tokens = Tokens(session.ctx.home.tokens)
    everything = session.ctx.settings.model_copy(update={"server": settings})
    check_address(everything, tokens)
    others = guarded(everything, tokens)
    confinement.require(everything.sandbox, others=others)
    _serve(session, settings, Door(everything, tokens, session.ctx.home.sessions), started, others=others)


def serve_alone(session: api.Session, settings: ServerSettings, *, started: Callable[[str, str], None]) -> None:
    """Serve one person (`segserve app`): `started` gets the address, and the path of the one link that lets in."""
    everything = session.ctx.settings.model_copy(update={"server": settings})
    door = Door(everything, Tokens(session.ctx.home.tokens), linked=True)
    _serve(session, settings, door, lambda url: started(url, door.link()), others=False)


def _serve(
    session: api.Session, settings: ServerSettings, door: Door, started: Callable[[str], None], *, others: bool
) -> None:
    logs.install(settings.log)
    scheduler = Scheduler(session.ctx.home, session.config)
    prewarming = Prewarming(session, others=others)
    gpus = len(devices.visible())
    desk = Desk(session, gpus, slots(session.ctx.settings.queue, gpus), scheduler.wake)
    most = connections.with_open_files(settings.max_connections)
    app = create_app(desk, door, Places(settings, most), settings, lambda: scheduler.working)
    try:
        server = _Server(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                root_path=settings.root_path,
                log_config=None,  # ours, see `logs`
                access_log=False,  # a query may hold a repository's URL with credentials
                timeout_graceful_shutdown=_GRACE_SECONDS,
                server_header=False,
                http=connections.protocol(connections.Connections(most + connections.SPARE), settings.patience_s),
                backlog=connections.BACKLOG,
                ws="none",
                proxy_headers=bool(settings.proxies),
                forwarded_allow_ips=list(settings.proxies),
            ),
            started,
        )
        with suppress(KeyboardInterrupt):  # uvicorn raises the signal again when it has ended
            server.run()
    finally:
        door.sessions.save()
        prewarming.stop()
        scheduler.stop()


class _Server(uvicorn.Server):
    """Uvicorn, which says where it listens."""

    def __init__(self, config: uvicorn.Config, started: Callable[[str], None]) -> None:
        super().__init__(config)
        self._say = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        for server in self.servers if self.started else ():
            host, port = server.sockets[0].getsockname()[:2]
            self._say(f"http://{f'[{host}]' if ':' in host else host}:{port}{self.config.root_path}")
            return


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
