"""How far an attempt is shut in: what it sees, whether it gets the network, and which cache is its own."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from segserve import refs, sandbox
from segserve.config import ExecutorSettings, SandboxSettings, Settings
from segserve.devices import Lease
from segserve.diagnosis import Diagnosis
from segserve.layout import AttemptDir, Home, JobDir
from segserve.model import Environment, Job, Sandbox, plan_from_json, write_atomically
from segserve.pipeline.context import Hold
from segserve.pipeline.localise import Localised
from segserve.refs import Pin
from segserve.store import mirror

_WANTS_NETWORK = ("no-network", "weights-unreachable")  # rules of `diagnosis`
_WANTS_CACHE = "permission"
_GRANT = (
    'Whoever runs this machine can let it fill its cache: `network = "first-run"` in its entry under [executors] of '
    'config.toml ("always", if it needs the network later, too). docs/isolation.md says more.'
)
_DRIVER = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset", "nvidia-caps")


def shuts_in(settings: SandboxSettings, *, others: bool) -> bool:
    """Whether a job is shut in; `others`: it is not the local user's."""
    return settings.kind == "bubblewrap" or (settings.kind == "auto" and others)


def require(settings: SandboxSettings, *, others: bool) -> None:
    """Refuse to begin what could not be shut in as the settings want it.

    Raises:
        BackendError: bubblewrap does not work here.
    """
    if shuts_in(settings, others=others):
        sandbox.require()


def network(settings: Settings, requested: refs.ExecutorRef, job: Job) -> str:
    """What the executor's entry in config.toml grants: `none`, `first-run` or `always`.

    An entry counts for its repository at its own revision: other commits are not what the admin has looked at.
    """
    granted = "none"
    for entry in settings.executors.values():
        if isinstance(entry, ExecutorSettings) and entry.network != "none" and _is(entry.ref, requested, job):
            granted = entry.network if granted != "always" else granted
    return granted


def _is(ref: str, requested: refs.ExecutorRef, job: Job) -> bool:
    entry = refs.parse(ref)
    if refs.canonical(entry.repo) != refs.canonical(requested.repo) or entry.subdir != job.pin.subdir:
        return False
    return entry.rev is None or requested.rev == entry.rev or job.pin.sha.startswith(entry.rev.lower())


class Cache:
    """`CACHE_FOLDER` of one executor, which is a folder of a repository. Which commits have filled it stands beside."""

    def __init__(self, home: Home, pin: Pin) -> None:
        key = mirror.key(pin.repo)
        if pin.subdir:
            key += f"-{hashlib.sha256(pin.subdir.encode()).hexdigest()[:8]}"
        self.folder, self._filled, self._sha = home.executor_cache(key), home.executor_cache_filled(key), pin.sha

    def make(self) -> Path:
        """The folder, which exists now."""
        (self.folder / "home").mkdir(mode=0o700, parents=True, exist_ok=True)
        return self.folder

    @property
    def filled(self) -> bool:
        """Whether a job of this commit has succeeded with the network."""
        return self._sha in self._known()

    def note_filled(self) -> None:
        """A job of this commit has succeeded."""
        write_atomically(self._filled, json.dumps(sorted({*self._known(), self._sha})))

    def _known(self) -> list[str]:
        return list(json.loads(self._filled.read_text(encoding="utf-8"))) if self._filled.exists() else []


def explained(found: Diagnosis, attempt: AttemptDir) -> Diagnosis:
    """What an executor failed of, with what only the sandbox makes of it: no network, and a cache that is read-only."""
    if found.rule not in (*_WANTS_NETWORK, _WANTS_CACHE) or not attempt.plan.exists():
        return found
    plan = plan_from_json(attempt.plan.read_text(encoding="utf-8"))
    if plan.sandbox is None or plan.sandbox.network:
        return found
    if found.rule == _WANTS_CACHE:
        return replace(found, hint=f"{found.hint} In this sandbox CACHE_FOLDER is read-only. {_GRANT}")
    return replace(found, cause="it wanted the network (weights?), and is shut in without one.", hint=_GRANT)


def note_filled(home: Home, job: Job, attempt: AttemptDir) -> None:
    """Take note that an attempt has succeeded: if it had the network, the executor's cache is filled now."""
    plan = plan_from_json(attempt.plan.read_text(encoding="utf-8"))
    if plan.sandbox is not None and plan.sandbox.network:
        Cache(home, job.pin).note_filled()


@dataclass(frozen=True)
class Confinement:
    """One attempt that is shut in; `granted` is what `network` said."""

    settings: SandboxSettings
    granted: str
    hold: Hold
    job: Job
    environment: Environment
    localised: Localised
    cache: Cache

    def show(self, artifacts: Path | None, lease: Lease, *, readable: Iterable[Path] = ()) -> Sandbox:
        """What it sees; `artifacts` is the folder of its run's, where that is on this machine, `readable` what else."""
        attempt = self.hold.attempt
        open_now = self.granted == "always" or (self.granted == "first-run" and not self.cache.filled)
        if artifacts is not None:
            artifacts.mkdir(parents=True, exist_ok=True)
            attempt.elsewhere.mkdir(mode=0o700, exist_ok=True)
        writable = [attempt.checkout, attempt.progress, *([artifacts, attempt.elsewhere] if artifacts else [])]
        seen = [*_environment(self.environment), *_inputs(self.hold.folder), *self.localised.mounts, *readable]
        (writable if open_now else seen).append(self.cache.folder)
        return Sandbox(
            read_only=_existing(seen),
            writable=_existing(writable),
            devices=_existing(_devices(lease)),
            home=str(self.cache.folder / "home"),
            network=open_now,
            allow=self.settings.allow,
        )


def _environment(environment: Environment) -> list[Path]:
    """Its prefix, and where the Python is that a virtual environment only links to."""
    prefix = Path(environment.location)
    found = [prefix] if prefix.is_absolute() else []
    for name in ("python", "python3"):
        python = prefix / "bin" / name
        if python.exists():
            base = python.resolve().parent.parent
            found += [] if base.is_relative_to("/usr") or base.is_relative_to(prefix) else [base]
    if environment.spec.kind == "local":
        found.append(Path(sys.prefix))
    return [path for path in found if not path.is_relative_to("/usr") and path != Path("/")]


def _inputs(folder: JobDir) -> list[Path]:
    return [folder.inputs, folder.inputs_map, folder.fetched]


def _devices(lease: Lease) -> list[Path]:
    if not lease.gpus:
        return []
    names = [*_DRIVER, *(f"nvidia{gpu.minor}" for gpu in lease.gpus)]
    return [Path("/dev", name) for name in names]


def _existing(paths: Iterable[Path]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(path) for path in paths if path.exists()))
