"""The only place that starts a subprocess: argv lists, own session, time limit, the whole group killed at the end."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import psutil

from segserve import redact

Argv = Sequence[str | os.PathLike[str]]
Popen = subprocess.Popen
TimeoutExpired = subprocess.TimeoutExpired
PIPE, DEVNULL, STDOUT = subprocess.PIPE, subprocess.DEVNULL, subprocess.STDOUT

_LINGER_SECONDS = 1.0  # how long the pipes of a command that has ended may stay open
_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Completed:
    """A finished command. Texts are decoded as UTF-8 with replacement and not redacted."""

    argv: tuple[str, ...]
    code: int
    stdout: str
    stderr: str


class CommandFailed(Exception):
    """A command that ended with an error or ran out of time. Its text is redacted."""

    def __init__(self, completed: Completed, reason: str = "") -> None:
        self.completed = completed
        self.reason = reason or f"exit code {completed.code}"
        parts = [f"{' '.join(completed.argv)}: {self.reason}", completed.stdout.strip(), completed.stderr.strip()]
        super().__init__(redact.text("\n".join(part for part in parts if part)))


class CommandTimedOut(CommandFailed):
    """A command that ran past its time limit and was killed with its group."""


def run(
    argv: Argv,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    timeout: float | None = None,
    check: bool = True,
    on_line: Callable[[str], None] | None = None,
    leashed: bool = False,
) -> Completed:
    """Run a command to its end and return what it printed.

    `env` is the whole environment (None: ours). With `on_line`, stderr is merged into stdout and every line is handed
    over as it comes. Whatever ends this call (time limit, exception, Ctrl-C) ends the command's whole process group;
    with `leashed`, so does the death of this process, `kill -9` included.

    Raises:
        CommandFailed: exit code other than 0 and `check`.
        CommandTimedOut: `timeout` seconds have passed.
        FileNotFoundError: there is no such program.
    """
    words = tuple(os.fspath(word) for word in argv)
    with contextlib.ExitStack() as stack:
        holder, pass_fds = stack.enter_context(_leash()) if leashed else ((), ())
        process = spawn(
            (*holder, *words),
            cwd=cwd,
            env=env,
            stdin=PIPE if stdin is not None else DEVNULL,
            stdout=PIPE,
            stderr=STDOUT if on_line else PIPE,
            pass_fds=pass_fds,
        )
        exchange = _Exchange(process, (stdin or "").encode(), on_line)
        try:
            in_time = exchange.run(timeout)
        finally:
            if process.poll() is None:
                kill_group(process.pid)
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
    completed = Completed(words, process.returncode, *exchange.texts())
    if not in_time:
        raise CommandTimedOut(completed, f"no end within {timeout:g} s")
    if check and completed.code != 0:
        raise CommandFailed(completed)
    return completed


def spawn(
    argv: Argv,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: int | IO[Any] | None = DEVNULL,
    stdout: int | IO[Any] | None = None,
    stderr: int | IO[Any] | None = None,
    pass_fds: Iterable[int] = (),
) -> Popen[bytes]:
    """Start a command in a session of its own and return at once; the caller waits for it."""
    return subprocess.Popen(
        [os.fspath(word) for word in argv],
        cwd=cwd,
        env=None if env is None else dict(env),
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        pass_fds=tuple(pass_fds),
        start_new_session=True,
    )


@contextlib.contextmanager
def _leash() -> Iterator[tuple[tuple[str, ...], tuple[int, ...]]]:
    """Words to put before a command and descriptors to pass to it; its group dies when our end of a pipe closes.

    The kernel closes it when we die, however that happens. PR_SET_PDEATHSIG would reach the command alone and leave
    what it started (a compiler below a build).
    """
    reader, writer = os.pipe()
    try:
        # Not <&{reader}: dash knows descriptors of one digit only.
        script = f'(read _ </dev/fd/{reader}; kill -KILL 0) >/dev/null 2>&1 & exec "$@"'
        yield ("/bin/sh", "-c", script, "sh"), (reader,)
    finally:
        os.close(reader)
        os.close(writer)


def kill_group(pid: int, how: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to a whole process group; one that is gone is fine."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, how)


class _Exchange:
    """Feeds and reads one command until it has ended.

    The end is the end of the command, not of its pipes: a daemon that it left behind may hold them for ever (ssh's
    ControlPersist does: https://bugzilla.mindrot.org/show_bug.cgi?id=1988).
    """

    def __init__(self, process: Popen[bytes], text: bytes, on_line: Callable[[str], None] | None) -> None:
        self._process = process
        self._unsent = memoryview(text)
        self._on_line = on_line
        self._read = {id(stream): bytearray() for stream in (process.stdout, process.stderr) if stream}
        self._line = b""

    def texts(self) -> tuple[str, str]:
        """What came from stdout and stderr."""
        streams = (self._process.stdout, self._process.stderr)
        out, err = (bytes(self._read[id(stream)]) if stream else b"" for stream in streams)
        return out.decode("utf-8", "replace"), err.decode("utf-8", "replace")

    def run(self, timeout: float | None) -> bool:
        """Go on until the command has ended; false if it had to be killed because its time was over."""
        deadline, in_time, ended = None if timeout is None else time.monotonic() + timeout, True, False
        pidfd = os.pidfd_open(self._process.pid)
        with selectors.DefaultSelector() as selector:
            self._register(selector, pidfd)
            try:
                while selector.get_map():
                    ready = selector.select(None if deadline is None else max(0.0, deadline - time.monotonic()))
                    if deadline is not None and time.monotonic() >= deadline:
                        if ended:
                            break
                        in_time, deadline = False, None
                        kill_group(self._process.pid)
                    for key, _ in ready:
                        if key.fileobj == pidfd:
                            selector.unregister(pidfd)
                            ended, deadline = True, time.monotonic() + _LINGER_SECONDS
                        else:
                            self._serve(selector, cast("IO[bytes]", key.fileobj))
            finally:
                os.close(pidfd)
        if self._line and self._on_line is not None:
            self._on_line(_line(self._line))
        return in_time

    def _register(self, selector: selectors.BaseSelector, pidfd: int) -> None:
        selector.register(pidfd, selectors.EVENT_READ)
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                selector.register(stream, selectors.EVENT_READ)
        if self._process.stdin is not None:
            os.set_blocking(self._process.stdin.fileno(), False)
            selector.register(self._process.stdin, selectors.EVENT_WRITE)

    def _serve(self, selector: selectors.BaseSelector, stream: IO[bytes]) -> None:
        if stream is self._process.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._unsent = self._unsent[os.write(stream.fileno(), self._unsent[:65536]) :]
                if self._unsent:
                    return
            selector.unregister(stream)
            stream.close()
        elif data := os.read(stream.fileno(), 65536):
            self._read[id(stream)] += data
            if self._on_line is not None:
                *lines, self._line = (self._line + data).split(b"\n")
                for line in lines:
                    self._on_line(_line(line))
        else:
            selector.unregister(stream)


def _line(data: bytes) -> str:
    return data.decode("utf-8", "replace").rstrip("\r")


@dataclass(frozen=True, slots=True)
class Identity:
    """A process that cannot be mistaken for a later one with the same number: pid, start time, boot id.

    `start_time` is in seconds since the boot: that of the wall clock moves with every correction of the clock.
    """

    pid: int
    start_time: float
    boot_id: str

    @property
    def alive(self) -> bool:
        """Whether this very process still runs (a zombie does not)."""
        try:
            lives, start_time = _stat(self.pid)
        except ProcessLookupError:
            return False
        return lives and self.boot_id == boot_id() and abs(start_time - self.start_time) < 0.001

    def send(self, how: signal.Signals) -> bool:
        """Send a signal to this very process; false if it has ended. No later process can be hit instead.

        Raises:
            PermissionError: it belongs to somebody else.
        """
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            if not self.alive:
                return False
            signal.pidfd_send_signal(descriptor, how)
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)
        return True


def ignores(pid: int, number: signal.Signals) -> bool:
    """Whether a process ignores a signal (proc(5), `SigIgn`)."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigIgn:"))
    return bool(int(mask, 16) >> (number - 1) & 1)


