"""What every kind of environment shares: Builder protocol, content hashing, the deciding lines of a failed build."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from segserve.errors import DiskFull, EnvironmentBuildFailed, InvalidProject, RepositoryUnreachable
from segserve.model import Environment, EnvironmentSpec
from segserve.project import Project, repository_root

__all__ = [
    "BuildOptions",
    "Builder",
    "Report",
    "build_failed",
    "deciding_lines",
    "hash_file",
    "hash_text",
    "hash_tree",
    "inside",
    "key_of",
    "platform_facts",
    "repository_root",
    "tree",
]

# Part of every key: raise it when a build makes something else from the same files.
BUILD_VERSION = 1

Report = Callable[[str], None]  # one line of a build's output, redacted or not; the receiver redacts


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What the caller says about environments; each of it wins over the project's file.

    `kind` is `uv`, `conda`, `docker` or `local` (None: as the project says), `python` a version X.Y or X.Y.Z,
    `channels` replace the file's conda channels, `mirrors` map a channel name or URL to the URL to use,
    `keep_defaults` leaves Anaconda's `defaults` alone, `docker_*` are the allow-lists of host paths and variables,
    `offline` asks no remote for git revisions. `use_lock` takes the packages of the segserve.lock beside the MLProject,
    `lock_file` those of another one.
    """

    kind: str | None = None
    python: str | None = None
    channels: tuple[str, ...] = ()
    mirrors: Mapping[str, str] = field(default_factory=dict)
    keep_defaults: bool = False
    docker_volumes: tuple[str, ...] = ()
    docker_variables: tuple[str, ...] = ()
    offline: bool = False
    use_lock: bool = True
    lock_file: Path | None = None


class Builder(Protocol):
    """One kind of environment; a module satisfies it."""

    kind: str

    def detect(self, project: Project, options: BuildOptions) -> EnvironmentSpec | None:
        """The specification if this kind is the one for the project, else None. Cheap; reads no index.

        With `options.kind` equal to this kind it never answers None: it raises what stands in the way.

        Raises:
            InvalidProject: the project's file is malformed or dangerous.
            InvalidParameters: the options ask for something that this kind cannot do.
        """

    def build(self, spec: EnvironmentSpec, project: Project, prefix: Path, report: Report) -> Environment:
        """Build into `prefix` (absolute, does not exist; its parent is private to this build and may hold scratch).

        Called under the environment's lock. Every line of output goes to `report`, which keeps the log.

        Raises:
            EnvironmentBuildFailed: with `quote`; the caller adds the log's path and removes what is left.
        """

    def health(self, environment: Environment) -> str | None:
        """What is wrong with a built environment, or None. Costs file-system calls only: it runs before every job."""


# ---------------------------------------------------------------------------------------------------------- content


