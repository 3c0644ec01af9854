"""One group of processes: made below the places that there are, bounded, watched, killed, removed."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from segserve import process
from segserve.cgroups.places import Place, Unavailable, find

_PREFIX = "segserve-"
_SWAP_BYTES = 2**20  # version 1; were it 0, the kernel would not count in memory.failcnt that the limit was hit
_REMOVE_SECONDS = 5.0  # what was killed may take a moment to leave
_FORGOTTEN_SECONDS = 3600.0  # an empty group that is older waits for nobody


@dataclass(frozen=True, slots=True)
class Group:
    """A folder in each hierarchy (one in version 2, up to two in version 1). What it bounds is told by its files."""

    folders: tuple[Path, ...]
    places: tuple[Place, ...] = ()  # empty: it exists already

    def to_json(self) -> str:
        """For whoever has to clean up; see `recorded`."""
        return json.dumps([str(folder) for folder in self.folders])

    def make(self, *, memory: int, processes: int) -> None:
        """Make it, with at most so many bytes of memory and processes and threads (0: no limit).

        Raises:
            Unavailable: the kernel does not want it. Nothing is left then.
        """
        try:
            for place, folder in zip(self.places, self.folders, strict=True):
                _forget(place.folder)
                place.prepare()
                folder.mkdir()
                if memory and "memory" in place.controllers:
                    _bound_memory(folder, place.version, memory)
                if processes and "pids" in place.controllers:
                    (folder / "pids.max").write_text(str(processes))
        except OSError as error:
            self.remove()
            raise Unavailable(f"the kernel makes no control group here ({error.strerror}: {error.filename})") from error

    def bounds(self, controller: str) -> bool:
        """Whether the kernel heeds a limit of `memory` or `pids`."""
        return any(controller in place.controllers for place in self.places)

    @property
    def doors(self) -> tuple[Path, ...]:
        """The files into each of which a process writes `0` to get in, with all that it starts from then on."""
        return tuple(folder / "cgroup.procs" for folder in self.folders)

    def processes(self) -> list[psutil.Process]:
        """What lives in it."""
        pids: set[int] = set()
        for door in self.doors:
            with suppress(OSError):
                pids |= {int(pid) for pid in door.read_text().split()}
        return process.living(pids)

    def hit(self) -> str:
        """Which of its limits was hit, `memory` or `pids`; "" while none was.

        A process that was ended because of a limit further up (of the service, of the machine) has not hit ours.
        """
        for folder in self.folders:
            events = _numbers(folder / "memory.events") or _numbers(folder / "memory.oom_control")
            at_limit = events.get("oom", 0) or _number(folder / "memory.failcnt")
            if events.get("oom_kill", 0) and at_limit:
                return "memory"
            peak, limit = _number(folder / "pids.peak"), _number(folder / "pids.max")
            if _numbers(folder / "pids.events").get("max", 0) and (not peak or peak >= limit):
                return "pids"
        return ""

    def memory(self) -> int:
        """Bytes that it holds now and could not give back: no copies of files, which the kernel counts to it, too."""
        for folder in self.folders:
            held = _numbers(folder / "memory.stat")
            if held:
                first = held.get("total_rss", 0) + held.get("total_shmem", 0)
                return first if "total_rss" in held else held.get("anon", 0) + held.get("shmem", 0)
        return 0

    def kill(self) -> list[psutil.Process]:
        """End all of it at once; nothing can be forked away meanwhile. Returns what hangs in the kernel."""
        for folder in self.folders:
            with suppress(OSError):
                (folder / "pids.max").write_text("0")
            with suppress(OSError):  # since Linux 5.14, in version 2
                if (folder / "cgroup.kill").exists():
                    (folder / "cgroup.kill").write_text("1")
        return process.end(self.processes, grace=0.0)

    def remove(self) -> bool:
        """Remove it; false if somebody is still in it. One that was never made, or is gone, is fine."""
        deadline = time.monotonic() + _REMOVE_SECONDS
        while [folder for folder in self.folders if not _removed(folder)]:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True


def plan(name: str) -> Group:
    """The group of this name, which does not exist yet.

    Raises:
        Unavailable: there can be none.
    """
    places = find()
    return Group(tuple(place.folder / f"{_PREFIX}{name}" for place in places), places)


def recorded(text: str, name: str) -> Group:
    """The group that somebody has written down (`Group.to_json`); folders of another name are not its own."""
    with suppress(ValueError, TypeError):
        folders = [Path(folder) for folder in json.loads(text)]
        return Group(tuple(folder for folder in folders if folder.name == f"{_PREFIX}{name}"))
    return Group(())


def _bound_memory(folder: Path, version: int, limit: int) -> None:
    if version == 2:
        (folder / "memory.max").write_text(str(limit))
        (folder / "memory.oom.group").write_text("1")  # all or nothing: half of an executor is of no use
        swap = folder / "memory.swap.max"
        if swap.exists():
            swap.write_text("0")
        return
    (folder / "memory.limit_in_bytes").write_text(str(limit))
    both = folder / "memory.memsw.limit_in_bytes"  # with swap; the kernel may count that or not
    if both.exists():
        both.write_text(str(limit + _SWAP_BYTES))


def _forget(parent: Path) -> None:
    """Remove what nobody came to remove. The kernel refuses for groups that have processes."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > _FORGOTTEN_SECONDS:
                folder.rmdir()


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _numbers(file: Path) -> Mapping[str, int]:
    """A file of lines `name number`; nothing if there is none."""
    with suppress(OSError):
        words: Sequence[Sequence[str]] = [line.split() for line in file.read_text().splitlines()]
        return {pair[0]: int(pair[1]) for pair in words if len(pair) == 2}
    return {}


def _number(file: Path) -> int:
    with suppress(OSError, ValueError):  # `max`
        return int(file.read_text())
    return 0
