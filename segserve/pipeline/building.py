"""Builds that are shut in: the code of packages runs as executors do, with the build's own folder to write in.

It sees the system, Python, the checkout of its executor and the wheel folders and certificates that pip and uv are
configured with, all read-only. Its network is that of executors with `network`: public addresses, what `sandbox.allow`
names, and the package indexes of this machine, by a proxy. So neither MLflow nor the service nor anything else here is
in reach, which it would be in the network of this machine.

Its package cache is its own and ends with it: whoever may write into a cache decides what all others install from it.
"""

from __future__ import annotations

import os
import re
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from segserve import process, sandbox
from segserve.config import SandboxSettings
from segserve.environments.base import Report
from segserve.environments.indexes import Indexes, host_files, host_settings
from segserve.environments.pip import uv
from segserve.environments.walls import OPEN, SCRATCH, Walls
from segserve.fetching.addresses import Address, Policy
from segserve.gate import Door, Outside
from segserve.model import Sandbox
from segserve.pipeline import confinement
from segserve.project import Project, repository_root

_PYPI = ("https://pypi.org", "https://files.pythonhosted.org")
_PORTS = {"http": 80, "https": 443}
# What compilers, git, pip and uv are told by variables; all else of the service's environment stays outside.
_HANDED_ON = re.compile(
    r"PATH|LANG|LC_\w+|TZ|NO_COLOR|UV_\w+|SSL_\w+|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|GIT_(SSL_CAINFO|TERMINAL_PROMPT"
    r"|ALLOW_PROTOCOL|LFS_SKIP_SMUDGE|OPTIONAL_LOCKS)|CC|CXX|FC|LD|C(PP|XX)?FLAGS|LDFLAGS|MAKEFLAGS|CUDA_HOME"
    r"|PREFIX|CONDA_PREFIX|PKG_\w+|HOME"
)


def walls(settings: SandboxSettings, project: Project, *, others: bool) -> Callable[[Path, Report], Walls]:
    """What `environments.prepare` asks for its walls; `others`: the job, or the server, is not the local user's alone.

    Raises:
        BackendError: bubblewrap does not work here.
    """
    if not confinement.shuts_in(settings, others=others):
        return lambda _build, _report: OPEN
    confinement.require(settings, others=others)
    host = host_settings().indexes
    seen = (Path(uv()).resolve(), repository_root(project.folder), *host_files())
    policy = _OfBuilds(allow=settings.allow, indexes=frozenset(_places(host)))
    return lambda build, report: _ShutIn(build, seen, policy, settings.processes, report)


@dataclass(frozen=True)
class _OfBuilds(Policy):
    """What a build may reach. `indexes` are hosts and ports: one on this machine opens no other port of it."""

    indexes: frozenset[tuple[str, int]] = frozenset()

    def addresses(self, host: str, port: int, patience_s: float) -> list[Address]:
        """As for all; an index may be anywhere."""
        policy = Policy(allow=(*self.allow, host)) if (host, port) in self.indexes else Policy(allow=self.allow)
        return policy.addresses(host, port, patience_s)


def _places(indexes: Indexes) -> Iterator[tuple[str, int]]:
    """Hosts and ports of the package indexes. PyPI counts as one, because a site may have put a mirror in its place."""
    for url in (*([indexes.index] if indexes.index else _PYPI), *indexes.extra, *indexes.find_links):
        parts = urlsplit(url)
        if parts.scheme in _PORTS and parts.hostname:
            yield parts.hostname, parts.port or _PORTS[parts.scheme]


@dataclass(frozen=True)
class _ShutIn:
    """The walls of one build (`environments.walls.Walls`)."""

    build: Path
    seen: tuple[Path, ...]
    policy: Policy
    processes: int
    say: Report
    shut_in: bool = True

    def showing(self, python: Path) -> _ShutIn:
        """With the installation that a Python belongs to."""
        base = python.resolve().parent.parent
        return replace(self, seen=(*self.seen, base))

    def run(
        self,
        argv: process.Argv,
        *,
        folder: Path,
        environment: Mapping[str, str],
        on_line: Callable[[str], None] | None = None,
        check: bool = True,
        timeout: float | None = None,
    ) -> process.Completed:
        """As `process.run`, shut in. Hosts that it connects to are named in the log of the build."""
        scratch = self.build / SCRATCH
        for path in (scratch / "tmp", scratch / "home"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        plan = Sandbox(
            read_only=_existing(self.seen),
            writable=(str(self.build),),
            devices=(),
            home=str(scratch / "home"),
            network=True,
            allow=(),
        )
        with self._door() as door:
            words = sandbox.command(
                plan,
                project=folder,
                door=door,
                ports=(sandbox.OUTSIDE_PORT,),
                processes=self.processes,
                memory=0,
                variables={},
            )
            variables = {name: value for name, value in environment.items() if _HANDED_ON.fullmatch(name)}
            variables |= {"HOME": plan.home, "TMPDIR": str(scratch / "tmp"), "UV_CACHE_DIR": str(scratch / "uv")}
            variables |= {**_user_configuration(), **sandbox.proxies(plan)}
            return process.run(
                [*words, *argv],
                env=variables,
                on_line=on_line,
                check=check,
                timeout=timeout,
                leashed=True,
            )

    @contextmanager
    def _door(self) -> Iterator[Path]:
        """A socket that waits for the sandbox of one command, and answers on the way out of it."""
        outside, taken = Outside(self.policy, self.say), list[socket.socket]()

        def take(listening: Sequence[socket.socket]) -> None:
            taken.extend(listening)
            for one in listening:
                outside.serve(one)

        with tempfile.TemporaryDirectory(prefix="segserve-") as folder:
            door = Door(Path(folder, "door"), take, 1)
            door.open()
            try:
                yield Path(folder, "door")
            finally:
                door.close()
                for one in taken:
                    one.shutdown(socket.SHUT_RDWR)
                    one.close()


def _user_configuration() -> dict[str, Any]:
    """Where uv finds its user's file: by XDG_CONFIG_HOME, as HOME is another one inside."""
    return {"XDG_CONFIG_HOME": os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")}


def _existing(paths: Sequence[Path]) -> tuple[str, ...]:
    apart = [path for path in paths if path.exists() and not path.is_relative_to("/usr") and path != Path("/")]
    return tuple(dict.fromkeys(map(str, apart)))
