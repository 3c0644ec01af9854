"""uv environments: python_env.yaml, a conda.yaml of python and pip packages only, or no file at all."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from segserve.environments import condafile, interpreters, locked, pip, translate
from segserve.environments.base import (
    BuildOptions,
    Report,
    build_failed,
    inside,
    key_of,
    platform_facts,
    repository_root,
)
from segserve.environments.requirements import Requirements
from segserve.environments.walls import OPEN, Walls, check_interpreter
from segserve.errors import EnvironmentBuildFailed, InvalidParameters, InvalidProject, RepositoryUnreachable
from segserve.model import Environment, EnvironmentSpec
from segserve.project import Project

kind = "uv"

# conda puts these into every environment and executors count on them. pkg_resources, which mlflow 1.x and many of that
# age import, left setuptools with version 82, and its warning says to stay below 81:
# https://setuptools.pypa.io/en/latest/pkg_resources.html
SEEDS: Mapping[str, str] = {"pip": "pip", "setuptools": "setuptools<81", "wheel": "wheel"}

# MLflow gives a project without any environment an empty one with the current Python. An executor has to log its
# result, so that this client is the least that can be of use.
WITHOUT_FILE = ("mlflow-skinny",)


@dataclass(frozen=True, slots=True)
class Declared:
    """What a project's file asks for, in pip's words. `seeds` come first, in an installation of their own."""

    python: str
    seeds: tuple[str, ...]
    lines: tuple[str, ...]
    source: str
    warnings: tuple[str, ...] = ()
    seeds_by_us: bool = True  # the file says nothing about them: what cannot be had of them is left out


def detect(project: Project, options: BuildOptions) -> EnvironmentSpec | None:
    """The specification if uv can build what the project declares (or `--env uv` says that it has to), else None.

    Raises:
        InvalidProject: the file or its requirements are malformed or leave the repository.
        InvalidParameters: `--env uv` for packages that PyPI does not have; `--python` is no version.
    """
    if options.kind not in (None, kind):
        return None
    declared = _declared(project, forced=options.kind == kind)
    if declared is None:
        return None
    chosen = interpreters.plan(declared.python, source=declared.source, override=options.python)
    seeds, requirements = _read(declared, project, offline=options.offline)
    lines, notes = locked.usable(project, options, kind)
    seeds, requirements = _as_locked(seeds, requirements, lines)
    host = pip.host_settings()
    key = key_of(
        kind,
        {
            "platform": platform_facts(),
            "python": [chosen.expected, chosen.exact, [version for version, _ in chosen.local[:1]]],
            "seeds": seeds.identity(),
            "requirements": requirements.identity(),
            "host": host.identity(requirements.indexes),
        },
    )
    warnings = [*notes, *declared.warnings, *seeds.warnings, *requirements.warnings, *chosen.warnings]
    if options.python and declared.python and declared.python.lstrip("=") != options.python:
        warnings.append(f"Python {options.python} (--python) instead of '{declared.python}' of {declared.source}.")
    details = {
        "python": chosen.as_details(),
        "seeds": list(seeds.shown()),
        "requirements": list(requirements.shown()),
        "locked": list(lines),
        "revisions": {**seeds.revisions, **requirements.revisions},
    }
    return EnvironmentSpec(kind, declared.source, key, details, tuple(dict.fromkeys(warnings)))


def build(
    spec: EnvironmentSpec,
    project: Project,
    prefix: Path,
    report: Report,
    *,
    channel: interpreters.ChannelPython | None = None,
    walls: Walls = OPEN,
) -> Environment:
    """Make a virtual environment at `prefix` and install; `channel` brings a Python from a conda channel if need be.

    Raises:
        EnvironmentBuildFailed, DiskFull: with the deciding lines.
    """
    declared = _declared(project, forced=True)
    if declared is None:
        raise build_failed(f"The project declares nothing that uv could build ({spec.source}).", ())
    found = interpreters.provide(
        interpreters.Plan.of(spec.details["python"]), prefix.parent / "python", report, channel
    )
    report(f"Python {found.version}: {found.python}")
    seeds, requirements = _read(declared, project, revisions=spec.details["revisions"])
    seeds, requirements = _as_locked(seeds, requirements, spec.details.get("locked", ()))
    argv = [pip.uv(), "venv", "--no-project", "--python", str(found.python), str(prefix)]
    pip.call(argv, prefix.parent, pip.host_settings().environment(), report, "The environment cannot be created.")
    python = prefix / "bin" / "python"
    interpreter = python.resolve()
    walls = walls.showing(interpreter)
    scratch = prefix.parent / "scratch"
    empty = not (requirements.lines or requirements.local)
    try:
        pip.install(python, seeds, scratch, report, bytecode=empty, walls=walls)
    except (EnvironmentBuildFailed, RepositoryUnreachable):
        if not declared.seeds_by_us:
            raise
        _seed_from_bundle(python, report, walls)
    pip.install(python, requirements, scratch, report, walls=walls)
    check_interpreter(prefix, interpreter)
    chosen = interpreters.Plan.of(spec.details["python"])
    warnings = [warning for warning in spec.warnings if warning not in chosen.warnings]
    warnings += [found.warning] if found.warning else []
    return Environment(
        spec=replace(spec, warnings=tuple(dict.fromkeys(warnings))),
        location=str(prefix),
        path=(str(prefix / "bin"),),
        variables={"VIRTUAL_ENV": str(prefix)},
        packages=pip.freeze(python, walls),
    )


def solve(project: Project, options: BuildOptions) -> tuple[str, ...]:
    """What the project's files mean today: `name==version` lines, no lock looked at, nothing installed.

    Raises:
        InvalidParameters: uv does not build this project; a docker image is not solved.
        EnvironmentBuildFailed: there is no solution; with the deciding lines.
    """
    declared = _declared(project, forced=False)
    if declared is None:
        raise InvalidParameters(
            "A docker image cannot be solved anew without building it.",
            hint="Build it from its Dockerfile, and run the executor with --no-lock.",
        )
    chosen = interpreters.plan(declared.python, source=declared.source, override=options.python)
    _, requirements = _read(declared, project, offline=options.offline)
    return pip.compiled(requirements, chosen.expected, project.folder)


def health(environment: Environment) -> str | None:
    """Whether its interpreter is still there (it may link to one that was removed)."""
    prefix = Path(environment.location)
    if not (prefix / "pyvenv.cfg").is_file():
        return f"{prefix} is no virtual environment any more"
    if not os.access(prefix / "bin" / "python", os.X_OK):
        return f"the Python that {prefix} was made from is gone"
    return None


def _declared(project: Project, *, forced: bool) -> Declared | None:
    environment = project.environment
    path = project.folder / environment.file
    if not inside(path, repository_root(project.folder)):
        raise InvalidProject(f"The environment file '{environment.file}' lies outside of the repository.")
    if environment.kind == "python":
        return _from_python_env(condafile.load_python_env(path, environment.file), environment.file)
    if environment.kind == "conda":
        read = condafile.load(path, environment.file)
        return _from_conda(read, environment.file) if read.is_plain or forced else None
    if environment.kind == "none":
        note = f"The project declares no environment: it gets the current Python with {' '.join(WITHOUT_FILE)}."
        return Declared("", tuple(SEEDS.values()), WITHOUT_FILE, "", (note,))
    if forced:
        raise InvalidParameters(
            f"--env uv: {project.file.name} declares {environment.kind}, which names no Python packages.",
            hint="Leave --env away.",
        )
    return None


def _from_python_env(read: condafile.PythonEnv, source: str) -> Declared:
    named = {_name(line) for line in read.build_dependencies}
    ours = tuple(line for name, line in SEEDS.items() if name not in named)
    return Declared(
        read.python,
        (*ours, *read.build_dependencies),
        read.dependencies,
        source,
        read.warnings,
        seeds_by_us=not read.build_dependencies,
    )


def _from_conda(read: condafile.CondaFile, source: str) -> Declared:
    lines, warnings = translate.to_pypi(read.specs)
    asked = {name: line for name, line in translate.seeds(read.specs).items() if line != name}
    return Declared(
        read.python or "",
        tuple({**SEEDS, **asked}.values()),
        (*lines, *read.pip),
        source,
        (*read.warnings, *warnings),
        seeds_by_us=not asked,
    )


def _read(
    declared: Declared, project: Project, *, offline: bool = False, revisions: Mapping[str, str] | None = None
) -> tuple[Requirements, Requirements]:
    root = repository_root(project.folder)
    # conda reads the pip part from where the file lies, MLflow a python_env from the project's folder.
    folder = project.folder
    if project.environment.kind == "conda":
        folder = (project.folder / project.environment.file).parent

    def closure(lines: Sequence[str]) -> Requirements:
        source = declared.source or project.file.name
        return pip.read(lines, folder, root, source=source, offline=offline, revisions=revisions)

    return closure(declared.seeds), closure(declared.lines)


def _as_locked(
    seeds: Requirements, requirements: Requirements, lines: Sequence[str]
) -> tuple[Requirements, Requirements]:
    """What a lock says instead of what the file asks for; seeds that it does not name stay."""
    if not lines:
        return seeds, requirements
    first = [line for line in lines if locked.name_of(line) in SEEDS]
    rest = [line for line in lines if locked.name_of(line) not in SEEDS]
    named = {locked.name_of(line) for line in first}
    others = [line for line in seeds.lines if _name(line) not in named]
    return replace(seeds, lines=(*first, *others)), locked.put_in_place(requirements, rest)


def _seed_from_bundle(python: Path, report: Report, walls: Walls) -> None:
    """pip (and setuptools where Python brings it) from the wheels that lie in Python's ensurepip: needs no index."""
    code = "import ensurepip, os; print(os.path.join(os.path.dirname(ensurepip.__file__), '_bundled'))"
    environment = pip.host_settings().environment()
    asked = walls.run([python, "-I", "-c", code], folder=python.parent, environment=environment, check=False)
    bundle = Path(asked.stdout.strip())
    names = [name for name in SEEDS if any(bundle.glob(f"{name}-*.whl"))] if asked.code == 0 else []
    if not names:
        report("The environment has no pip: neither an index nor Python itself brings one.")
        return
    report(f"No index has pip: {', '.join(names)} come from Python itself.")
    variables = {**environment, "UV_FIND_LINKS": str(bundle)}
    argv = [pip.uv(), "pip", "install", "--no-index", "--python", str(python), *names]
    pip.call(argv, python.parent, variables, report, "pip cannot be installed.", walls=walls)


def _name(line: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", line)
    return re.sub(r"[-_.]+", "-", found.group()).lower() if found else ""
