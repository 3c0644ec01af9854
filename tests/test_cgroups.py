"""Where control groups may be made, and a group's life: in the hierarchies of this machine, and in fake ones.

A fake tree stands for machines whose layout this one has not (a container, a unit of systemd with version 2): real
folders and files, but no kernel behind them.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import ClassVar

import pytest

from segserve import cgroups
from segserve.cgroups import places
from segserve.cgroups.places import Place

CONTROLLERS = "cpuset cpu io memory hugetlb pids"


class FakeTree:
    """A cgroup2 mount that is no kernel's, with the two files of /proc/self that lead there."""

    delegated: ClassVar[set[Path]] = set()  # what systemd would have marked, by an attribute of the folder

    def __init__(self, folder: Path, own: str, *, root: str = "/") -> None:
        self.top, self.proc = folder / "cgroup tree", folder / "proc"
        self.proc.mkdir(parents=True)
        self.top.mkdir()
        (self.proc / "cgroup").write_text(f"0::{own}\n")
        top = str(self.top).replace(" ", "\\040")
        lines = [
            "22 1 0:20 / /proc rw,nosuid - proc proc rw",
            f"35 24 0:30 {root} {top} rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot",
        ]
        (self.proc / "mountinfo").write_text("\n".join(lines) + "\n")

    def group(self, path: str, *, delegated: bool = False, controllers: str = CONTROLLERS) -> Path:
        """A group with its files."""
        folder = self.top / path
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("cgroup.procs", "cgroup.subtree_control", "cgroup.type"):
            (folder / name).touch()
        (folder / "cgroup.controllers").write_text(controllers + "\n")
        if delegated:
            self.delegated.add(folder)
        return folder

    def find(self) -> Place:
        (place,) = cgroups.find(self.proc)
        return place

    def problem(self) -> str:
        with pytest.raises(cgroups.Unavailable) as refusal:
            cgroups.find(self.proc)
        return str(refusal.value)


@pytest.fixture(autouse=True)
def fake_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    marked = places._marked
    monkeypatch.setattr(places, "_marked", lambda folder: folder in FakeTree.delegated or marked(folder))


def test_a_unit_with_a_subgroup_for_the_service(tmp_path: Path) -> None:
    tree = FakeTree(tmp_path, "/system.slice/segserve.service/service")
    unit = tree.group("system.slice/segserve.service", delegated=True)
    tree.group("system.slice/segserve.service/service")
    assert tree.find() == Place(unit, 2, ("memory", "pids"))


def test_a_unit_without_one_could_not_be_started_again(tmp_path: Path) -> None:
    tree = FakeTree(tmp_path, "/system.slice/segserve.service")
    tree.group("system.slice/segserve.service", delegated=True)
    assert "`DelegateSubgroup=`" in tree.problem()


def test_what_is_not_delegated_is_somebody_elses(tmp_path: Path) -> None:
    """As root we could write there."""
    tree = FakeTree(tmp_path, "/user.slice/user-1000.slice/session-3.scope")
    tree.group("user.slice/user-1000.slice")
    tree.group("user.slice/user-1000.slice/session-3.scope")
    assert "no control group is delegated" in tree.problem()
    tree = FakeTree(tmp_path / "init", "/init.scope")
    tree.group("")
    tree.group("init.scope")
    assert "no control group is delegated" in tree.problem()


def test_controllers_that_are_missing(tmp_path: Path) -> None:
    tree = FakeTree(tmp_path, "/a.scope")
    folder = tree.group("a.scope", delegated=True, controllers="cpu pids")
    assert tree.find() == Place(folder, 2, ("pids",), occupied=True)
    (folder / "cgroup.controllers").write_text("hugetlb\n")
    assert "neither `memory` nor `pids`" in tree.problem()


def test_a_container_that_sees_its_own_group_as_the_top(tmp_path: Path) -> None:
    tree = FakeTree(tmp_path, "/")
    tree.group("")
    place = tree.find()
    assert place.occupied
    (tree.top / "cgroup.procs").write_text("")  # a fake moves nobody
    place.prepare()
    assert (tree.top / "cgroup.subtree_control").read_text() == "+memory +pids"
    (tree.proc / "cgroup").write_text("0::/segserve\n")  # where the kernel has us by then
    tree.group("segserve")
    assert tree.find() == Place(tree.top, 2, ("memory", "pids"))


@pytest.mark.parametrize(
    ("own", "root", "mounted"),
    [("/docker/abc/x.scope", "/docker/abc", True), ("/../../x.scope", "/", False), ("/other", "/docker/abc", False)],
)
def test_a_mount_that_shows_a_part(tmp_path: Path, own: str, root: str, mounted: bool) -> None:
    tree = FakeTree(tmp_path, own, root=root)
    folder = tree.group("x.scope", delegated=True)
    if mounted:
        assert tree.find().folder == folder
    else:
        assert "not mounted here" in tree.problem()


