"""Where a sandbox hands out the sockets that it has made in its own network: see `segserve.sandbox.doorway`."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path


class Door:
    """A unix socket that is answered once. `take` gets the listening sockets, in the order of their ports."""

    def __init__(self, path: Path, take: Callable[[Sequence[socket.socket]], None], count: int) -> None:
        self._path, self._take, self._count = path, take, count
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def open(self) -> None:
        """Wait for the sandbox, in a thread of its own."""
        self._path.parent.mkdir(exist_ok=True)
        self._path.parent.chmod(0o755)  # the user of a container may be another one; nobody else gets as far as here
        self._path.unlink(missing_ok=True)
        folder = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY)
        try:  # the name of a socket has 107 bytes at most, a path may be longer
            self._listener.bind(f"/proc/self/fd/{folder}/{self._path.name}")
        finally:
            os.close(folder)
        self._path.chmod(0o666)
        self._listener.listen(1)
        threading.Thread(target=self._answer, name="door", daemon=True).start()

    def close(self) -> None:
        """Wait no longer, if nobody has come."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)

    def _answer(self) -> None:
        with self._listener:
            try:
                channel, _ = self._listener.accept()
            except OSError:  # closed
                return
        with channel:
            _, numbers, _, _ = socket.recv_fds(channel, 1, self._count, socket.MSG_CMSG_CLOEXEC)
            self._take([socket.socket(fileno=number) for number in numbers])
        self._path.unlink(missing_ok=True)
