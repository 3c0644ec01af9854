"""Which Python: on this machine, else uv's download, else python from a conda channel, else an error that lists all."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version

from segserve import process
from segserve.environments.base import Report, build_failed
from segserve.environments.indexes import host_settings
from segserve.environments.pip import uv
from segserve.environments.translate import pep440
from segserve.errors import BackendError, EnvironmentBuildFailed, InvalidParameters, InvalidProject, UsageError

# (exact version or X.Y, empty folder that lasts as long as the environment, report) → interpreter.
# Raises EnvironmentBuildFailed or BackendError, as the channel does.
ChannelPython = Callable[[str, Path, Report], Path]

_DOWNLOAD_SECONDS = "10"


@dataclass(frozen=True, slots=True)
class Plan:
    """Where to look for an interpreter, best first. JSON-able by `as_details`.

    `wanted` is what the file or `--python` said; `local` (version, path) candidates; `downloads` versions that uv
    knows; `channel` the version for a conda channel. `exact` is the patch release that was asked for, or ''.
    """

    wanted: str
    exact: str
    local: tuple[tuple[str, str], ...]
    downloads: tuple[str, ...]
    channel: str

    def as_details(self) -> dict[str, object]:
        """For `EnvironmentSpec.details`."""
        return {
            "wanted": self.wanted,
            "exact": self.exact,
            "local": [list(pair) for pair in self.local],
            "downloads": list(self.downloads),
            "channel": self.channel,
        }

    @staticmethod
    def of(details: Mapping[str, object]) -> Plan:
        """Back from `as_details`."""
        data = json.loads(json.dumps(details))
        return Plan(
            data["wanted"],
            data["exact"],
            tuple((version, path) for version, path in data["local"]),
            tuple(data["downloads"]),
            data["channel"],
        )

    @property
    def local_exact(self) -> tuple[tuple[str, str], ...]:
        """The local candidates that are just what was asked for."""
        return tuple(pair for pair in self.local if self.exact in ("", pair[0]))

    @property
    def expected(self) -> str:
        """The version that it will be, most likely."""
        local = self.local_exact or (() if self.exact in self.downloads else self.local)
        return next((version for version, _ in local), self.downloads[0] if self.downloads else self.channel)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What can be said before the build."""
        if self.exact and self.expected != self.exact:
            return (substitute_warning(self.exact, self.expected),)
        return ()


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is to choose from: (version, path) in the order of PATH, versions to download, the version we run."""

    local: tuple[tuple[str, str], ...]
    downloads: tuple[str, ...]
    current: str


@dataclass(frozen=True, slots=True)
class Found:
    """An interpreter: where, which version, and a warning when it is not what was asked for."""

    python: Path
    version: str
    warning: str = ""


def plan(wanted: str, *, source: str = "", override: str | None = None, machine: Machine | None = None) -> Plan:
    """Where a Python for the constraint `wanted` ('' any, `3.8.5`, `=3.8`, `>=3.8,<3.11`) can come from. No network.

    An exact patch release that is not here is replaced by the nearest one of its minor; among several minors the one
    that runs segserve is preferred (MLflow takes the current Python too), then the newest.

    Raises:
        InvalidProject: the constraint of the file `source` is no version.
        InvalidParameters: `override` (--python) is not X.Y or X.Y.Z.
    """
    if override and not re.fullmatch(r"\d+\.\d+(\.\d+)?", override):
        raise InvalidParameters(f"--python {override}: write it as X.Y or X.Y.Z.", hint="For example: --python 3.11")
    text = override or wanted
    allowed, exact = _allowed(text, source)
    machine = machine or this_machine()
    local = _ranked(machine.local, allowed, exact, machine.current)
    downloads = _ranked(((version, "") for version in machine.downloads), allowed, exact, machine.current)
    minor = ".".join(exact.split(".")[:2])
    bare = re.fullmatch(r"==(\d+\.\d+)\.\*", str(allowed))
    channel = exact or (bare[1] if bare else text)
    return Plan(text, exact, tuple(local), tuple(version for version, _ in downloads), channel or minor)


def this_machine() -> Machine:
    """The real one. Cached in this process."""
    local = tuple((found.version, str(found.python)) for found in installed())
    return Machine(local, downloadable(), ".".join(str(part) for part in sys.version_info[:3]))


def provide(chosen: Plan, folder: Path, report: Report, channel: ChannelPython | None = None) -> Found:
    """The interpreter of a plan; what is not on the machine is fetched, by uv or from a conda channel into `folder`.

    Raises:
        EnvironmentBuildFailed: none of the three ways works; `quote` says what each of them said.
    """
    said = [f"on this machine: no Python {chosen.wanted} ({_there_is()})"]
    found = _local(chosen.local_exact)
    if found is None and chosen.exact in chosen.downloads:
        found = _download(chosen.exact, report, said)
    if found is None:
        found = _local(chosen.local)
    others = [version for version in chosen.downloads if version != chosen.exact]
    if found is None and others:
        found = _download(others[0], report, said)
    if found is None:
        found = _from_channel(chosen, folder, report, channel, said)
    if found is not None:
        substituted = chosen.exact not in ("", found.version)
        return replace(found, warning=substitute_warning(chosen.exact, found.version) if substituted else "")
    raise build_failed(
        f"There is no Python {chosen.wanted} for this executor.",
        said,
        hint=f"Install Python {chosen.channel} (pyenv or your package manager), or take another one with --python X.Y.",
    )


def version_of(python: Path) -> str:
    """X.Y.Z of an interpreter, by asking it.

    Raises:
        process.CommandFailed: it does not run.
    """
    code = "import sys; print('.'.join(str(part) for part in sys.version_info[:3]))"
    return process.run([python, "-I", "-c", code], env=host_settings().environment(), timeout=60).stdout.strip()


def installed() -> tuple[Found, ...]:
    """The CPythons of this machine, in the order in which a shell would find them; version managers included."""
    return _installed(os.pathsep.join(str(folder) for folder in _folders()))


@lru_cache(maxsize=4)
def _installed(path: str) -> tuple[Found, ...]:
    variables = {**host_settings().environment(), "PATH": path}
    return tuple(
        Found(Path(entry["path"]), entry["version"])
        for entry in _uv_list(["--only-installed", "--all-versions"], variables)
        if entry.get("path") and entry["implementation"] == "cpython" and entry["variant"] == "default"
    )


@lru_cache(maxsize=1)
def downloadable() -> tuple[str, ...]:
    """The releases that this uv knows how to download for this platform; a table inside of uv, no network."""
    if os.environ.get("UV_PYTHON_DOWNLOADS", "").lower() in ("never", "false"):
        return ()
    entries = _uv_list(["--only-downloads", "--all-versions"], host_settings().environment())
    versions = (
        entry["version"]
        for entry in entries
        if entry["implementation"] == "cpython" and entry["variant"] == "default" and not Version(entry["version"]).pre
    )
    return tuple(dict.fromkeys(versions))


def substitute_warning(wanted: str, got: str) -> str:
    """What a run records when the patch release is another one."""
    return f"Python {wanted} cannot be had here: {got} is used instead."


def _local(candidates: Iterable[tuple[str, str]]) -> Found | None:
    return next((Found(Path(path), version) for version, path in candidates if os.access(path, os.X_OK)), None)


def _allowed(text: str, source: str) -> tuple[SpecifierSet, str]:
    exact = re.fullmatch(r"(==?)?\s*(\d+)\.(\d+)\.(\d+)(\.\*)?", text.strip())
    if exact:
        return SpecifierSet(f"=={exact[2]}.{exact[3]}.*"), f"{exact[2]}.{exact[3]}.{exact[4]}"
    clauses = pep440(text.strip().replace(" ", ""))
    # conda's ==3.8 means 3.8.0; what people mean is any 3.8.
    clauses = None if clauses is None else re.sub(r"==(\d+\.\d+)(?=,|$)", r"==\1.*", clauses)
    try:
        return SpecifierSet("no version" if clauses is None else clauses), ""
    except InvalidSpecifier:
        raise InvalidProject(
            f"{source or 'The environment'} asks for Python '{text}', which is no version.",
            hint="The author can write python=3.10; you can choose one with --python X.Y.",
        ) from None


def _ranked(found: Iterable[tuple[str, str]], allowed: SpecifierSet, exact: str, current: str) -> list[tuple[str, str]]:
    """What is allowed, best first, each version once."""
    once: dict[str, str] = {}
    for version, path in found:
        if version in allowed:
            once.setdefault(version, path)

    def rank(version: str) -> tuple[int, ...]:
        release = Version(version).release
        if exact:
            distance = release[2] - Version(exact).release[2]
            return (abs(distance), -distance)
        return (release[:2] != Version(current).release[:2], *(-part for part in release))

    return [(version, once[version]) for version in sorted(once, key=rank)]


def _folders() -> Sequence[Path]:
    """PATH, then where version managers keep what PATH lacks. Their shims only confuse: they answer with an error."""
    home = Path.home()
    on_path = (Path(word) for word in os.environ.get("PATH", "").split(os.pathsep) if word)
    folders = [Path(sys.base_prefix) / "bin", *(path for path in on_path if path.name != "shims")]
    managed = (
        (Path(os.environ.get("PYENV_ROOT") or home / ".pyenv") / "versions"),
        (Path(os.environ.get("ASDF_DATA_DIR") or home / ".asdf") / "installs" / "python"),
        (Path(os.environ.get("MISE_DATA_DIR") or home / ".local" / "share" / "mise") / "installs" / "python"),
    )
    for root in managed:
        folders += sorted(root.glob("3.*/bin"), reverse=True)
    return list(dict.fromkeys(folders))


def _uv_list(words: Sequence[str], variables: Mapping[str, str]) -> list[dict[str, str]]:
    argv = [uv(), "python", "list", *words, "--output-format", "json", "--no-config"]
    try:
        listed: list[dict[str, str]] = json.loads(process.run(argv, cwd=Path(os.sep), env=variables).stdout or "[]")
    except process.CommandFailed as failed:
        raise UsageError(
            "uv, which builds the environments, refuses to work here.",
            hint="Correct the UV_… variable that it names.",
            quote=failed.completed.stderr.strip(),
        ) from None
    return listed


def _download(version: str, report: Report, said: list[str]) -> Found | None:
    # No retries: off the network this costs ten seconds per attempt, and there is a next way.
    variables = {
        **host_settings().environment(),
        "UV_HTTP_RETRIES": "0",
        "UV_HTTP_CONNECT_TIMEOUT": os.environ.get("UV_HTTP_CONNECT_TIMEOUT", _DOWNLOAD_SECONDS),
    }
    report(f"Python {version} is not on this machine: uv tries to download it")
    folder = Path(os.sep)
    try:
        argv = [uv(), "python", "install", "--no-bin", version]
        process.run(argv, cwd=folder, env=variables, on_line=report, leashed=True)
        argv = [uv(), "python", "find", "--managed-python", "--no-project", version]
        return Found(Path(process.run(argv, cwd=folder, env=variables).stdout.strip()), version)
    except process.CommandFailed as failed:
        said.append(f"uv's download of {version}: {_why(failed)}")
        return None


def _why(failed: process.CommandFailed) -> str:
    """The chain of causes that uv ends with, in one line."""
    chain = failed.completed.stdout.rpartition("error: ")[2].split()
    return " ".join(chain) or failed.reason


def _from_channel(
    chosen: Plan, folder: Path, report: Report, channel: ChannelPython | None, said: list[str]
) -> Found | None:
    if not chosen.downloads:
        said.append(f"uv's download: it offers no Python {chosen.wanted} for this platform")
    if channel is None:
        said.append("conda channel: none is at hand")
        return None
    for version in dict.fromkeys((chosen.channel, ".".join(chosen.channel.split(".")[:2]))):
        try:
            python = channel(version, folder, report)
        except (EnvironmentBuildFailed, BackendError) as error:
            said.append(f"conda channel, Python {version}: {error.message} {error.quote}".strip())
        else:
            return Found(python, version_of(python))
    return None


def _there_is() -> str:
    versions = sorted({found.version for found in installed()}, key=Version)
    return f"there is {', '.join(versions)}" if versions else "there is none at all"
