"""GPUs: which there are (NVML), who uses them, and leases on whole ones, machine-wide for all users.

A lease is a flock on one file per GPU, in a folder that every user of the machine shares. The lock belongs to an open
file description, which the supervisor of an attempt inherits over a socket: it lives exactly as long as somebody holds
a copy, survives the command that took it, and the kernel gives it back after `kill -9`. What is written in the file is
for people only, and for finding what a killed supervisor may have left on the card.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pwd
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from segserve import process
from segserve.errors import BackendError, NoSlot, UsageError
from segserve.model import COOKIE

# All users have to find the same folder, so the choice depends on the machine alone. /run/lock is no place that
# logging out (RemoveIPC) or a cleaner of old files empties.
_SHARED_FOLDERS = (Path("/run/lock"), Path("/dev/shm"), Path("/tmp"))  # noqa: S108
_FOLDER_NAME = "segserve-gpus"
_RECORD_LIMIT = 1024


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, or one MIG slice of it. `memory` is in bytes, `capability` the CUDA one, `users` pids that compute."""

    uuid: str
    index: int
    name: str
    memory: int
    capability: tuple[int, int]
    users: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"GPU {self.index} ({self.name})"


Inventory = Callable[[], Sequence[Gpu]]


def gpus() -> tuple[Gpu, ...]:
    """All GPUs that NVML shows, in its order; none without an NVIDIA driver. MIG slices stand for their GPU."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver, no library, no permission: no GPU for us
        return ()
    try:
        found: list[Gpu] = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            with suppress(pynvml.NVMLError):  # one that fell off the bus does not hide the others
                found += _of_board(pynvml, index)
        return tuple(found)
    except pynvml.NVMLError:
        return ()
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _of_board(nvml: Any, index: int) -> list[Gpu]:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    capability = tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle))
    slices = list(_slices(nvml, handle))
    return [
        Gpu(
            uuid=_text(nvml.nvmlDeviceGetUUID(device)),
            index=index,
            name=_text(nvml.nvmlDeviceGetName(device)),
            memory=int(nvml.nvmlDeviceGetMemoryInfo(device).total),
            capability=(int(capability[0]), int(capability[1])),
            users=_users(nvml, device),
        )
        for device in slices or [handle]
    ]


def _slices(nvml: Any, handle: Any) -> Iterator[Any]:
    try:
        if nvml.nvmlDeviceGetMigMode(handle)[0] != nvml.NVML_DEVICE_MIG_ENABLE:
            return
        count = nvml.nvmlDeviceGetMaxMigDeviceCount(handle)
    except nvml.NVMLError:  # this card cannot do MIG
        return
    for number in range(count):
        with suppress(nvml.NVMLError):  # a number without a slice
            yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)


def _users(nvml: Any, device: Any) -> tuple[int, ...]:
    # A desktop's compositor and browser are listed as graphics, too ("C+G"): they are no competitors.
    try:
        compute = {entry.pid for entry in nvml.nvmlDeviceGetComputeRunningProcesses(device)}
    except nvml.NVMLError:
        return ()
    with suppress(nvml.NVMLError):
        compute -= {entry.pid for entry in nvml.nvmlDeviceGetGraphicsRunningProcesses(device)}
    return tuple(sorted(compute))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def visible(inventory: Inventory = gpus, environ: Mapping[str, str] = os.environ) -> tuple[Gpu, ...]:
    """The GPUs that a scheduler left to us by `CUDA_VISIBLE_DEVICES`: indices (NVML's order), or UUIDs or their start.

    As CUDA does it: the first entry that names nothing, or nothing new, ends the list; empty or `-1` is none.
    """
    everything = tuple(inventory())
    wanted = environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return everything
    chosen: list[Gpu] = []
    for entry in (part.strip() for part in wanted.split(",")):
        if entry.isdigit():
            matches = [gpu for gpu in everything if gpu.index == int(entry)]
        else:
            matches = [gpu for gpu in everything if entry and gpu.uuid.startswith(entry)]
        if not matches or (len(matches) > 1 and not entry.isdigit()) or matches[0] in chosen:
            break
        chosen += matches
    return tuple(chosen)


def parse(wanted: int | str) -> int | None:
    """`auto` → None, `none` → 0, a number → itself.

    Raises:
        UsageError: it is none of these.
    """
    text = str(wanted).strip().lower()
    if text in ("auto", "none"):
        return None if text == "auto" else 0
    if not text.isascii() or not text.isdigit():
        raise UsageError(f"'{wanted}' is no number of GPUs.", hint="Use --gpus auto, none or a number.")
    return int(text)


def describe(wanted: int | str, *, inventory: Inventory = gpus, folder: Path | None = None) -> str:
    """What a lease would take now, for `--dry-run`: `1 of 2 GPUs; GPU 0 (…) is held by …`."""
    available = visible(inventory)
    count = _count(wanted, available)
    if count == 0:
        return "none (CPU)"
    busy = [reason for gpu in available if (reason := _peek(gpu, folder or shared_folder()))]
    return "; ".join([f"{count} of {len(available)} GPU{'s' if len(available) > 1 else ''}", *busy])


@dataclass(slots=True)
class Lease:
    """GPUs that are ours alone while a copy of `descriptors` is open. Use it in a `with`, or `close` it.

    Closing lets go of *our* copies; a supervisor that was given others goes on holding the GPUs.
    """

    gpus: tuple[Gpu, ...] = ()
    descriptors: tuple[int, ...] = ()
    job: str = ""

    @property
    def uuids(self) -> tuple[str, ...]:
        """What goes into CUDA_VISIBLE_DEVICES."""
        return tuple(gpu.uuid for gpu in self.gpus)

    @property
    def names(self) -> tuple[str, ...]:
        """For people: `GPU 0 (NVIDIA H200)`."""
        return tuple(str(gpu) for gpu in self.gpus)

    def name(self, pid: int) -> None:
        """Write down that process `pid` holds it from now on."""
        for descriptor in self.descriptors:
            _write_record(descriptor, _Record(_user(), self.job, pid, time.time()))

    def close(self) -> None:
        """Let go of our copies (twice is fine). Never unlocks: that would take it from the other holders, too."""
        descriptors, self.descriptors = self.descriptors, ()
        for descriptor in descriptors:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def clear(descriptors: Sequence[int]) -> None:
    """Say that the holder has ended in order and left nothing on the GPU; the lock itself goes with the descriptor."""
    for descriptor in descriptors:
        os.ftruncate(descriptor, 0)


def lease(
    wanted: int | str = "auto",
    *,
    job: str,
    wait: bool = True,
    on_wait: Callable[[str], None] | None = None,
    tick: Callable[[], None] | None = None,
    poll_s: float = 1.0,
    inventory: Inventory = gpus,
    folder: Path | None = None,
) -> Lease:
    """Take whole GPUs, all or none; `auto` is one where there is any.

    Args:
        wanted: a number, `auto` or `none`.
        job: id of the job, shown to those who wait for us.
        wait: wait until enough are free; else fail.
        on_wait: called with a sentence that says who holds them, at first and whenever it changes.
        tick: called at every look, may raise to give up.
        poll_s: seconds between two looks.
        inventory: lists the machine's GPUs.
        folder: where the lock files are (default: one place per machine).

    Raises:
        UsageError: `wanted` means nothing.
        NoSlot: there are not as many GPUs, or they are taken and `wait` is false.
    """
    available = visible(inventory)
    count = _count(wanted, available)
    if count == 0:
        return Lease(job=job)
    where, said = folder or shared_folder(), ""
    while True:
        lease, reasons = _attempt(available, count, where, job)
        if lease is not None:
            return lease
        sentence = "; ".join(reasons)
        if not wait:
            raise NoSlot(
                f"{count} of {len(available)} GPUs asked for, too few are free: {sentence}.",
                hint="Leave --no-wait out to wait for them, or use --gpus none to run on the CPU.",
            )
        if on_wait is not None and sentence != said:
            on_wait(sentence)
        said = sentence
        if tick is not None:
            tick()
        time.sleep(poll_s)
        available = visible(inventory)  # who computes there, and whether a card fell off, changes


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


@dataclass(frozen=True, slots=True)
class _Record:
    user: str = ""
    job: str = ""
    pid: int = 0
    since: float = 0.0

    def __str__(self) -> str:
        since = time.strftime("%H:%M", time.localtime(self.since)) if self.since else "?"
        return f"{self.user or 'somebody'} (job {self.job or '?'}, pid {self.pid or '?'}, since {since})"


def _count(wanted: int | str, available: Sequence[Gpu]) -> int:
    count = parse(wanted)
    if count is None:
        return min(1, len(available))
    if count > len(available):
        seen = "is none" if not available else f"{'is' if len(available) == 1 else 'are'} {len(available)}"
        limited = " that CUDA_VISIBLE_DEVICES leaves to us" if "CUDA_VISIBLE_DEVICES" in os.environ else ""
        raise NoSlot(
            f"{count} GPU{'s' if count > 1 else ''} asked for, but there {seen}{limited}.",
            hint="Use --gpus auto, or --gpus none to run on the CPU.",
        )
    return count


def _attempt(available: Sequence[Gpu], count: int, folder: Path, job: str) -> tuple[Lease | None, list[str]]:
    taken: list[tuple[Gpu, int]] = []
    reasons: list[str] = []
    try:
        for gpu in available:
            if len(taken) == count:
                break
            descriptor, reason = _take(gpu, folder)
            if descriptor is None:
                reasons.append(reason)
            else:
                taken.append((gpu, descriptor))
        if len(taken) == count:
            lease = Lease(tuple(gpu for gpu, _ in taken), tuple(descriptor for _, descriptor in taken), job)
            lease.name(os.getpid())
            taken = []
            return lease, []
    finally:
        for _, descriptor in taken:  # all or none: two that hold one each and want two would wait for ever
            os.close(descriptor)
    return None, reasons


def _take(gpu: Gpu, folder: Path) -> tuple[int | None, str]:
    """A descriptor with the lock, or None and why not."""
    descriptor = _open_lock(folder, gpu.uuid)
    kept = False
    try:
        record = _read_record(descriptor)
        if not _lock(descriptor):
            return None, f"{gpu} is held by {record}"
        # A record that nobody has cleared: its supervisor was killed, and may have left its executor on the card.
        strays = process.marked(COOKIE, f"{record.job}.") if record.job else []
        if strays:
            return None, f"{gpu} is used by what a killed job left: {record}, pid {strays[0].pid}"
        if gpu.users:
            return None, f"{gpu} is used by {', '.join(_who(pid) for pid in gpu.users[:3])}"
        kept = True
        return descriptor, ""
    finally:
        if not kept:
            os.close(descriptor)


def _peek(gpu: Gpu, folder: Path) -> str:
    descriptor, reason = _take(gpu, folder)
    if descriptor is not None:
        os.close(descriptor)
    return reason


def _who(pid: int) -> str:
    with suppress(psutil.Error):
        found = psutil.Process(pid)
        return f"{found.username()} ({_printable(found.name())}, pid {pid})"
    return f"pid {pid}"


def _open_lock(folder: Path, uuid: str) -> int:
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


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return os.fstat(descriptor).st_nlink == 1  # 0: somebody removed the file meanwhile, the lock would guard nothing


def _read_record(descriptor: int) -> _Record:
    # Anybody may have written it: nothing of it is believed, and only printable text reaches a terminal.
    try:
        data = json.loads(os.pread(descriptor, _RECORD_LIMIT, 0))
        user, job, pid, since = (data[name] for name in ("user", "job", "pid", "since"))
        since = float(since) if 0 < float(since) < 2**33 else 0.0
        return _Record(_printable(str(user)), _printable(str(job)), int(pid), since)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return _Record()


def _write_record(descriptor: int, record: _Record) -> None:
    data = json.dumps(asdict(record)).encode()
    os.pwrite(descriptor, data, 0)
    os.ftruncate(descriptor, len(data))


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container that runs under a number without a name
        return str(os.getuid())


def _printable(text: str) -> str:
    return "".join(c for c in text[:64] if c.isprintable())
