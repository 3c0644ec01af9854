"""Where a sandbox hands out the sockets that it has made in its own network: see `segserve.sandbox.doorway`."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path


class Door:
    """A unix socket that is answered once. `take` gets the listening sockets, in the order of their ports."""

    def __init__(self, path: Path, take: Callable[[Sequence[socket.socket]], None], count: int) -> None:
        self._path, self._take, self._count = path, take, count
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def open(self) -> None:
        """Wait for the sandbox, in a thread of its own. It lies below the folder of this process: paths may be long."""
        self._path.parent.mkdir(exist_ok=True)
        self._path.parent.chmod(0o755)  # the user of a container may be another one; nobody else gets as far as here
        self._path.unlink(missing_ok=True)
        self._listener.bind(str(self._path.relative_to(Path.cwd())))
        self._path.chmod(0o666)
        self._listener.listen(1)
        threading.Thread(target=self._answer, name="door", daemon=True).start()

    def _answer(self) -> None:
        with self._listener:
            channel, _ = self._listener.accept()
        with channel:
            _, numbers, _, _ = socket.recv_fds(channel, 1, self._count, socket.MSG_CMSG_CLOEXEC)
            self._take([socket.socket(fileno=number) for number in numbers])
        self._path.unlink(missing_ok=True)
