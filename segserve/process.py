"""The only place that starts a subprocess: argv lists, own session, time limit, the whole group killed at the end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from segserve import redact

Argv = Sequence[str | os.PathLike[str]]
Popen = subprocess.Popen
PIPE, DEVNULL, STDOUT = subprocess.PIPE, subprocess.DEVNULL, subprocess.STDOUT


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
) -> Completed:
    """Run a command to its end and return what it printed.

    `env` is the whole environment (None: ours). With `on_line`, stderr is merged into stdout and every line is handed
    over as it comes. Whatever ends this call (time limit, exception, Ctrl-C) ends the command's whole process group.

    Raises:
        CommandFailed: exit code other than 0 and `check`.
        CommandTimedOut: `timeout` seconds have passed.
        FileNotFoundError: there is no such program.
    """
    words = tuple(os.fspath(word) for word in argv)
    process = spawn(
        words,
        cwd=cwd,
        env=env,
        stdin=PIPE if stdin is not None else DEVNULL,
        stdout=PIPE,
        stderr=STDOUT if on_line else PIPE,
    )
    try:
        if on_line is None:
            out, err = process.communicate(stdin.encode() if stdin is not None else None, timeout)
        else:
            out, err = _stream(process, on_line, timeout), b""
    except subprocess.TimeoutExpired:
        kill_group(process.pid)
        out, err = process.communicate()
        raise CommandTimedOut(_completed(words, process, out, err), f"no end within {timeout:g} s") from None
    finally:
        if process.poll() is None:
            kill_group(process.pid)
            process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    completed = _completed(words, process, out, err)
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


def kill_group(pid: int, how: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to a whole process group; one that is gone is fine."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, how)


def _stream(process: Popen[bytes], on_line: Callable[[str], None], timeout: float | None) -> bytes:
    # One thread would do for reading; the time limit is kept by a timer that kills, which ends the reading.
    import threading

    timed_out = threading.Event()

    def expire() -> None:
        timed_out.set()
        kill_group(process.pid)

    timer = threading.Timer(timeout, expire) if timeout else None
    if timer:
        timer.start()
    lines = []
    try:
        for line in process.stdout or ():
            lines.append(line)
            on_line(line.decode("utf-8", "replace").rstrip("\r\n"))
        process.wait()
    finally:
        if timer:
            timer.cancel()
    if timed_out.is_set():
        raise subprocess.TimeoutExpired(process.args, timeout or 0)
    return b"".join(lines)


def _completed(words: tuple[str, ...], process: Popen[bytes], out: bytes | None, err: bytes | None) -> Completed:
    return Completed(
        words, process.returncode, (out or b"").decode("utf-8", "replace"), (err or b"").decode("utf-8", "replace")
    )


@dataclass(frozen=True, slots=True)
class Identity:
    """A process that cannot be mistaken for a later one with the same number: pid, start time, boot id."""

    pid: int
    start_time: float
    boot_id: str

    @property
    def alive(self) -> bool:
        """Whether this very process still runs (a zombie does not)."""
        try:
            process = psutil.Process(self.pid)
            return (
                self.boot_id == boot_id()
                and abs(process.create_time() - self.start_time) < 0.1
                and process.status() != psutil.STATUS_ZOMBIE
            )
        except psutil.NoSuchProcess:
            return False


def boot_id() -> str:
    """The kernel's id of this boot (the boot time where there is none)."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else str(int(psutil.boot_time()))


def identity(pid: int | None = None) -> Identity:
    """The identity of a running process (default: this one)."""
    process = psutil.Process(pid)
    return Identity(process.pid, process.create_time(), boot_id())