def test_the_files_of_version_2(tmp_path: Path) -> None:
    tree = FakeTree(tmp_path, "/u.service/service")
    unit = tree.group("u.service", delegated=True)
    tree.group("u.service/service")
    (unit / "cgroup.subtree_control").write_text("cpu memory pids")
    group = cgroups.Group((unit / "segserve-a",), (tree.find(),))
    group.make(memory=2**30, processes=100)
    folder = unit / "segserve-a"
    written = {file.name: file.read_text() for file in folder.iterdir()}
    assert written == {"memory.max": str(2**30), "memory.oom.group": "1", "pids.max": "100"}
    assert group.doors == (folder / "cgroup.procs",)
    assert (group.hit(), group.memory(), group.processes()) == ("", 0, [])
    (folder / "memory.stat").write_text("anon 1000\nfile 50000\nkernel 7\nshmem 200\n")
    assert group.memory() == 1200
    # The machine had no memory left: not our limit.
    (folder / "memory.events").write_text("low 0\nhigh 0\nmax 7\noom 0\noom_kill 1\noom_group_kill 0\n")
    assert group.hit() == ""
    (folder / "memory.events").write_text("low 0\nhigh 0\nmax 7\noom 1\noom_kill 3\noom_group_kill 1\n")
    assert group.hit() == "memory"
    (folder / "memory.events").unlink()
    # The limit of the whole service: not ours.
    (folder / "pids.events").write_text("max 3\n")
    (folder / "pids.peak").write_text("40\n")
    assert group.hit() == ""
    (folder / "pids.peak").write_text("100\n")
    assert group.hit() == "pids"


def test_no_controllers_at_all(tmp_path: Path) -> None:
    tree = FakeTree(tmp_path, "/")
    (tree.proc / "mountinfo").write_text("22 1 0:20 / /proc rw,nosuid - proc proc rw\n")
    assert tree.problem() == "no control groups are mounted here"


def test_only_what_has_its_name_is_removed(tmp_path: Path) -> None:
    (tmp_path / "segserve-a").mkdir()
    (tmp_path / "mine").mkdir()
    text = cgroups.Group((tmp_path / "segserve-a", tmp_path / "mine")).to_json()
    assert cgroups.recorded(text, "a").folders == (tmp_path / "segserve-a",)
    assert cgroups.recorded(text, "b").folders == ()
    assert cgroups.recorded("{torn", "a").folders == ()
    assert cgroups.recorded(text, "a").remove()
    assert not (tmp_path / "segserve-a").exists()


@pytest.mark.sandbox
def test_a_group_of_version_2_in_the_kernel() -> None:
    """Entered, killed at once and removed. Its limits need controllers, which version 1 may have here."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    tops = [line.split()[4] for line in mounts if " - cgroup2 " in line]
    assert tops, "no cgroup2 is mounted"
    path = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))[3:]
    own = Path(tops[0]) / path.lstrip("/")
    group = cgroups.Group((own / f"segserve-test{os.getpid()}",), (Place(own, 2, ()),))
    group.make(memory=2**30, processes=100)
    try:
        script = f"echo 0 >{group.doors[0]}; (setsid sleep 300 &); (env -i setsid sleep 300 &); echo in; sleep 300"
        child = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True)
        assert child.stdout is not None
        assert child.stdout.readline() == b"in\n"
        assert len(group.processes()) >= 3
        began = time.monotonic()
        assert group.kill() == []
        assert child.wait() == -9
        assert time.monotonic() - began < 15
        child.stdout.close()
    finally:
        assert group.remove()
    assert not group.folders[0].exists()


@pytest.mark.sandbox
def test_a_group_that_nobody_came_to_remove() -> None:
    """It goes when the next one is made, if it is old and empty."""
    forgotten = cgroups.plan(f"forgotten{os.getpid()}")
    forgotten.make(memory=2**30, processes=10)
    young = cgroups.plan(f"young{os.getpid()}")
    young.make(memory=2**30, processes=10)
    for folder in forgotten.folders:
        os.utime(folder, (0, time.time() - 7200))
    another = cgroups.plan(f"another{os.getpid()}")
    another.make(memory=2**30, processes=10)
    try:
        assert not [folder for folder in forgotten.folders if folder.exists()]
        assert all(folder.exists() for folder in young.folders)
    finally:
        assert all(group.remove() for group in (forgotten, young, another))