def boot_id() -> str:
    """The kernel's id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def identity(pid: int | None = None) -> Identity:
    """The identity of a running process (default: this one).

    Raises:
        ProcessLookupError: there is no such process.
    """
    number = os.getpid() if pid is None else pid
    return Identity(number, _stat(number)[1], boot_id())


def _stat(pid: int) -> tuple[bool, float]:
    """Whether a process lives, and its start in seconds since the boot."""
    # proc(5): the name in parentheses may hold anything; behind it, state is field 1, threads 18, start time 20.
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(f"no process {pid}") from None
    # Only its first thread is a zombie while others still run (or still close files: a GPU lease is among them).
    lives = fields[0] not in (b"Z", b"X") or int(fields[17]) > 1
    return lives, int(fields[19]) / os.sysconf("SC_CLK_TCK")


def descendants(pid: int | None = None) -> list[psutil.Process]:
    """Everything living below a process (default: this one), whatever session or group it has moved to."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [process for process in psutil.Process(pid).children(recursive=True) if _lives(process)]
    return []


def marked(variable: str, value: str) -> list[psutil.Process]:
    """Everything living whose environment had, when it started, `variable` with this value.

    A value that ends in `.` is taken as the beginning of one. Processes of other users are not readable and left out.
    """
    entry = os.fsencode(f"{variable}={value}") + (b"" if value.endswith(".") else b"\0")
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            if b"\0" + entry in b"\0" + (folder / "environ").read_bytes():
                found.append(psutil.Process(int(folder.name)))
    return [process for process in found if _lives(process)]


def living(pids: Iterable[int]) -> list[psutil.Process]:
    """Those of these processes that live."""
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(pid))
    return [process for process in found if _lives(process)]


def end(
    find: Callable[[], Iterable[psutil.Process]], *, grace: float = 3.0, patience: float = 15.0
) -> list[psutil.Process]:
    """End everything that `find` finds: SIGTERM, `grace` seconds, then SIGKILL until it finds nothing more.

    Returns:
        What still lives `patience` seconds after that (it hangs in the kernel or belongs to somebody else).
    """
    living = list(find())
    _signal(living, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while living and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        living = list(find())
    deadline = time.monotonic() + patience
    while living and time.monotonic() < deadline:
        _signal(living, signal.SIGKILL)
        time.sleep(_POLL_SECONDS / 5)
        living = list(find())
    return living


def _signal(processes: Iterable[psutil.Process], how: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):  # psutil itself sees to it that no later process is hit
            process.send_signal(how)


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(ProcessLookupError):
        return _stat(process.pid)[0]
    return False
