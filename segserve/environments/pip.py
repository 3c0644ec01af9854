"""pip requirements into a prefix, by uv. The closure is in `requirements.py`, the host's indexes in `indexes.py`."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from segserve import kit, process, redact
from segserve.environments.base import Report, build_failed, repository_root, tree
from segserve.environments.closure import read
from segserve.environments.indexes import HostSettings, Indexes, host_settings
from segserve.environments.requirements import LocalPath, Requirements
from segserve.environments.walls import OPEN, Walls
from segserve.errors import EnvironmentBuildFailed

__all__ = [
    "HostSettings",
    "Indexes",
    "Requirements",
    "check",
    "compiled",
    "freeze",
    "host_settings",
    "install",
    "read",
    "uv",
]

_AUTHOR = "The requirements of the executor cannot be installed here; its author (or the package index) has to act."


def uv() -> str:
    """The path of the uv that came with segserve."""
    from uv import find_uv_bin

    return find_uv_bin()


def install(
    python: Path,
    requirements: Requirements,
    scratch: Path,
    report: Report,
    *,
    constraints: Sequence[str] = (),
    bytecode: bool = True,
    walls: Walls = OPEN,
) -> None:
    """Install everything into the environment of the interpreter `python`.

    `bytecode` compiles all of its site-packages at the end: an executor may not be able to write it, and pays 5 s each
    time then.

    Local paths become wheels, built from a copy in `scratch` (a private folder, emptied at the end), so that nothing
    points into a checkout. `constraints` are further lines, for instance the versions that conda put there.

    Raises:
        EnvironmentBuildFailed: with the deciding lines of uv.
        RepositoryUnreachable: an index does not answer.
        DiskFull: there was no space left.
    """
    if not (requirements.lines or requirements.local):
        return
    host = host_settings()
    environment = host.environment(requirements.indexes)
    scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        lines = [*requirements.lines]
        words = ["--no-sources", "--python", str(python), *host.words(requirements.indexes)]
        for number, local in enumerate(requirements.local):
            lines.append(_local(words, local, scratch / str(number), environment, report, walls))
        argv = [uv(), "pip", "install", *words, *host.arguments]
        argv += ["--compile-bytecode"] if bytecode else []
        argv += [*requirements.arguments, "-r", str(_written(scratch / "requirements.txt", lines))]
        limits = [*requirements.constraints, *constraints, *_kit(requirements, scratch / "kit")]
        if limits:
            argv += ["-c", str(_written(scratch / "constraints.txt", limits))]
        for path in host.constraints:
            argv += ["-c", str(path)]
        _build_or_install(argv, scratch, environment, report, "The Python packages cannot be installed.", walls)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def compiled(requirements: Requirements, python: str, folder: Path) -> tuple[str, ...]:
    """What the requirements mean today: `name==version` lines for Python `python` (X.Y; empty: any). Installs nothing.

    Raises:
        EnvironmentBuildFailed: there is no solution; with the deciding lines.
    """
    host = host_settings()
    lines = [*requirements.lines, *(f"{local.path}{local.extras}" for local in requirements.local)]
    argv = [uv(), "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--no-sources", *host.arguments]
    argv += [*requirements.arguments, *(["--python-version", python] if python else [])]
    with tempfile.TemporaryDirectory() as scratch:
        limits = [*requirements.constraints, *_kit(requirements, Path(scratch) / "kit")]
        done = process.run(
            [*argv, "-c", str(_written(Path(scratch) / "constraints.txt", limits)), "-"],
            cwd=folder,
            env=host.environment(requirements.indexes),
            stdin="\n".join(lines) + "\n",
            check=False,
            timeout=600,
        )
    if done.code != 0:
        raise build_failed("The environment cannot be solved.", done.stderr.splitlines())
    return tuple(line for line in done.stdout.splitlines() if line and not line.startswith((" ", "#", "-")))


def _kit(requirements: Requirements, folder: Path) -> tuple[str, ...]:
    """The constraint by which `segserve_sdk`, whoever asks for it, is the wheel that came with segserve.

    Not `--find-links`: a package of that name and a higher version on an index would win over it.
    """
    if not requirements.takes_our_kit:
        return ()
    return (f"{kit.NAME} @ {kit.write_wheel(folder).as_uri()}",)


def freeze(python: Path, walls: Walls = OPEN) -> tuple[str, ...]:
    """What is installed, sorted: `name==version`, or `name @ git+url@commit`; redacted.

    Raises:
        process.CommandFailed: the interpreter does not run.
    """
    lines = _ask(walls, python, "freeze").stdout.splitlines()
    listed = dict(
        line.split("==", 1)
        for line in _ask(walls, python, "list", "--format=freeze").stdout.splitlines()
        if "==" in line
    )
    packages = []
    for line in lines:
        name = re.split(r"\s*@\s*|==", line.removeprefix("-e ").strip())[0]
        local = line.startswith("-e ") or " @ file:" in line
        packages.append(f"{name}=={listed[name]}" if local and name in listed else redact.text(line))
    return tuple(sorted(packages, key=str.lower))


def check(python: Path, walls: Walls = OPEN) -> tuple[str, ...]:
    """Installed packages whose requirements are not met, one sentence each."""
    done = _ask(walls, python, "check", check=False)
    return tuple(line.strip() for line in (done.stdout + done.stderr).splitlines() if line.startswith("The package"))


def call(
    argv: Sequence[str | os.PathLike[str]],
    folder: Path,
    environment: dict[str, str],
    report: Report,
    message: str,
    *,
    hint: str = "",
    walls: Walls = OPEN,
) -> list[str]:
    """Run a command of a build in `folder`; every line goes to `report`, and all of them come back.

    Raises:
        EnvironmentBuildFailed, RepositoryUnreachable, DiskFull: `message`, with the deciding lines.
    """
    lines: list[str] = []

    def take(line: str) -> None:
        lines.append(line)
        report(redact.text(line))

    try:
        walls.run(argv, folder=folder, environment=environment, on_line=take)
    except process.CommandFailed:
        raise build_failed(message, lines, hint=hint) from None
    return lines


def _ask(walls: Walls, python: Path, *words: str, check: bool = True) -> process.Completed:
    return walls.run(
        [uv(), "pip", words[0], "--python", python, *words[1:]],
        folder=python.parent,
        environment=host_settings().environment(),
        check=check,
    )


def _local(
    words: Sequence[str], local: LocalPath, scratch: Path, environment: dict[str, str], report: Report, walls: Walls
) -> str:
    wheels = scratch / "wheels"
    wheels.mkdir(parents=True)
    if local.path.is_dir():
        source = _copy(local.path, scratch / "source")
        argv = [uv(), "build", "--wheel", *words, "--out-dir", str(wheels)]
        message = f"The local package '{local.path.name}' cannot be built."
        _build_or_install([*argv, str(source)], scratch, environment, report, message, walls)
    else:
        shutil.copy2(local.path, wheels)
    built = next(path for path in sorted(wheels.iterdir()) if path.name != ".gitignore")
    stem = re.sub(r"\.tar\.\w+$|\.\w+$", "", built.name)
    name = stem.split("-")[0] if built.suffix == ".whl" else stem.rpartition("-")[0] or stem
    marker = f" ; {local.marker}" if local.marker else ""
    return f"{name}{local.extras} @ {built.as_uri()}{marker}"


def _written(path: Path, lines: Sequence[str]) -> Path:
    # Files, not arguments: a credential in a URL must not be seen in the list of processes.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.writelines(f"{line}\n" for line in lines)
    return path


def _build_or_install(
    argv: Sequence[str], scratch: Path, environment: dict[str, str], report: Report, message: str, walls: Walls
) -> None:
    """Once; and once more with an older setuptools when a package's own setup.py wants pkg_resources."""
    said: list[str] = []

    def tell(line: str) -> None:
        said.append(line)
        report(line)

    try:
        call(argv, scratch, environment, tell, message, hint=_AUTHOR, walls=walls)
    except EnvironmentBuildFailed:
        if not any("No module named 'pkg_resources'" in line for line in said):
            raise
        # setuptools 82 dropped it, and an isolated build takes the newest: https://github.com/pypa/setuptools/pull/5007
        report("A package needs pkg_resources to be built: once more with an older setuptools")
        older = _written(scratch / "build-constraints.txt", ["setuptools<81"])
        argv = [*argv, "--build-constraints", str(older)]
        call(argv, scratch, environment, report, message, hint=_AUTHOR, walls=walls)


def _copy(source: Path, target: Path) -> Path:
    """A copy of what `hash_tree` hashes, nothing else, so that the build reads what the key says.

    It lies in `target` where it lies in the repository, beside a `.git` that leads to the real one: packages that take
    their version or their list of files from git (setuptools-scm) find what they look for.
    """
    root = repository_root(source)
    copied = target / source.resolve().relative_to(root)
    for relative in tree(source):
        destination = copied / relative
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / relative, destination, follow_symlinks=False)
    if (root / ".git").is_dir():
        (target / ".git").write_text(f"gitdir: {root / '.git'}\n")
    return copied
