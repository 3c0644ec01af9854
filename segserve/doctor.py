"""`segserve doctor`: what this machine has and lacks, one check per function."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass

from segserve import cgroups, devices, git, process, redact, sandbox, tokens, tracking
from segserve.config import SandboxSettings, Settings
from segserve.environments import interpreters
from segserve.environments.indexes import host_settings
from segserve.errors import BackendError, UsageError
from segserve.layout import Home

_LOW_DISK_GB = 10


@dataclass(frozen=True, slots=True)
class Check:
    """One answer; `status` is ok, note or problem."""

    name: str
    status: str
    message: str
    hint: str = ""


def examine(home: Home, settings: Settings) -> list[Check]:
    """All checks, in the order in which a run would need them."""
    checks: tuple[Callable[[Home], Check], ...] = (_git, _disk, _interpreters, _index, _gpus, _docker, _tracking)
    named = [_sandbox(home, settings.sandbox.kind), _limits(settings.sandbox)]
    return [*(check(home) for check in checks), *named]


def _git(_: Home) -> Check:
    try:
        git.require_git()
    except BackendError as failure:
        return Check("git", "problem", failure.message, failure.hint)
    return Check("git", "ok", process.run(["git", "version"]).stdout.strip())


def _disk(home: Home) -> Check:
    free = shutil.disk_usage(home.path).free / 1e9
    message = f"{free:.0f} GB free in {home.path}"
    if free < _LOW_DISK_GB:
        return Check("disk", "problem", message, "`segserve env gc` frees space; SEGSERVE_HOME moves everything.")
    return Check("disk", "ok", message)


def _interpreters(_: Home) -> Check:
    versions = list(dict.fromkeys(found.version for found in interpreters.installed()))
    hint = "" if len(versions) > 1 else "Others are downloaded by uv when an executor asks for them."
    return Check("python", "ok" if versions else "note", ", ".join(versions) or "none found", hint)


def _index(_: Home) -> Check:
    indexes = host_settings().indexes
    parts = [redact.url(indexes.index or "the default index of PyPI"), *map(redact.url, indexes.extra)]
    parts += [f"wheels in {link}" for link in indexes.find_links]
    return Check("packages", "ok", ", ".join(parts))


def _gpus(_: Home) -> Check:
    gpus = devices.gpus()
    if not gpus:
        return Check("gpu", "note", "no NVIDIA GPU is visible", "Executors run on the CPU.")
    return Check("gpu", "ok", ", ".join(f"{gpu.index}: {gpu.name}" for gpu in gpus))


def _sandbox(home: Home, kind: str) -> Check:
    if kind == "none":
        return Check("sandbox", "note", "executors run as you, with the network", "[sandbox] in config.toml.")
    try:
        sandbox.require()
    except BackendError as failure:
        needed = kind == "bubblewrap" or tokens.Tokens(home.tokens).exist
        return Check("sandbox", "problem" if needed else "note", failure.message, failure.hint)
    who = "executors" if kind == "bubblewrap" else "the executors of other people"
    return Check("sandbox", "ok", f"{who} are shut in by bubblewrap")


def _limits(settings: SandboxSettings) -> Check:
    """For what is started from here: a service in its unit may have other rights than the shell of who asks."""
    looked_at = "memory and processes of a job are only looked at every few seconds"
    if not settings.control_groups:
        return Check("limits", "note", f"{looked_at}: `sandbox.control_groups` is off")
    try:
        places = cgroups.find()
    except cgroups.Unavailable as problem:
        hint = "In a unit of systemd: `Delegate=memory pids`, `DelegateSubgroup=`; see docs/isolation.md, Limits."
        return Check("limits", "note", f"{looked_at}: {problem}", hint)
    heeded = " and ".join(f"`{name}`" for place in places for name in place.controllers)
    return Check("limits", "ok", f"walls of the kernel: control groups with {heeded} (version {places[0].version})")


def _docker(_: Home) -> Check:
    if shutil.which("docker") is None:
        return Check("docker", "note", "docker is not installed", "Only executors with docker_env need it.")
    done = process.run(["docker", "version", "--format", "{{.Server.Version}}"], check=False, timeout=20)
    if done.code != 0:
        return Check("docker", "note", "no docker engine answers", "Only executors with docker_env need it.")
    return Check("docker", "ok", f"engine {done.stdout.strip()}")


def _tracking(home: Home) -> Check:
    try:
        external = tracking.external()
    except UsageError as failure:
        return Check("mlflow", "problem", failure.message, failure.hint)
    if external is not None:
        return Check("mlflow", "ok", f"runs are logged to {external.uri} (MLFLOW_TRACKING_URI)")
    status = tracking.server_status(home)
    if status is None or not status.running:
        return Check("mlflow", "ok", "the embedded tracking server starts when it is needed")
    return Check("mlflow", "ok", f"the embedded tracking server (MLflow {status.mlflow}) runs at {status.uri}")
