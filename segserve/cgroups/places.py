"""Where this process may make groups: from /proc/self/cgroup and /proc/self/mountinfo."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

CONTROLLERS = ("memory", "pids")
_LEAF = "segserve"  # where processes go that are in the way, see `Place.prepare`
_DELEGATED = ("user.delegate", "trusted.delegate")  # since systemd 251; before, and for root alone
_TRIES = 10


class Unavailable(Exception):
    """No group can be made; the text says why, and may be followed by a full stop."""


@dataclass(frozen=True, slots=True)
class Place:
    """A folder of a hierarchy below which groups may be made, and what can be bounded there."""

    folder: Path
    version: int
    controllers: tuple[str, ...]
    occupied: bool = False  # version 2: our own processes are in it, and have to leave before it can bound others

    def prepare(self) -> None:
        """Let groups below have the controllers.

        In version 2 a group that hands controllers on has no processes of its own ("no internal processes"), so those
        move into a leaf.

        Raises:
            OSError: the kernel does not want it.
        """
        if self.version == 1:
            return
        control = self.folder / "cgroup.subtree_control"
        missing = [name for name in self.controllers if name not in control.read_text().split()]
        for last in (False,) * _TRIES + (True,):
            if self.occupied:
                self._leave()
            try:
                if missing:
                    control.write_text(" ".join(f"+{name}" for name in missing))
            except OSError as error:  # somebody has been forked in the meantime
                if last or not self.occupied or error.errno != errno.EBUSY:
                    raise
            else:
                return

    def _leave(self) -> None:
        leaf = self.folder / _LEAF
        leaf.mkdir(exist_ok=True)
        for pid in (self.folder / "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):
                (leaf / "cgroup.procs").write_text(pid)


def find(proc: Path = Path("/proc/self")) -> tuple[Place, ...]:
    """Where memory and processes can be bounded: at most one place for each, both often in the same.

    A controller is in version 2 or in version 1, never in both; a machine may mix them.

    Raises:
        Unavailable: nowhere.
    """
    paths, mounts = _paths(proc), [*_mounts(proc)]
    places, problems = list[Place](), list[str]()
    for mount in mounts:
        wanted = [name for name in CONTROLLERS if name in mount.options and name in paths]
        if mount.kind == "cgroup" and wanted:
            try:
                places.append(_first_version(mount, paths[wanted[0]], tuple(wanted)))
            except Unavailable as problem:
                problems.append(str(problem))
        elif mount.kind == "cgroup2" and "" in paths:
            try:
                places.append(_second_version(mount, paths[""]))
            except Unavailable as problem:
                problems.append(str(problem))
    if not places:
        raise Unavailable(problems[0] if problems else "no control groups are mounted here")
    return tuple(_once(places))


@dataclass(frozen=True, slots=True)
class _Mount:
    kind: str  # cgroup or cgroup2
    root: PurePosixPath  # which group is seen at the mount's top
    top: Path
    options: tuple[str, ...]

    def folder(self, path: str) -> Path:
        """Where a group is seen."""
        try:
            folder = self.top / PurePosixPath(path).relative_to(self.root)
        except ValueError:
            raise Unavailable("this process's control group is not mounted here") from None
        if ".." in folder.parts or not folder.is_dir():
            raise Unavailable("this process's control group is not mounted here")
        return folder


def _paths(proc: Path) -> dict[str, str]:
    """Our group by controller; that of version 2 by the empty name."""
    paths = dict[str, str]()
    for line in (proc / "cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        paths |= dict.fromkeys(names.split(","), path)
    return paths


def _mounts(proc: Path) -> Iterator[_Mount]:
    for line in (proc / "mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        if kind in ("cgroup", "cgroup2"):
            root, top = (_unescaped(text) for text in fields.split(" ")[3:5])
            yield _Mount(kind, PurePosixPath(root), Path(top), tuple(options.split(",")))


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def _first_version(mount: _Mount, path: str, controllers: tuple[str, ...]) -> Place:
    folder = mount.folder(path)
    if not os.access(folder, os.W_OK):
        raise Unavailable(f"the control groups of this machine (version 1) are not ours to make ({folder})")
    return Place(folder, 1, controllers)


def _second_version(mount: _Mount, path: str) -> Place:
    own = mount.folder(path)
    if own == mount.top or _marked(own):
        return _delegated(own, own)
    if _marked(own.parent) or (own.name == _LEAF and own.parent == mount.top):
        return _delegated(own.parent, own)
    raise Unavailable(f"no control group is delegated to this process ({path})")


def _delegated(folder: Path, own: Path) -> Place:
    writable = all(os.access(folder / name, os.W_OK) for name in ("", "cgroup.procs", "cgroup.subtree_control"))
    if not writable:
        raise Unavailable(f"the control group {folder} cannot be written to")
    offered = (folder / "cgroup.controllers").read_text().split()
    controllers = tuple(name for name in CONTROLLERS if name in offered)
    if not controllers:
        raise Unavailable(f"the control group {folder} has neither `memory` nor `pids`")
    occupied = folder == own and not _is_root(folder)
    if occupied and folder.suffix == ".service":
        # We could move into a leaf. But then, while jobs of it still run, systemd could not start the service again:
        # it puts new processes where none may be.
        raise Unavailable(f"the unit {folder.name} has `Delegate=` without `DelegateSubgroup=` (systemd 254)")
    return Place(folder, 2, controllers, occupied)


def _marked(folder: Path) -> bool:
    """Whether systemd leaves to us what is below.

    Beyond that (and the top of what a container sees) root could write everywhere, but groups that systemd has made
    are its own to fill.
    """
    for name in _DELEGATED:
        with suppress(OSError):
            if os.getxattr(folder, name) == b"1":
                return True
    return False


def _is_root(folder: Path) -> bool:
    """Whether it is the root of the whole machine, which alone may have processes and hand controllers on."""
    return not (folder / "cgroup.type").exists()


def _once(places: list[Place]) -> Iterator[Place]:
    """Each controller once: the same hierarchy may be mounted twice."""
    left = set(CONTROLLERS)
    for place in places:
        if mine := tuple(name for name in place.controllers if name in left):
            left -= set(mine)
            yield Place(place.folder, place.version, mine, place.occupied)
