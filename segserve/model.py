"""Frozen domain types, their JSON, and the table of job states."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from segserve.refs import Pin


class JobState(StrEnum):
    """Where a job is. The table of moves is `MOVES`."""

    QUEUED = "queued"
    PREPARING = "preparing"  # clone, environment, staging
    WAITING = "waiting"  # for a slot
    RUNNING = "running"
    COLLECTING = "collecting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Nothing follows."""
        return not MOVES[self]


MOVES: Mapping[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.PREPARING, JobState.FAILED, JobState.CANCELLED}),
    # Back to the queue goes what was lost on the way, or what its driver hands over.
    JobState.PREPARING: frozenset(
        {JobState.WAITING, JobState.RUNNING, JobState.QUEUED, JobState.FAILED, JobState.CANCELLED}
    ),
    JobState.WAITING: frozenset({JobState.RUNNING, JobState.QUEUED, JobState.FAILED, JobState.CANCELLED}),
    JobState.RUNNING: frozenset({JobState.COLLECTING, JobState.QUEUED, JobState.FAILED, JobState.CANCELLED}),
    JobState.COLLECTING: frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class EnvironmentSpec:
    """What an environment is built from. `key` is a content hash of everything that the build reads.

    `kind` is `uv`, `conda`, `docker` or `local`; `source` names the file (or image) relative to the project;
    `details` is what the builder worked out (requirements, python version, channels …), JSON only.
    """

    kind: str
    source: str
    key: str
    details: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Environment:
    """A built environment: `location` is its prefix (or docker image), `variables` and `arguments` what a launch needs.

    `variables` are set for the executor; PATH is prefixed with `path`. `arguments` are docker arguments for MLflow.
    """

    spec: EnvironmentSpec
    location: str
    path: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    packages: tuple[str, ...] = ()  # name==version, sorted


@dataclass(frozen=True, slots=True)
class Resources:
    """What an attempt may use. `gpus` is a count; `timeout_s` 0 means no limit."""

    gpus: int = 0
    cpus: float = 0.0
    memory_gb: float = 0.0
    timeout_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Job:
    """One request, as it was accepted. Never changes."""

    id: str
    pin: Pin
    entry: str
    parameters: Mapping[str, str]
    images_parameter: str | None  # which parameter gets the staged folder; None when it takes no images
    environment: EnvironmentSpec
    resources: Resources
    created: str  # ISO 8601, UTC
    executor: str = ""  # short name for people and file names
    tags: Mapping[str, str] = field(default_factory=dict)  # dirty, requested revision …
    output: str = ""  # result folder that it will have
    output_exact: bool = False  # it was asked for by name
    attached: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)  # overlays, open, … as collected later


