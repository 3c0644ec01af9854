"""Run an attempt on this machine, under a supervisor process of its own (`segserve.launch`)."""

from __future__ import annotations

import codecs
import json
import os
import re
import select
import signal
import site
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

import segserve
from segserve import cgroups, process
from segserve.backends.base import ALIVE, Alive
from segserve.devices import Lease
from segserve.errors import BackendError
from segserve.layout import AttemptDir, JobDir
from segserve.model import (
    COOKIE,
    GO,
    Ending,
    LaunchPlan,
    Outcome,
    Progress,
    outcome_from_json,
    plan_from_json,
    to_json,
    write_atomically,
)

__all__ = ["ALIVE", "Handle", "cancel", "clean_environment", "follow", "preload", "progress", "recover"]

CANCEL_SECONDS = 40.0
_END_SECONDS = 10.0
_POLL_SECONDS = 0.2
_PROGRESS_BYTES = 256

# What of our environment reaches an executor. Everything else (secrets of the shell, PYTHONPATH, VIRTUAL_ENV, what
# belongs to segserve or to another MLflow) stays here.
_PASSED = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "XDG_RUNTIME_DIR"}
    | {"XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "TORCH_HOME", "HF_HOME"}
    | {"SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "PIP_CERT"}
    | {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"}
    | {"DOCKER_HOST", "DOCKER_CONFIG", "DOCKER_CONTEXT", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY"}
)
_PASSED_PREFIXES = ("LC_", "CUDA_", "NVIDIA_")
_PROXIES = frozenset({"http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"})
# Only for an executor that logs to somebody's tracking server.
_TRACKING = frozenset(
    {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_INSECURE_TLS"}
    | {"MLFLOW_TRACKING_SERVER_CERT_PATH", "MLFLOW_TRACKING_CLIENT_CERT_PATH"}
    | {"MLFLOW_S3_ENDPOINT_URL", "MLFLOW_S3_IGNORE_TLS", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    | {"AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE", "AZURE_STORAGE_CONNECTION_STRING"}
    | {"AZURE_STORAGE_ACCESS_KEY", "GOOGLE_APPLICATION_CREDENTIALS"}
)
_CONTROL_CHARACTERS = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


def clean_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """What of an environment (default: ours) an executor may see."""
    source = os.environ if environ is None else environ
    external = source.get("MLFLOW_TRACKING_URI", "").startswith(("http://", "https://"))
    passed = {
        name: value
        for name, value in source.items()
        if name in _PASSED
        or name.startswith(_PASSED_PREFIXES)
        or name.lower() in _PROXIES
        or (external and name in _TRACKING)
    }
    # Importing cv2 puts its own libraries, and an empty part (the current folder), in front of what was there.
    libraries = [part for part in passed.pop("LD_LIBRARY_PATH", "").split(os.pathsep) if part and "/cv2/" not in part]
    return {**passed, "LD_LIBRARY_PATH": os.pathsep.join(libraries)} if libraries else passed


class Handle:
    """An attempt that this process has begun; see `base.Handle`."""

    def __init__(self, attempt: AttemptDir, supervisor: process.Popen[bytes], control: socket.socket) -> None:
        self.attempt = attempt
        self._supervisor = supervisor
        self._control = control
        self._started = False

    def start(self, plan: LaunchPlan, lease: Lease | None = None, *, hold: int | None = None) -> None:
        """Launch: attempt.json, then `go`, and with it copies of the lease's descriptors.

        `hold` is a descriptor that the supervisor keeps open as long as it lives (`tracking.hold`).

        Raises:
            BackendError: the supervisor has died before; the quote is from its log.
        """
        lease = lease or Lease()
        write_atomically(self.attempt.plan, to_json(plan))
        lease.name(self._supervisor.pid)
        try:
            socket.send_fds(self._control, [GO], [*lease.descriptors, *([] if hold is None else [hold])])
        except (BrokenPipeError, ConnectionResetError):
            raise BackendError(
                "The supervisor of the executor ended before it was told to start.",
                hint="This can be a lack of memory; the end of its log says more.",
                quote=self._last_words(),
                log=self.attempt.log,
            ) from None
        self._started = True

    def poll(self) -> Outcome | None:
        """How it ended, or None while it runs."""
        return None if self._supervisor.poll() is None else self._ended()

    def wait(self, *, tick: Callable[[], None] | None = None) -> Outcome:
        """Wait for the end. `tick` is called every 0.2 s and may raise to give up waiting."""
        while not select.select([self._control], [], [], _POLL_SECONDS)[0]:
            if tick is not None:
                tick()
        self._supervisor.wait(_END_SECONDS)  # the connection ends when it does
        return self._ended()

    def release(self) -> None:
        """Leave a detached attempt to itself."""
        self._control.close()

    def abandon(self) -> None:
        """Want nothing more of it: a supervisor that was not started ends at once, an attached attempt is ended."""
        self._control.close()
        if not self._started:
            self._supervisor.kill()
            self._supervisor.wait()

    def _ended(self) -> Outcome:
        outcome = recover(self.attempt)
        if outcome == ALIVE:  # it has ended: only its identity could not be read
            raise BackendError(f"The supervisor in {self.attempt.path} is not the one that was started.")
        return outcome

    def _last_words(self) -> str:
        with suppress(FileNotFoundError):
            return self.attempt.log.read_text(encoding="utf-8", errors="replace")[-2000:]
        return ""


def preload(attempt: AttemptDir, *, environ: Mapping[str, str] | None = None) -> Handle:
    """Start the supervisor of an attempt; it imports mlflow and waits for `start`. It dies with its handle until then.

    `environ` is the whole environment that supervisor and executor get (default: `clean_environment()`).
    """
    attempt.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    variables = dict(clean_environment() if environ is None else environ)
    # A segserve that runs from a source tree has to be found, too. The executor does not see this variable.
    root = str(Path(segserve.__file__).parent.parent)
    if root not in site.getsitepackages():
        variables["PYTHONPATH"] = root
    ours, theirs = socket.socketpair()
    log = os.open(attempt.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        supervisor = process.spawn(
            [sys.executable, "-P", "-m", "segserve.launch", attempt.path, "--control-fd", str(theirs.fileno())],
            cwd=attempt.path,
            env=variables,
            stdout=log,
            stderr=log,
            pass_fds=[theirs.fileno()],
        )
    finally:
        theirs.close()
        os.close(log)
    write_atomically(attempt.supervisor, to_json(process.identity(supervisor.pid)))
    return Handle(attempt, supervisor, ours)


def recover(attempt: AttemptDir) -> Outcome | Alive:
    """The truth about an attempt whose driver has gone (the caller holds the job's lock).

    A supervisor that still runs is left alone. One that is proved dead and has left no outcome was killed: everything
    that it had started is found by cookie, heartbeat and container label, and ended; then the outcome is LOST.

    Raises:
        BackendError: a container of it may live, but the docker engine does not answer. There is no outcome then.
    """
    outcome, supervisor, plan = _outcome(attempt), _identity(attempt), _plan(attempt)
    if outcome is not None:
        return outcome
    if supervisor is not None and supervisor.alive:
        if plan is not None:
            return ALIVE
        supervisor.send(signal.SIGKILL)  # it waits for a word that nobody will say
    outcome = _outcome(attempt)  # it may have ended in order between our two looks
    if outcome is not None:
        return outcome
    message = "It was never launched."
    if plan is not None:
        _end_strays(attempt, plan)
        restarted = supervisor is not None and supervisor.boot_id != process.boot_id()
        message = "The machine was restarted while it ran." if restarted else "Its supervisor was killed."
    outcome = Outcome(fence=plan.fence if plan else 0, ending=Ending.LOST, message=message, ended=time.time())
    attempt.path.mkdir(mode=0o700, parents=True, exist_ok=True)  # its driver may have died before it made it
    write_atomically(attempt.outcome, to_json(outcome))
    return outcome


def cancel(attempt: AttemptDir, *, wait: bool = False) -> bool:
    """Ask a launched attempt to end; with `wait`, return when it has (at most 40 s). False if none runs.

    A supervisor that waits for its launch is left alone: it belongs to a driver that has to be stopped itself.
    """
    supervisor = _identity(attempt)
    if supervisor is None or not attempt.plan.exists() or attempt.outcome.exists():
        return False
    if not supervisor.send(signal.SIGTERM):
        return False
    deadline = time.monotonic() + CANCEL_SECONDS
    while wait and supervisor.alive and time.monotonic() < deadline:
        time.sleep(0.05)
    return True


def interrupt_driver(job: JobDir) -> bool:
    """Send Ctrl-C to the command that drives a job, which is who holds its lock. False if nobody does.

    A shell without job control lets its background commands ignore Ctrl-C: these get SIGTERM, which means the same to
    the command line. (A notebook that drives a job by the API is only interrupted, and lives.)
    """
    with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        driver = _lock_holder(job.lock)
        os.kill(driver, signal.SIGTERM if process.ignores(driver, signal.SIGINT) else signal.SIGINT)
        return True
    return False


def follow(attempt: AttemptDir, *, until: Callable[[], bool], pause: float = 0.1) -> Iterator[str]:
    """The lines of an attempt's log as they come, until `until()` is true and all is read.

    Escape sequences and other control characters are left out: an executor has no say over the terminal.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    position, rest = 0, ""
    while True:
        last = until()
        data = b""
        with suppress(FileNotFoundError), attempt.log.open("rb") as stream:
            stream.seek(position)
            data = stream.read(2**20)
        position += len(data)
        *lines, rest = re.split(r"\r\n|\n|\r(?!$)", rest + decoder.decode(data, final=last and not data))
        for line in lines:
            yield printable(line)
        if not data and last:
            break
        if not data:
            time.sleep(pause)
    if rest:
        yield printable(rest)


def printable(line: str) -> str:
    """A line of a log without escape sequences and other control characters."""
    return _CONTROL_CHARACTERS.sub("", line)


def progress(attempt: AttemptDir) -> Progress | None:
    """How many images are done, if the executor says so. The file is its own to write: nothing in it is believed."""
    try:
        descriptor = os.open(attempt.progress, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # not launched yet, or it is no file any more
        return None
    try:
        said = json.loads(os.read(descriptor, _PROGRESS_BYTES))
        done, total = said["done"], said["total"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    finally:
        os.close(descriptor)
    plausible = type(done) is int and type(total) is int and 0 <= done <= total < 10**9
    return Progress(done, total) if plausible else None


def _lock_holder(lock: Path) -> int:
    # proc_locks(5): `1: FLOCK ADVISORY WRITE 1234 fd:01:5678 0 EOF`; stale files have no line.
    status = lock.stat()
    file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if words[1] == "FLOCK" and words[5] == file and int(words[4]) > 0:
            return int(words[4])
    raise ProcessLookupError(f"nobody holds {lock}")


def _end_strays(attempt: AttemptDir, plan: LaunchPlan) -> None:
    known = _heartbeat(attempt)

    def find() -> list[psutil.Process]:
        found = process.marked(COOKIE, plan.cookie)
        for identity in known:
            with suppress(psutil.NoSuchProcess):
                if identity.alive:
                    found += [psutil.Process(identity.pid), *process.descendants(identity.pid)]
        return list({one.pid: one for one in found}.values())

    process.end(find)
    with suppress(FileNotFoundError):
        group = cgroups.recorded(attempt.group.read_text(encoding="utf-8"), plan.cookie)
        group.kill()  # also what has lost cookie and parents
        group.remove()
    if plan.docker_args is not None:
        from segserve.environments import dockerengine

        dockerengine.kill(plan.cookie)


def _outcome(attempt: AttemptDir) -> Outcome | None:
    with suppress(FileNotFoundError):
        return outcome_from_json(attempt.outcome.read_text(encoding="utf-8"))
    return None


def _plan(attempt: AttemptDir) -> LaunchPlan | None:
    with suppress(FileNotFoundError):
        return plan_from_json(attempt.plan.read_text(encoding="utf-8"))
    return None


def _identity(attempt: AttemptDir) -> process.Identity | None:
    with suppress(FileNotFoundError):
        return process.Identity(**json.loads(attempt.supervisor.read_text(encoding="utf-8")))
    return None


def _heartbeat(attempt: AttemptDir) -> list[process.Identity]:
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError):  # not fsynced: a power cut may have torn it
        beat = json.loads(attempt.heartbeat.read_text(encoding="utf-8"))
        return [process.Identity(int(pid), float(start), str(beat["boot_id"])) for pid, start in beat["processes"]]
    return []
