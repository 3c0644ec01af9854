"""Environments: which kind a project needs, built once per content key, reused by every later job.

1. `detect` reads the project's files and gives a specification; its `key` hashes everything that a build reads.
2. `prepare` finds the built environment by its marker, or takes the lock, looks again, and builds into a new folder.
3. The marker is written last and at once. A folder without one is a dead build; the next holder of the lock removes it.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from segserve import redact, store
from segserve.environments import conda, docker, local, pip, uv
from segserve.environments.base import FREE_SPACE, Builder, BuildOptions, Report, build_failed
from segserve.environments.indexes import host_settings
from segserve.environments.locked import declaration, with_hashes
from segserve.environments.uv import SEEDS
from segserve.environments.walls import OPEN, SCRATCH, Walls
from segserve.errors import (
    DiskFull,
    InvalidParameters,
    InvalidProject,
    NoSlot,
    NotFound,
    SegserveError,
    UsageError,
)
from segserve.layout import EnvironmentDir, Home
from segserve.model import Environment, EnvironmentSpec, write_atomically
from segserve.project import Project

__all__ = [
    "BUILDERS",
    "SEEDS",
    "BuildOptions",
    "BuiltEnvironment",
    "built",
    "collect_garbage",
    "declaration",
    "detect",
    "is_built",
    "prepare",
    "remove",
    "solve",
    "with_hashes",
]

# The order is that of detection; the first that feels responsible is taken.
BUILDERS: Mapping[str, Builder] = {"local": local, "docker": docker, "uv": uv, "conda": conda}

_MAX_CONFLICTS = 5


@dataclass(frozen=True, slots=True)
class BuiltEnvironment:
    """One entry of `segserve env list`. Times are ISO 8601 in UTC; `size_bytes` counts hard-linked files once."""

    key: str
    environment: Environment
    python: str
    created: str
    last_used: str
    seconds: float
    size_bytes: int


def detect(project: Project, options: BuildOptions) -> EnvironmentSpec:
    """What environment the project needs. Reads its files; asks no index, only git remotes that requirements name.

    Raises:
        InvalidParameters: `options` ask for a kind that does not exist or cannot build this project.
        InvalidProject: the project's environment file is malformed or dangerous.
    """
    if options.kind is not None and options.kind not in BUILDERS:
        raise InvalidParameters(f"There is no kind of environment '{options.kind}'.", hint=f"{', '.join(BUILDERS)}.")
    for builder in BUILDERS.values():
        spec = builder.detect(project, options)
        if spec is not None:
            return spec
    raise InvalidProject(
        f"{project.file.name} declares an environment of the kind '{project.environment.kind}', which nothing builds.",
        hint="Try --env uv or --env local.",
    )


def solve(project: Project, options: BuildOptions) -> tuple[str, ...]:
    """What the project's files mean today, one line per package: no lock is looked at, nothing is installed.

    Raises:
        InvalidParameters: the environment is a docker image.
        EnvironmentBuildFailed: there is no solution; with the deciding lines.
    """
    spec = detect(project, replace(options, use_lock=False, lock_file=None))
    return conda.solve(project, options) if spec.kind == conda.kind else uv.solve(project, options)


def prepare(
    home: Home,
    project: Project,
    spec: EnvironmentSpec,
    *,
    options: BuildOptions | None = None,
    walls: Callable[[Path, Report], Walls] = lambda _build, _report: OPEN,
    report: Report = lambda _: None,
    phase: Report = lambda _: None,
) -> Environment:
    """The built environment of `spec`: found (a few file-system calls), or built under its lock.

    `walls` makes those behind which the code of packages runs, of the folder in which a build may write.
    `report` gets every line of a build's output, `phase` says what is going on in one sentence. The warnings of the
    returned environment's spec include what only the build could know.

    Raises:
        EnvironmentBuildFailed: with the deciding lines and the log's path; nothing of it is left but the log.
        DiskFull: there was no space left.
    """
    builder = BUILDERS[spec.kind]
    folder = home.environment(spec.key)
    if builder is local:
        return local.build(spec, project, folder.path, report)
    found = _find(folder, spec)
    if found is not None:
        return found
    with store.locked(folder.lock, on_wait=lambda: phase("Another job builds this environment: waiting for it")):
        found = _find(folder, spec, phase)
        if found is not None:
            return found
        phase(f"Building the environment ({spec.kind}{': ' if spec.source else ''}{spec.source})")
        return _build(home, project, spec, options or BuildOptions(), walls, report)


def is_built(home: Home, spec: EnvironmentSpec) -> bool:
    """Whether `prepare` would find it."""
    return spec.kind == local.kind or _find(home.environment(spec.key), spec, touch=False) is not None


def built(home: Home) -> list[BuiltEnvironment]:
    """All built environments, newest use first."""
    entries = (_entry(folder) for folder in _folders(home))
    return sorted((entry for entry in entries if entry), key=lambda entry: entry.last_used, reverse=True)


def remove(home: Home, key: str, *, keep: Collection[str] = ()) -> str:
    """Remove one environment, given its key or the beginning of it; returns the full key.

    Raises:
        NotFound: no such environment.
        UsageError: several keys begin so, or it is in `keep` (open jobs use it).
        NoSlot: somebody builds it just now.
    """
    keys = [folder.path.name for folder in _folders(home) if key and folder.path.name.startswith(key)]
    if not keys:
        raise NotFound(f"There is no environment '{key}'.", hint="`segserve env list` shows all.")
    if len(keys) > 1:
        raise UsageError(f"Several environments begin with '{key}'.", hint=f"{', '.join(sorted(keys))}.")
    if keys[0] in keep:
        raise UsageError(f"An open job uses the environment {keys[0]}.", hint="`segserve ps` shows it.")
    folder = home.environment(keys[0])
    with store.locked(folder.lock, blocking=False):
        _clear(folder)
    return keys[0]


def collect_garbage(home: Home, keep: Collection[str], *, older_than_days: float = 30.0) -> list[str]:
    """Remove what nobody used for so long and is not in `keep`, and what dead builds left; returns their keys.

    An environment that somebody builds (its lock is held) is left alone.
    """
    removed = []
    for folder in list(_folders(home)):
        try:
            with store.locked(folder.lock, blocking=False):
                dead = not folder.marker.exists()
                old = not dead and store.age(folder.marker) >= older_than_days * 86400
                if dead or (old and folder.path.name not in keep):
                    _clear(folder)
                    removed.append(folder.path.name)
                else:
                    _clear(folder, but=_location(folder))
        except NoSlot:
            continue
    return removed


# ---------------------------------------------------------------------------------------------------------- finding


def _find(
    folder: EnvironmentDir, spec: EnvironmentSpec, phase: Report = lambda _: None, *, touch: bool = True
) -> Environment | None:
    record = _record(folder)
    if record is None:
        return None
    environment = _environment(record, spec)
    problem = BUILDERS[spec.kind].health(environment)
    if problem:
        phase(f"The environment {spec.key} is broken and is built again: {problem}")
        return None
    if touch:
        os.utime(folder.marker)  # the marker's time is that of the last use
    return environment


def _record(folder: EnvironmentDir) -> dict[str, object] | None:
    try:
        record = json.loads(folder.marker.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return record if isinstance(record, dict) and {"environment", "notes"} <= record.keys() else None


def _environment(record: Mapping[str, object], spec: EnvironmentSpec | None = None) -> Environment:
    data = json.loads(json.dumps(record["environment"]))
    data["spec"]["warnings"] = tuple(data["spec"]["warnings"])
    stored = EnvironmentSpec(**data["spec"])
    notes = [str(note) for note in json.loads(json.dumps(record["notes"]))]
    if spec is not None:  # another repository may have the same content under another name
        stored = replace(spec, warnings=tuple(dict.fromkeys((*spec.warnings, *notes))))
    return Environment(**{**data, "spec": stored, "path": tuple(data["path"]), "packages": tuple(data["packages"])})


def _folders(home: Home) -> Iterator[EnvironmentDir]:
    if home.environments.is_dir():
        for path in sorted(home.environments.iterdir()):
            if path.is_dir():
                yield EnvironmentDir(path)


def _entry(folder: EnvironmentDir) -> BuiltEnvironment | None:
    record = _record(folder)
    if record is None:
        return None
    used = datetime.fromtimestamp(folder.marker.stat().st_mtime, UTC)
    return BuiltEnvironment(
        key=folder.path.name,
        environment=_environment(record),
        python=str(record.get("python", "")),
        created=str(record.get("created", "")),
        last_used=used.isoformat(timespec="seconds"),
        seconds=float(str(record.get("seconds", 0))),
        size_bytes=int(str(record.get("size_bytes", 0))),
    )


# --------------------------------------------------------------------------------------------------------- building


def _build(
    home: Home,
    project: Project,
    spec: EnvironmentSpec,
    options: BuildOptions,
    walls: Callable[[Path, Report], Walls],
    report: Report,
) -> Environment:
    folder = home.environment(spec.key)
    log = home.environment_log(spec.key)
    began = time.monotonic()
    with _cleared_unless_marked(folder, log) as build, _logging(log, report) as tell:
        around = walls(build, tell)
        environment = _run_builder(spec, project, build / "prefix", options, tell, around)
        python = _verified(environment, tell, around)
        environment = _with_conflicts(environment, tell, around)
        shutil.rmtree(build / SCRATCH, ignore_errors=True)
        notes = [warning for warning in environment.spec.warnings if warning not in spec.warnings]
        record = {
            "environment": asdict(environment),
            "notes": notes,
            "python": python,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - began, 2),
            "size_bytes": _size(build),
        }
        write_atomically(folder.marker, json.dumps(record, indent=2, ensure_ascii=False))
        tell(f"Built in {record['seconds']} s: {len(environment.packages)} packages")
    return environment


def _run_builder(
    spec: EnvironmentSpec, project: Project, prefix: Path, options: BuildOptions, report: Report, walls: Walls
) -> Environment:
    if spec.kind == uv.kind:
        # uv and conda do not know each other; the third way to an interpreter is handed over here.
        def channel(version: str, folder: Path, tell: Report) -> Path:
            return conda.python_from_channel(version, folder, options, tell, walls)

        return uv.build(spec, project, prefix, report, channel=channel, walls=walls)
    if spec.kind == conda.kind:
        return conda.build(spec, project, prefix, report, walls=walls)
    return BUILDERS[spec.kind].build(spec, project, prefix, report)


@contextmanager
def _cleared_unless_marked(folder: EnvironmentDir, log: Path) -> Iterator[Path]:
    """A new private folder for one build. Whatever happens: without a marker at the end, nothing stays."""
    _clear(folder)
    build = folder.path / secrets.token_hex(4)
    try:
        build.mkdir(mode=0o700, parents=True)
        yield build
    except SegserveError as error:
        error.log = error.log or log
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFull("There is no space left to build the environment.", hint=FREE_SPACE, log=log) from None
    finally:
        if not folder.marker.exists():
            _clear(folder)


@contextmanager
def _logging(log: Path, report: Report) -> Iterator[Callable[[str], None]]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8", buffering=1) as stream:

        def tell(line: str) -> None:
            text = redact.text(line)
            stream.write(f"{text}\n")
            report(text)

        try:
            yield tell
        except SegserveError as error:
            stream.write(f"{error.message}\n{error.quote}\n")
            raise


def _verified(environment: Environment, report: Report, walls: Walls) -> str:
    """The version of its Python, found by running it; '' for one without Python. Not cheap, so only after a build."""
    python = Path(environment.location) / "bin" / "python"
    if not python.exists():
        return ""
    code = "import sys, encodings, zlib; print(sys.prefix); print('.'.join(str(n) for n in sys.version_info[:3]))"
    variables = host_settings().environment()
    argv = [str(python), "-I", "-c", code]
    done = walls.run(argv, folder=python.parent, environment=variables, check=False, timeout=120)
    lines = done.stdout.splitlines()
    if done.code != 0 or len(lines) != 2 or Path(lines[0]).resolve() != Path(environment.location).resolve():
        report(done.stderr)
        raise build_failed("The Python of the new environment does not run.", [*lines, *done.stderr.splitlines()])
    return lines[1]


def _with_conflicts(environment: Environment, report: Report, walls: Walls) -> Environment:
    python = Path(environment.location) / "bin" / "python"
    conflicts = pip.check(python, walls) if python.exists() else ()
    for conflict in conflicts:
        report(conflict)
    notes = [f"Packages do not fit together: {conflict}" for conflict in conflicts[:_MAX_CONFLICTS]]
    if not notes:
        return environment
    return replace(environment, spec=replace(environment.spec, warnings=(*environment.spec.warnings, *notes)))


def _location(folder: EnvironmentDir) -> Path | None:
    record = _record(folder)
    return None if record is None else Path(_environment(record).location)


def _clear(folder: EnvironmentDir, *, but: Path | None = None) -> None:
    """Remove an environment (`but`: everything in it but the build that has this prefix), its marker first."""
    if not folder.path.is_dir():
        return
    if but is None:
        folder.marker.unlink(missing_ok=True)
    for path in folder.path.iterdir():
        if but is None or (path.is_dir() and not but.is_relative_to(path)):
            shutil.rmtree(path, ignore_errors=True)
    if but is None:
        shutil.rmtree(folder.path, ignore_errors=True)


def _size(folder: Path) -> int:
    sizes: dict[tuple[int, int], int] = {}
    for root, _, names in os.walk(folder):
        for name in names:
            status = os.lstat(Path(root) / name)
            sizes[status.st_dev, status.st_ino] = status.st_size
    return sum(sizes.values())
