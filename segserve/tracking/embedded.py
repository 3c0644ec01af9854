"""Start, find, hold and stop the embedded tracking server (`python -m segserve.tracking`, see `__main__`).

It outlives the command that started it and ends by itself when nobody has asked anything for a while and nobody holds
it. Three lock files, all flock, so that the kernel frees them whatever happens: `tracking.lock` (who starts it),
`tracking.alive` (the server), `tracking.hold` (shared: commands and supervisors with a running job).
It listens on loopback only, checks the Host header (DNS rebinding) and refuses foreign origins; other users of the
same machine can reach a loopback port all the same.
"""

from __future__ import annotations

import os
import signal
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import segserve
from segserve import process, redact
from segserve.errors import TrackingUnreachable, UsageError
from segserve.layout import Home
from segserve.store import locked
from segserve.tracking import record
from segserve.tracking.record import Record

IDLE_MINUTES = 15.0
IDLE_VARIABLE = "SEGSERVE_TRACKING_IDLE_MINUTES"
ALREADY_RUNNING = 75  # exit code of a server that finds another one on its database
START_SECONDS = 120.0  # 3.5 s on a quiet machine with two cores; a schema upgrade or twenty jobs take their time
ANSWER_SECONDS = 2.0
HUNG_SECONDS = 20.0
STOP_SECONDS = 10.0
LOG_BYTES = 5 << 20
_PAUSE = 0.02

# All that the server gets of our environment: it outlives the command and must not carry the command's secrets along.
_ENVIRONMENT = frozenset({"PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV"})


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """What `server_status` found. `held`: a command or a job keeps it from ending."""

    running: bool
    uri: str
    pid: int
    mlflow: str
    started: float
    held: bool
    log: Path


def ensure_server(home: Home, *, idle_minutes: float | None = None, patience: float = HUNG_SECONDS) -> str:
    """The address of the embedded server, which is started (or, when it hangs for `patience` seconds, replaced) first.

    Any number of commands may call this at once: one server comes out. `idle_minutes` counts for a server that is
    started here; `$SEGSERVE_TRACKING_IDLE_MINUTES` wins over it.

    Raises:
        TrackingUnreachable: it does not start; `quote` has the end of its log.
    """
    known = record.read(home)
    if known and not _outdated(known) and known.healthy(ANSWER_SECONDS):
        return known.uri
    home.ensure()
    with locked(record.start_lock(home)):
        known = record.read(home)
        if known and known.identity.alive:
            if _outdated(known):
                _retire(home, known)
            elif known.ready and not known.healthy(patience):
                _end(known, signal.SIGKILL)
        return _start(home, idle_minutes)


@contextmanager
def hold(home: Home) -> Iterator[int]:
    """Keep the server from ending for idleness as long as this block (or a process that inherits the yielded file
    descriptor, see `pass_fds`) lives. It does not start the server: call `ensure_server` inside or `resolve` before.
    """
    home.ensure()
    with record.shared_hold(home) as descriptor:
        yield descriptor


def stop_server(home: Home) -> bool:
    """End the server, whoever holds it; false when there was none."""
    home.ensure()
    with locked(record.start_lock(home)):
        known = record.read(home)
        if known is None or not known.identity.alive:
            return False
        _end(known, signal.SIGTERM)
        return True


def server_status(home: Home) -> ServerStatus:
    """Whether the server runs and answers; starts nothing."""
    log = _log(home)
    known = record.read(home)
    if known is None or not known.healthy(ANSWER_SECONDS):
        return ServerStatus(False, known.uri if known else "", 0, known.mlflow if known else "", 0.0, False, log)
    with record.exclusive_hold(home) as nobody:
        return ServerStatus(True, known.uri, known.identity.pid, known.mlflow, known.started, not nobody, log)


def ui(home: Home, *, idle_minutes: float | None = None) -> str:
    """The address of the tracking UI on the embedded store; the server is started when needed."""
    return ensure_server(home, idle_minutes=idle_minutes)


