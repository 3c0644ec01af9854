"""One lock file per GPU in a folder that all users of a machine share, and what is written in it for people."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pwd
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from segserve.errors import BackendError

# All users have to find the same folder, so the choice depends on the machine alone. /run/lock is no place that
# logging out (RemoveIPC) or a cleaner of old files empties.
_SHARED_FOLDERS = (Path("/run/lock"), Path("/dev/shm"), Path("/tmp"))  # noqa: S108
_FOLDER_NAME = "segserve-gpus"
_RECORD_LIMIT = 1024


@dataclass(frozen=True, slots=True)
class Record:
    """Who holds a GPU, as written down: for people, and not believed."""

    user: str = ""
    job: str = ""
    pid: int = 0
    since: float = 0.0

    def __str__(self) -> str:
        since = time.strftime("%H:%M", time.localtime(self.since)) if self.since else "?"
        return f"{self.user or 'somebody'} (job {self.job or '?'}, pid {self.pid or '?'}, since {since})"


def shared_folder(candidates: Sequence[Path] = _SHARED_FOLDERS) -> Path:
    """The folder of the lock files of this machine, created when it is missing: writable for all, sticky.

    Raises:
        BackendError: no place will do, or what has its name is something else.
    """
    for parent in candidates:
        if parent.is_dir() and parent.stat().st_mode & 0o1777 == 0o1777:
            return _checked(parent / _FOLDER_NAME)
    raise BackendError("This machine has no folder that all its users may write to (/run/lock, /dev/shm, /tmp).")


def _checked(folder: Path) -> Path:
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        folder.chmod(0o1777)  # mkdir's mode goes through the umask
    deadline = time.monotonic() + 1.0
    while True:
        status = folder.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_mode & 0o1777 == 0o1777:
            return folder
        if time.monotonic() > deadline:  # not just somebody between mkdir and chmod
            raise BackendError(
                f"{folder} is not a folder that all users may write to (mode 1777).",
                hint=f"Its owner (user id {status.st_uid}) or an administrator can remove it.",
            )
        time.sleep(0.02)


def open_lock(folder: Path, uuid: str) -> int:
    """Open the lock file of a GPU, as one opens files in a folder that everybody can write to.

    Raises:
        BackendError: what has its name is a link, no plain file, or not writable for us.
    """
    path = folder / f"{''.join(c if c.isalnum() or c == '-' else '_' for c in uuid)}.lock"
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        descriptor = _open_or_create(path, flags)
    except OSError as error:
        raise BackendError(
            f"The lock file {path} cannot be opened: {error.strerror}.",
            hint="Its owner or an administrator can remove it.",
        ) from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:  # a hard link to somebody's file would be written to
        os.close(descriptor)
        raise BackendError(f"{path} is not a plain file.", hint="Its owner or an administrator can remove it.")
    return descriptor


def _open_or_create(path: Path, flags: int) -> int:
    # First without O_CREAT: with it, Linux refuses the files of others in sticky folders (fs.protected_regular).
    for _ in range(50):
        with suppress(FileNotFoundError, PermissionError):  # the file of another user just before its fchmod
            return os.open(path, flags)
        with suppress(FileExistsError):
            descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
            os.fchmod(descriptor, 0o666)  # the mode of open goes through the umask
            return descriptor
        time.sleep(0.01)
    return os.open(path, flags)


def lock(descriptor: int) -> bool:
    """Take the lock, if it is free."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return os.fstat(descriptor).st_nlink == 1  # 0: somebody removed the file meanwhile, the lock would guard nothing


def read_record(descriptor: int) -> Record:
    """What is written in a lock file; empty for nonsense."""
    # Anybody may have written it: nothing of it is believed, and only printable text reaches a terminal.
    try:
        data = json.loads(os.pread(descriptor, _RECORD_LIMIT, 0))
        user, job, pid, since = (data[name] for name in ("user", "job", "pid", "since"))
        since = float(since) if 0 < float(since) < 2**33 else 0.0
        return Record(printable(str(user)), printable(str(job)), int(pid), since)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return Record()


def write_record(descriptor: int, record: Record) -> None:
    """Write down who holds it."""
    data = json.dumps(asdict(record)).encode()
    os.pwrite(descriptor, data, 0)
    os.ftruncate(descriptor, len(data))


def user() -> str:
    """The name of whoever runs us."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container that runs under a number without a name
        return str(os.getuid())


def printable(text: str) -> str:
    """What of a stranger's text may reach a terminal."""
    return "".join(c for c in text[:64] if c.isprintable())
