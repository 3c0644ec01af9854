"""The one kind of lock that everything uses."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from segserve.errors import NoSlot


@contextmanager
def locked(
    path: Path, *, blocking: bool = True, shared: bool = False, on_wait: Callable[[], None] | None = None
) -> Iterator[None]:
    """Hold a lock on a file: released by the kernel when its holder dies, also by `kill -9`.

    It is exclusive, or `shared` by any number of readers. `on_wait` is called once when somebody else holds it. The
    file is created and never removed (removing a lock file lets two holders in).

    Raises:
        NoSlot: it is held and `blocking` is false.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        if not _try_lock(descriptor, how):
            if not blocking:
                raise NoSlot(f"{path.name} is in use by another segserve command.")
            if on_wait is not None:
                on_wait()
            fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def age(path: Path) -> float:
    """Seconds since a file was last written."""
    return max(0.0, time.time() - path.stat().st_mtime)