COOKIE = "SEGSERVE_ATTEMPT"  # in the environment of everything that an attempt starts, with the value `plan.cookie`
CONTAINER_LABEL = "segserve.attempt"  # the same on its containers
INPUTS_VARIABLE = "SEGSERVE_INPUTS"  # tells an executor where inputs.json is
PROGRESS_VARIABLE = "SEGSERVE_PROGRESS"  # and where to write how many images are done
GATE_PORTS = "SEGSERVE_GATE"  # in a container without network: the ports on which it reaches what its supervisor serves
GO = b"go\n"  # what a supervisor that was started early waits for


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What of this machine an attempt sees when it is shut in, everything at its own path."""

    read_only: tuple[str, ...]
    writable: tuple[str, ...]
    devices: tuple[str, ...] = ()
    home: str = ""  # its $HOME
    network: bool = False  # whether it reaches the outside, through a proxy of its supervisor
    allow: tuple[str, ...] = ()  # hosts and networks that it may reach then although they are not public


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """All that a supervisor needs (attempt.json). Secrets are not in here: they come by its environment."""

    job_id: str
    number: int
    fence: int
    attached: bool
    project: str  # absolute folder with the MLProject, inside the attempt's checkout
    entry: str
    parameters: Mapping[str, str]
    tracking_uri: str  # of the server; the executor sees the gate to it
    experiment_id: str
    run_id: str
    artifact_uri: str = ""  # of the run
    path: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    docker_args: Mapping[str, Any] | None = None  # None: no docker
    gpus: tuple[str, ...] = ()  # UUIDs
    timeout_s: float = 0.0
    memory_gb: float = 0.0  # of all its processes together; 0 means no limit
    processes: int = 0
    control_groups: bool = True  # whether the kernel is asked to heed these two
    output_gb: float = 0.0  # of what it adds to `written`, and uploads; 0 means no limit
    written: tuple[str, ...] = ()  # files and folders that it may write
    sandbox: Sandbox | None = None

    @property
    def cookie(self) -> str:
        """What marks the processes of this attempt: `<job>.<number>.<fence>`."""
        return f"{self.job_id}.{self.number}.{self.fence}"


class Ending(StrEnum):
    """How an attempt ended, as its supervisor saw it."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed-out"
    EXCEEDED = "exceeded"  # more memory, processes or output than it may have
    CANCELLED = "cancelled"  # SIGTERM / `segserve cancel`
    ORPHANED = "orphaned"  # the parent of an attached attempt went away
    LOST = "lost"  # written by the pipeline for a supervisor that is proved dead


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended (outcome.json)."""

    fence: int
    ending: Ending
    exit_code: int | None = None  # of the executor's shell; negative = signal, None = not known
    message: str = ""
    started: float = 0.0  # seconds since the epoch; of the executor, not of the supervisor
    ended: float = 0.0
    max_rss_bytes: int = 0
    cpu_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an executor says that it is: `done` of `total` images."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a job; the only thing that changes, one fenced row at a time."""

    job_id: str
    number: int
    fence: int
    host: str
    slot: str  # GPU UUIDs, comma-separated, or ""
    state: JobState
    error: str
    attached: bool


@dataclass(frozen=True, slots=True)
class StagedImage:
    """One staged PNG and where it came from. `t`, `z`, `c`, `series` are 0-based, None when the axis is absent.

    `shape` is (rows, columns). `sizes` are the lengths of those of the axes T, Z, C that the source has, `modified` is
    when it was last written (nanoseconds since the epoch, 0 = not known). `pixel_size_um` is (x, y) micrometres per
    pixel or None. `scale`: value of one staged grey level in source units (1.0 when lossless), `offset` the source
    value of grey level 0.
    """

    name: str
    source: str
    shape: tuple[int, int]
    channels: int
    dtype: str
    sha256: str
    series: int | None = None
    t: int | None = None
    z: int | str | None = None
    c: int | None = None
    channel_name: str = ""
    pixel_size_um: tuple[float, float] | None = None
    scale: float = 1.0
    offset: float = 0.0
    source_dtype: str = ""
    orientation: int = 1  # EXIF orientation of the source; the staged image is upright
    sizes: Mapping[str, int] = field(default_factory=dict)
    modified: int = 0


def to_json(value: Any) -> str:
    """A dataclass instance as JSON."""
    return json.dumps(asdict(value), indent=2, ensure_ascii=False, default=str)


def job_from_json(text: str) -> Job:
    """Read back what `to_json(job)` wrote."""
    data = json.loads(text)
    data["pin"] = Pin(**data["pin"])
    data["environment"] = EnvironmentSpec(**{**data["environment"], "warnings": tuple(data["environment"]["warnings"])})
    data["resources"] = Resources(**data["resources"])
    return Job(**data)


def plan_from_json(text: str) -> LaunchPlan:
    """Read back what `to_json(plan)` wrote."""
    data = json.loads(text)
    if data["sandbox"] is not None:
        data["sandbox"] = Sandbox(**{name: _frozen(value) for name, value in data["sandbox"].items()})
    return LaunchPlan(**{name: _frozen(value) for name, value in data.items()})


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def outcome_from_json(text: str) -> Outcome:
    """Read back what `to_json(outcome)` wrote."""
    data = json.loads(text)
    return Outcome(**{**data, "ending": Ending(data["ending"])})


def write_atomically(path: Path, text: str, *, private: bool = False) -> None:
    """Write beside, fsync, rename: a reader sees all of it or nothing, also after a power cut.

    `private`: with mode 600 from the first byte on.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    mode = 0o600 if private else 0o666

    def opened(name: str, flags: int) -> int:
        return os.open(name, flags, mode)

    with open(temporary, "w", encoding="utf-8", opener=opened) as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