def key_of(kind: str, parts: Mapping[str, Any]) -> str:
    """The content key: 20 hex digits over `parts` (JSON values without secrets), the kind and the build's version."""
    text = json.dumps({"kind": kind, "build": BUILD_VERSION, **parts}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def platform_facts() -> dict[str, str]:
    """Operating system, architecture and C library of this machine: what binary packages depend on."""
    library, version = platform.libc_ver()
    return {"os": platform.system().lower(), "arch": platform.machine().lower(), "libc": f"{library}{version}"}


def hash_text(text: str) -> str:
    """SHA-256 (hex) of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 (hex) of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


_SKIPPED_ANYWHERE = re.compile(r"\.git|\.hg|\.svn|__pycache__|.*\.py[co]|.*\.egg-info|\.(tox|nox|venv|.*_cache)|\.eggs")
_SKIPPED_AT_TOP = re.compile(r"build/(lib|lib\..*|bdist\..*|temp\..*)|dist/.*\.(whl|tar\.gz|zip|egg)|wheelhouse")


def tree(folder: Path) -> Iterator[Path]:
    """The files and symlinks of a source tree, relative and sorted; version control and build outputs left out."""
    yield from sorted(_walk(folder, Path()))


def hash_tree(folder: Path) -> str:
    """SHA-256 (hex) over names, modes (executable or not) and contents of the files of `tree(folder)`.

    A symlink counts by its target's text; it is not followed.

    Raises:
        InvalidProject: something in it is neither file, folder nor symlink, or a symlink that leaves the tree.
    """
    digest = hashlib.sha256()
    for relative in tree(folder):
        path = folder / relative
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode) and inside(path, folder):
            kind, content = "l", hash_text(str(path.readlink()))
        elif stat.S_ISREG(mode):
            kind, content = "x" if mode & 0o100 else "f", hash_file(path)
        else:
            raise InvalidProject(
                f"'{folder.name}/{relative}' is a symlink that leaves '{folder.name}', or no file at all.",
                hint="A local package has to hold all that it is built from; its author has to change that.",
            )
        digest.update(f"{kind}\0{relative.as_posix()}\0{content}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _walk(folder: Path, relative: Path) -> Iterator[Path]:
    with os.scandir(folder / relative) as entries:
        for entry in entries:
            path = relative / entry.name
            if _SKIPPED_ANYWHERE.fullmatch(entry.name) or _SKIPPED_AT_TOP.fullmatch(path.as_posix()):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(folder, path)
            else:
                yield path


def inside(path: Path, root: Path) -> bool:
    """Whether `path`, symlinks followed, lies in (or is) `root`."""
    return path.resolve().is_relative_to(root.resolve())


# ------------------------------------------------------------------------------------------------------ failed builds

# uv and pip say what decides in a line that begins like this (or carries it); conda's solver prints a tree.
_DECIDING = re.compile(
    r"(^\s*(×|error:|ERROR:|Error:|╰─▶|├─▶|Because |And because |hint:|fatal:)"
    r"|\b\w*(Error|Exception): |cannot solve|No candidates were found|unsatisfiable"
    r"|does not satisfy|fatal error:|command '.*' failed|not found in the package registry|No matching distribution)",
)
_NOISE = re.compile(r"^\s*(warning:|Downloading |Downloaded |Building |Built |Prepared |Using |Resolved |Traceback \()")
QUOTE_LINES = 12


def deciding_lines(lines: Iterable[str], *, limit: int = QUOTE_LINES) -> str:
    """The lines of a failed build's output that say why, in order; the last lines when none is known to.

    A line that is indented deeper continues the deciding line above it (uv wraps its explanations).
    """
    kept, following = list[str](), -1
    full = [line.rstrip() for line in lines if line.strip() and not _NOISE.match(line)]
    for line in full:
        indent = len(line) - len(line.lstrip())
        if _DECIDING.search(line):
            kept.append(line)
            following = indent
        elif following >= 0 and indent > following:
            kept.append(line)
        else:
            following = -1
    chosen = kept or full
    return "\n".join(chosen if len(chosen) <= limit else [*chosen[: limit // 3], "…", *chosen[-(limit - limit // 3) :]])


# As uv (reqwest) and git say it; an answer that refuses (401, 404) is another matter.
_UNREACHABLE = re.compile(r"error sending request for url|client error \(Connect\)|Could not resolve host")


def build_failed(
    message: str, lines: Iterable[str], *, hint: str = ""
) -> EnvironmentBuildFailed | RepositoryUnreachable | DiskFull:
    """The error of a failed build, deciding lines quoted; a full disk and a network that fails are told apart."""
    said = list(lines)
    if any(_UNREACHABLE.search(line) for line in said):
        return RepositoryUnreachable(
            f"{message} A server that it needs cannot be reached.", hint=NETWORK, quote=deciding_lines(said)
        )
    full = [line for line in said if "No space left on device" in line]
    if full:
        return DiskFull("There is no space left to build the environment.", hint=FREE_SPACE, quote=full[-1].strip())
    return EnvironmentBuildFailed(message, hint=hint, quote=deciding_lines(said))


NETWORK = (
    "Check the network. What pip or uv is configured with (mirror, proxy, certificates) is used: `segserve doctor`."
)
FREE_SPACE = "Free some: `segserve env gc` removes environments that nobody used, `uv cache prune` old downloads."
