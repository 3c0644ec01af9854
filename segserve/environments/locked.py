"""`segserve.lock` and environments: what the files declare, as one hash; the lines that a lock puts in their place."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from packaging.utils import canonicalize_name

from segserve import kit, lock, process, redact
from segserve.environments import condafile, pip
from segserve.environments.base import BuildOptions, hash_file, hash_text, inside, repository_root
from segserve.environments.closure import read
from segserve.environments.requirements import Requirements
from segserve.errors import EnvironmentBuildFailed, UsageError
from segserve.model import Environment
from segserve.project import Project

_KIT = canonicalize_name(kit.NAME)
_CONDA = re.compile(
    r"(?P<name>[A-Za-z0-9_.-]+)==(?P<version>[A-Za-z0-9_.!+-]+)=(?P<build>[A-Za-z0-9_.+-]+) @ [^\s#]+"
    r"(?:#sha256=(?P<sha256>[0-9a-f]{64}))?"
)


def declaration(project: Project) -> str:
    """SHA-256 over everything that the environment's files declare: a lock with another one is stale.

    Requirements files that they name count, the content of local packages does not. Asks nobody.

    Raises:
        InvalidProject: a file is malformed.
    """
    environment = project.environment
    if environment.kind == "docker":
        return hash_text(json.dumps(environment.docker, sort_keys=True, default=str))
    if not environment.file:
        return hash_text("")
    found = _requirements(project)
    parts = [hash_file(project.folder / environment.file), *found.lines, *found.constraints]
    return hash_text("\n".join(map(redact.text, parts)))


def _requirements(project: Project) -> Requirements:
    environment, root = project.environment, repository_root(project.folder)
    path = project.folder / environment.file
    if not environment.file or not inside(path, root):
        return Requirements()
    if environment.kind == "conda":
        lines, folder = condafile.load(path, environment.file).pip, path.parent
    else:
        lines, folder = condafile.load_python_env(path, environment.file).dependencies, project.folder
    return read(lines, folder, root, source=environment.file, offline=True)


def usable(project: Project, options: BuildOptions, kind: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(lines, warnings): the packages that a lock has for this platform, and why there are none although it is there.

    `options.lock_file` is taken as it is; the lock beside the MLProject only if it belongs to what the files say now.
    Each kind of environment has lines of its own: those of another `kind` are of no use.

    Raises:
        UsageError: `options.lock_file` cannot be read.
    """
    if options.lock_file is not None:
        return _here(lock.read(options.lock_file), kind)
    file = project.folder / lock.NAME
    if not options.use_lock or not file.is_file() or not inside(file, repository_root(project.folder)):
        return (), ()
    try:
        found = lock.read(file)
    except UsageError as problem:
        return (), (f"{lock.NAME} is ignored: {problem.message}",)
    if found.declaration != declaration(project):
        return (), (f"{lock.NAME} is stale and ignored: {project.environment.file} has changed since.",)
    return _here(found, kind)


def _here(found: lock.Lock, kind: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if found.kind != kind:
        return (), (f"{lock.NAME} is ignored: it is of an environment by {found.kind}, and this one is by {kind}.",)
    if not found.here():
        return (), (f"{lock.NAME} is ignored: it has no packages for {lock.platform_name()}.",)
    return found.here(), ()


def conda_specs(lines: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(specs, rest): the lines `name==version=build @ url#sha256=…` as requirements that one package file meets."""
    specs, rest = [], []
    for line in lines:
        found = _CONDA.fullmatch(line)
        if found is None:
            rest.append(line)
            continue
        digest = f", sha256={found['sha256']}" if found["sha256"] else ""
        specs.append(f"{found['name']}[version='=={found['version']}', build={found['build']}{digest}]")
    return tuple(specs), tuple(rest)


def put_in_place(requirements: Requirements, lines: Sequence[str]) -> Requirements:
    """Exactly the locked lines, nothing else; local packages still come from the checkout, the kit from segserve."""
    own = {_own_name(local.path) for local in requirements.local}
    ours = _takes_our_kit(requirements)
    kept, warnings = [], list(requirements.warnings)
    for line in lines:
        if name_of(line) in own:
            continue
        if ours and name_of(line) == _KIT:
            if line != f"{_KIT}=={kit.version()}":
                warnings.append(f"The kit is that of this segserve, {kit.version()}; locked was {line}.")
            line = kit.NAME  # noqa: PLW2901 - whoever made the lock: nobody has another one
        kept.append(line)
    arguments = tuple(dict.fromkeys((*requirements.arguments, "--no-deps")))
    return replace(requirements, lines=tuple(kept), constraints=(), arguments=arguments, warnings=tuple(warnings))


def _takes_our_kit(requirements: Requirements) -> bool:
    return requirements.uses_kit and requirements.takes_our_kit


def name_of(line: str) -> str:
    """The package that a line `name==1.2` or `name @ url` is about."""
    return canonicalize_name(re.split(r"[\s=@<>!~\[;]", line.strip(), maxsplit=1)[0])


def _own_name(path: Path) -> str:
    if path.is_file():
        return canonicalize_name(re.split(r"-\d", path.name)[0])
    try:
        data = tomllib.loads((path / "pyproject.toml").read_text(encoding="utf-8"))
        return canonicalize_name(str(data["project"]["name"]))
    except (OSError, ValueError, KeyError, TypeError):
        return canonicalize_name(path.name)


def with_hashes(project: Project, built: Environment) -> tuple[str, ...]:
    """The packages of a built environment: `name==1.2 --hash=sha256:…` for what comes from an index.

    Local packages are left out, they come from the checkout; the kit, which comes from segserve, has no hash; lines
    that name their origin already stay as they are.

    Raises:
        EnvironmentBuildFailed: the index does not answer, or does not have them any more.
    """
    if built.spec.kind == "docker":
        return built.packages
    requirements = _requirements(project)
    python = Path(built.location) / "bin" / "python"
    own = {_own_name(local.path) for local in requirements.local}
    unhashed = {_KIT} if _takes_our_kit(requirements) else set()
    indexed = [line for line in built.packages if "==" in line and " @ " not in line and name_of(line) not in own]
    pinned = [line for line in indexed if name_of(line) not in unhashed]
    others = [line for line in built.packages if line not in pinned and name_of(line) not in own]
    argv = [pip.uv(), "pip", "compile", "--quiet", "--no-deps", "--generate-hashes", "--no-header", "--no-annotate"]
    done = process.run(
        [*argv, "--python", str(python), "-"],
        cwd=python.parent,
        env=pip.host_settings().environment(requirements.indexes),
        stdin="\n".join(pinned) + "\n",
        check=False,
        timeout=600,
    )
    if done.code != 0:
        raise EnvironmentBuildFailed(
            "The hashes of the packages cannot be had.", hint="Is the package index reachable?", quote=done.stderr
        )
    joined = re.sub(r"\s*\\\n\s*", " ", done.stdout)
    return tuple(sorted([*(line for line in joined.splitlines() if line.strip()), *others], key=str.lower))
