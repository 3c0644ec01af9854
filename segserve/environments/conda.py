"""`conda_env`: solved and installed in process by py-rattler (`solver.py`), so that the host needs no conda."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from segserve.environments import channels as sources
from segserve.environments import condafile, locked, pip, solver
from segserve.environments.base import BuildOptions, Report, inside, key_of, repository_root
from segserve.environments.condafile import CondaFile
from segserve.environments.walls import OPEN, Walls, check_interpreter
from segserve.errors import EnvironmentBuildFailed, InvalidParameters, InvalidProject
from segserve.model import Environment, EnvironmentSpec
from segserve.project import Project

if TYPE_CHECKING:
    from rattler import RepoDataRecord

kind = "conda"


def detect(project: Project, options: BuildOptions) -> EnvironmentSpec | None:
    """The spec of a project whose `conda_env` needs more of conda than Python (or any conda_env with `--env conda`).

    Raises:
        InvalidProject: the file is malformed, or a requirement in it is.
        InvalidParameters: `--env conda`, and the project has no conda_env.
    """
    if options.kind not in (None, kind):
        return None
    declared = project.environment
    if declared.kind != kind:
        if options.kind == kind:
            raise InvalidParameters(
                f"{project.file.name} has no conda_env, so there is nothing for `--env conda` to solve.",
                hint="Leave --env away.",
            )
        return None
    file = _load(project)
    if file.is_plain and options.kind != kind:
        return None
    specs, warnings = _specs(file, options)
    lines, notes = locked.usable(project, options, kind) if not options.python else ((), ())
    exact, pip_lines = locked.conda_specs(lines)
    specs = exact or specs
    chosen = sources.choose(file, options)
    solver.check(specs, declared.file)
    requirements = _requirements(file, project, pip_lines, offline=options.offline)
    host = pip.host_settings()
    details = {
        "specs": list(specs),
        "channels": list(chosen.shown),
        "pip": list(requirements.shown()),
        "revisions": dict(requirements.revisions),
        "platform": sources.platform(),
        "virtual_packages": solver.virtual_packages(),
        **({"locked": list(pip_lines)} if exact else {}),
    }
    parts = {
        **details,
        "pip": requirements.identity(),
        "variables": dict(file.variables),
        "indexes": host.identity(requirements.indexes) if file.pip else {},
    }
    warnings = (*file.warnings, *notes, *warnings, *chosen.warnings, *requirements.warnings)
    return EnvironmentSpec(kind, declared.file, key_of(kind, parts), details, warnings)


def build(spec: EnvironmentSpec, project: Project, prefix: Path, report: Report, *, walls: Walls = OPEN) -> Environment:
    """Solve, install into `prefix`, then the `pip:` part by uv, then compile bytecode. A lock leaves nothing to choose.

    Raises:
        EnvironmentBuildFailed: no solution (with the solver's words), or a package cannot be installed.
        RepositoryUnreachable: a channel does not answer.
        DiskFull: there was no space left.
    """
    details = spec.details
    file = _load(project)
    records, warning = _solved(details["specs"], details["channels"], report, pip=True)
    solver.install(records, prefix, report, walls)
    packages = [_shown(record) for record in records]
    python = prefix / "bin" / "python"
    if any(record.name.normalized == "python" for record in records):
        solver.compile_bytecode(python, report, walls)
        if file.pip:
            requirements = _requirements(file, project, details.get("locked", ()), revisions=details["revisions"])
            before = set(pip.freeze(python, walls))
            pip.install(python, requirements, prefix.parent / "pip", report, walls=walls)
            packages += [package for package in pip.freeze(python, walls) if package not in before]
        check_interpreter(prefix)
    path, variables = solver.activation(prefix, report, walls)
    if warning:
        spec = replace(spec, warnings=(*spec.warnings, warning))
    return Environment(
        spec=spec,
        location=str(prefix),
        path=path,
        variables={**variables, **file.variables},
        packages=tuple(sorted(packages, key=str.lower)),
    )


def solve(project: Project, options: BuildOptions) -> tuple[str, ...]:
    """What the project's file means today: lines as `packages` of a build has them; no lock, nothing installed.

    Raises:
        EnvironmentBuildFailed: there is no solution; with the solver's words.
        RepositoryUnreachable: a channel does not answer.
    """
    file = _load(project)
    specs, _ = _specs(file, options)
    records, _ = _solved(specs, sources.choose(file, options).shown, lambda _: None, pip=True)
    shown = [_shown(record) for record in records]
    python = next((str(record.version) for record in records if record.name.normalized == "python"), "")
    if not (file.pip and python):
        return tuple(shown)
    lines = pip.compiled(_requirements(file, project, offline=options.offline), python, project.folder)
    brought = {record.name.normalized for record in records}
    return (*shown, *(line for line in lines if locked.name_of(line) not in brought))


def health(environment: Environment) -> str | None:
    """What is missing of a built environment: None, or a sentence."""
    prefix = Path(environment.location)
    if not (prefix / "conda-meta").is_dir():
        return f"{prefix} is gone"
    wants_python = any(package.startswith("python==") for package in environment.packages)
    if wants_python and not os.access(prefix / "bin" / "python", os.X_OK):
        return f"{prefix / 'bin' / 'python'} is gone"
    return None


def python_from_channel(version: str, prefix: Path, options: BuildOptions, report: Report, walls: Walls = OPEN) -> Path:
    """A Python `version` (X.Y or X.Y.Z) from a conda channel, installed into the empty `prefix`; its interpreter.

    The third way for builders that want an interpreter and nothing else of conda.

    Raises:
        EnvironmentBuildFailed: the channels have no such Python.
        RepositoryUnreachable: a channel does not answer.
    """
    if not re.fullmatch(r"\d+\.\d+(\.\d+)?", version):
        raise EnvironmentBuildFailed(f"'{version}' is no version that can be asked of a channel.")
    chosen = sources.choose(None, options)
    records = solver.solve((f"python={version}",), chosen.shown, report, pip=False)
    solver.install(records, prefix, report, walls)
    solver.compile_bytecode(prefix / "bin" / "python", report, walls)
    return prefix / "bin" / "python"


def _solved(
    specs: Sequence[str], channels: Sequence[str], report: Report, *, pip: bool
) -> tuple[list[RepoDataRecord], str]:
    """The records of a solution, and a warning when the patch release of Python is not the one that was asked for."""
    report(f"Solving {', '.join(specs)} with {', '.join(channels)}")
    try:
        return solver.solve(specs, channels, report, pip=pip), ""
    except EnvironmentBuildFailed:
        relaxed = [_without_patch(text) for text in specs]
        if relaxed == list(specs):
            raise
        try:
            records = solver.solve(relaxed, channels, report, pip=pip)
        except EnvironmentBuildFailed:
            records = []
        if not records:
            raise
    wanted = next(text for text, other in zip(specs, relaxed, strict=True) if text != other)
    got = next(str(record.version) for record in records if record.name.normalized == "python")
    warning = f"The channels have no {wanted} that fits: Python {got} is used instead."
    report(warning)
    return records, warning


def _without_patch(text: str) -> str:
    spec = condafile.parse_spec(text)
    exact = re.fullmatch(r"={1,2}(\d+\.\d+)\.\d+(\.\*)?", spec.version)
    return f"python={exact[1]}" if spec.name == "python" and exact else text


def _shown(record: RepoDataRecord) -> str:
    """`name==version=build @ url#sha256=…`: enough to install just this again."""
    digest = f"#sha256={record.sha256.hex()}" if record.sha256 else ""
    return f"{record.name.normalized}=={record.version}={record.build} @ {sources.canonical(record.url)}{digest}"


def _load(project: Project) -> CondaFile:
    path = project.folder / project.environment.file
    if not inside(path, repository_root(project.folder)):
        raise InvalidProject(f"conda_env '{project.environment.file}' lies outside of the repository.")
    return condafile.load(path, project.environment.file)


def _specs(file: CondaFile, options: BuildOptions) -> tuple[tuple[str, ...], tuple[str, ...]]:
    specs = list(file.dependencies)
    warnings = []
    if any(sources.without_tokens(text) != text for text in specs):
        raise InvalidProject(
            "A conda requirement of this executor carries a password or token.",
            hint="The author has to revoke it and name the channel under channels:, without it.",
        )
    if options.python:
        specs = [text for text in specs if condafile.parse_spec(text).name != "python"] + [f"python={options.python}"]
    elif file.pip and file.python is None:
        specs.append("python")
        warnings.append("The file has a pip part but names no python: the newest that fits is taken.")
    return tuple(specs), tuple(warnings)


def _requirements(
    file: CondaFile,
    project: Project,
    exact: Sequence[str] = (),
    *,
    offline: bool = False,
    revisions: Mapping[str, str] | None = None,
) -> pip.Requirements:
    """The pip part of the file; `exact` are the lines of a lock that stand in its place."""
    root = repository_root(project.folder)
    source = project.environment.file
    folder = (project.folder / source).parent
    found = pip.read(file.pip, folder, root, source=source, offline=offline, revisions=revisions)
    return locked.put_in_place(found, exact) if exact else found