def _start(home: Home, idle_minutes: float | None) -> str:
    """Wait until a server is ready; start one when none is coming up. The caller holds the start lock."""
    deadline = time.monotonic() + START_SECONDS
    child: process.Popen[bytes] | None = None
    offset = 0
    while time.monotonic() < deadline:
        known = record.read(home)
        if known and known.identity.alive:
            if known.healthy(ANSWER_SECONDS):
                return known.uri
        elif child is None:
            child, offset = _spawn(home, idle_minutes)
        if child is not None and child.poll() is not None:
            if child.returncode != ALREADY_RUNNING:
                raise _did_not_start(home, offset, f"exit code {child.returncode}")
            child = None  # one that another command has started, and that has not written its record yet
            time.sleep(0.2)
        time.sleep(_PAUSE)
    known = record.read(home)
    if child is not None:
        process.kill_group(child.pid)
    elsewhere = known is not None and known.hostname != os.uname().nodename
    where = f"; the server of '{known.hostname}' may use this folder" if known and elsewhere else ""
    raise _did_not_start(home, offset, f"not ready within {START_SECONDS:g} s{where}")


def _spawn(home: Home, idle_minutes: float | None) -> tuple[process.Popen[bytes], int]:
    log = _log(home)
    if log.exists() and log.stat().st_size > LOG_BYTES:
        log.replace(log.with_suffix(".1.log"))
    with open(log, "ab", opener=_private) as stream:
        offset = stream.tell()
        idle = f"--idle={_idle_seconds(home, idle_minutes)}"
        argv = [sys.executable, "-P", "-m", "segserve.tracking", str(home.path), idle]
        kept = {k: v for k, v in os.environ.items() if k in _ENVIRONMENT or k.startswith(("LC_", "PYTHON"))}
        environment = with_import_path(kept)
        return process.spawn(argv, cwd=home.path, env=environment, stdout=stream, stderr=stream), offset


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _idle_seconds(home: Home, idle_minutes: float | None) -> float:
    configured = os.environ.get(IDLE_VARIABLE)
    if configured:
        try:
            return max(0.0, float(configured)) * 60
        except ValueError:
            raise UsageError(f"{IDLE_VARIABLE} is '{configured}', which is no number of minutes.") from None
    if idle_minutes is not None:
        return idle_minutes * 60
    known = record.read(home)  # whoever finishes a job needs not know the settings of the command that started it
    return known.idle_s if known else IDLE_MINUTES * 60


def with_import_path(variables: Mapping[str, str]) -> dict[str, str]:
    """`variables` for a Python process that has to find segserve, also from a source tree that is not installed."""
    source = str(Path(segserve.__file__).parents[1])
    if source in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        return dict(variables)
    return {**variables, "PYTHONPATH": os.pathsep.join(filter(None, (source, variables.get("PYTHONPATH"))))}


def _outdated(known: Record) -> bool:
    """Whether the server runs an older mlflow than ours. A newer one is left alone: two installations don't fight."""
    ours = version("mlflow")
    if known.mlflow == ours:
        return False
    from packaging.version import Version

    return Version(known.mlflow) < Version(ours)


def _retire(home: Home, known: Record) -> None:
    """End a server of an older version, unless a job uses it."""
    with record.exclusive_hold(home) as nobody:
        if nobody:
            _end(known, signal.SIGTERM)


def _end(known: Record, how: signal.Signals) -> None:
    for signal_to_send in (how, signal.SIGKILL):
        process.kill_group(known.identity.pid, signal_to_send)
        deadline = time.monotonic() + STOP_SECONDS
        while known.identity.alive and time.monotonic() < deadline:
            time.sleep(_PAUSE)


def _did_not_start(home: Home, offset: int, reason: str) -> TrackingUnreachable:
    log = _log(home)
    text = log.read_bytes()[offset:].decode("utf-8", "replace").strip() if log.exists() else ""
    return TrackingUnreachable(
        f"The embedded tracking server did not start: {reason}.",
        hint="Its log says why; `segserve doctor` checks the machine.",
        quote="\n".join(redact.text(text).splitlines()[-8:]),
        log=log,
    )


def _log(home: Home) -> Path:
    return home.logs / "tracking.log"
