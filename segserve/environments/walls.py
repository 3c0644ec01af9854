"""Whoever runs the code of packages during a build: `setup.py`, build backends, `.pth` files, conda's scripts.

Every command of a build that may run such code goes through `Walls.run`. `Open` runs it as a child of ours;
`pipeline.building` shuts it in. What is trusted (uv making an empty environment, rattler unpacking) needs no walls.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from segserve import process
from segserve.errors import EnvironmentBuildFailed

SCRATCH = "scratch.walls"  # beside the prefix: what commands that are shut in leave; it goes with the end of the build


class Walls(Protocol):
    """Where commands of one build run."""

    @property
    def shut_in(self) -> bool:
        """Whether they see nothing of this machine but what they need."""

    def showing(self, python: Path) -> Walls:
        """The same, in which an interpreter of this machine is seen, too."""

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
        """Run a command in `folder` to its end. It ends with us, whatever ends us.

        Raises:
            process.CommandFailed: exit code other than 0 and `check`.
        """


@dataclass(frozen=True, slots=True)
class Open:
    """No walls: the commands run as we do."""

    shut_in: bool = False

    def showing(self, python: Path) -> Open:
        """Nothing is hidden."""
        del python
        return self

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
        """As `process.run`."""
        words = {"cwd": folder, "env": environment, "on_line": on_line, "check": check, "timeout": timeout}
        return process.run(argv, **words, leashed=True)  # type: ignore[arg-type]


OPEN = Open()


def own_files(prefix: Path) -> None:
    """Make every file that is shared with a package cache (a hard link) the prefix's own.

    Whoever writes into a shared one changes it in the cache, and so for everybody who installs it later.
    """
    for folder, _, names in os.walk(prefix):
        for path in (Path(folder, name) for name in names):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
                copy = path.with_name(f"{path.name}.own")
                shutil.copy2(path, copy)
                copy.replace(path)


def check_interpreter(prefix: Path, interpreter: Path | None = None) -> None:
    """Refuse a prefix whose Python is not `interpreter` (resolved before any package ran) nor a file of its own.

    Jobs see the folder of the Python that a virtual environment links to: no package may choose which one that is.

    Raises:
        EnvironmentBuildFailed: a package has put another one in its place.
    """
    for name in ("python", "python3"):
        found = Path(os.path.realpath(prefix / "bin" / name))
        if found != interpreter and not found.is_relative_to(prefix.resolve()):
            raise EnvironmentBuildFailed(
                f"A package has replaced bin/{name} of its environment by a link to {found}.",
                hint="No package has to do that: look at who made it.",
            )
