"""Leases on GPUs that do not exist, with real lock files and real processes; NVML's answers by a stand-in."""

from __future__ import annotations

import json
import os
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from segserve import devices
from segserve.devices import Gpu, lockfiles
from segserve.devices import nvml as nvml_module
from segserve.errors import BackendError, NoSlot, UsageError


class FakeGpus:
    """The inventory of a machine with some GPUs."""

    def __init__(self, count: int) -> None:
        self.gpus = [Gpu(f"GPU-{number}{number}-x", number, "Fake", 2**30, (9, 0)) for number in range(count)]

    def __call__(self) -> list[Gpu]:
        return self.gpus


@pytest.fixture(autouse=True)
def _no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def take(folder: Path, gpus: FakeGpus, wanted: int | str = 1, **more: Any) -> devices.Lease:
    return devices.lease(wanted, **{"job": "job", "wait": False, "inventory": gpus, "folder": folder, **more})


def test_this_machine_can_be_asked() -> None:
    assert all(gpu.uuid.startswith(("GPU-", "MIG-")) for gpu in devices.gpus())


def test_auto_is_one_gpu_where_there_is_one(tmp_path: Path) -> None:
    assert take(tmp_path, FakeGpus(0), "auto").uuids == ()
    assert take(tmp_path, FakeGpus(2), "none").uuids == ()
    with take(tmp_path, FakeGpus(2), "auto") as lease:
        assert lease.uuids == ("GPU-00-x",)
        assert lease.names == ("GPU 0 (Fake)",)
    assert list(tmp_path.iterdir())


@pytest.mark.parametrize("wanted", ["some", "-1", "1.5", "", "²"])
def test_no_number_of_gpus(tmp_path: Path, wanted: str) -> None:
    with pytest.raises(UsageError, match="is no number"):
        take(tmp_path, FakeGpus(1), wanted)


@pytest.mark.parametrize(("count", "says"), [(0, "there is none"), (1, "there is 1"), (2, "there are 2")])
def test_more_than_there_are_is_refused_at_once(tmp_path: Path, count: int, says: str) -> None:
    with pytest.raises(NoSlot, match=says):
        take(tmp_path, FakeGpus(count), 3, wait=True)


def test_a_gpu_is_held_by_one_and_the_others_are_told_by_whom(tmp_path: Path) -> None:
    gpus = FakeGpus(2)
    with take(tmp_path, gpus, job="first") as first, take(tmp_path, gpus) as second:
        assert first.uuids + second.uuids == ("GPU-00-x", "GPU-11-x")
        with pytest.raises(NoSlot, match=rf"GPU 0 \(Fake\) is held by \w+ \(job first, pid {os.getpid()}, since"):
            take(tmp_path, gpus)
        assert "1 of 2 GPUs; GPU 0 (Fake) is held by" in devices.describe("auto", inventory=gpus, folder=tmp_path)
    with take(tmp_path, gpus, 2) as both:
        assert both.uuids == ("GPU-00-x", "GPU-11-x")
    assert devices.describe(2, inventory=gpus, folder=tmp_path) == "2 of 2 GPUs"
    assert devices.describe("none", inventory=gpus, folder=tmp_path) == "none (CPU)"


def test_waiting(tmp_path: Path) -> None:
    gpus = FakeGpus(1)
    said: list[str] = []
    ticks: list[float] = []
    lease = take(tmp_path, gpus)
    threading.Timer(0.3, lease.close).start()
    with take(
        tmp_path, gpus, wait=True, poll_s=0.02, on_wait=said.append, tick=lambda: ticks.append(time.monotonic())
    ) as second:
        assert second.uuids == ("GPU-00-x",)
    assert len(said) == 1
    assert "is held by" in said[0]
    assert 3 < len(ticks) < 20


def test_all_or_none(tmp_path: Path) -> None:
    gpus = FakeGpus(3)
    with take(tmp_path, gpus, 2):
        with pytest.raises(NoSlot):
            take(tmp_path, gpus, 2)
        take(tmp_path, gpus, 1).close()  # the third was not kept


def test_giving_up_while_waiting(tmp_path: Path) -> None:
    def tick() -> None:
        raise KeyboardInterrupt

    with take(tmp_path, FakeGpus(1)), pytest.raises(KeyboardInterrupt):
        take(tmp_path, FakeGpus(1), wait=True, tick=tick)


def test_somebody_who_computes_there_counts(tmp_path: Path) -> None:
    gpus = FakeGpus(1)
    gpus.gpus[0] = replace(gpus.gpus[0], users=(os.getpid(), 2**22 + 1))
    with pytest.raises(NoSlot, match=rf"is used by \w+ \(\S+, pid {os.getpid()}\), pid {2**22 + 1}"):
        take(tmp_path, gpus)
    gpus.gpus[0] = replace(gpus.gpus[0], users=())
    take(tmp_path, gpus).close()


@pytest.mark.parametrize(
    ("value", "indices"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("-1", []),
        ("1", [1]),
        ("2,0", [2, 0]),
        ("0, 2", [0, 2]),
        ("1,-1,2", [1]),
        ("1,7,2", [1]),
        ("GPU-22-x,GPU-00-x", [2, 0]),
        ("GPU-1", [1]),
        ("GPU-", []),  # ambiguous
        ("NoDevFiles", []),
        ("1,1", [1]),
    ],
)
def test_what_a_scheduler_left_to_us(value: str | None, indices: list[int]) -> None:
    environ = {} if value is None else {"CUDA_VISIBLE_DEVICES": value}
    assert [gpu.index for gpu in devices.visible(FakeGpus(3), environ)] == indices


def test_a_copy_of_the_descriptor_holds_the_lease(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    gpus = FakeGpus(1)
    with take(tmp_path, gpus) as lease:
        socket.send_fds(ours, [b"x"], list(lease.descriptors))
    _, copies, _, _ = socket.recv_fds(theirs, 1, 4)
    with pytest.raises(NoSlot):
        take(tmp_path, gpus)
    devices.clear(copies)
    os.close(copies[0])
    take(tmp_path, gpus).close()
    ours.close()
    theirs.close()


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"\xff\x00",
        b"[]",
        b'{"user": 1}',
        b'{"user": "\\u001b[31mroot", "job": "x", "pid": 1e999, "since": NaN}',
        b'{"user": "\\u001b[31mroot", "job": "j\\n", "pid": 7, "since": 1e300}',
        b"[" * 5000,
    ],
)
def test_what_others_wrote_is_not_believed(tmp_path: Path, record: bytes) -> None:
    with take(tmp_path, FakeGpus(1)):
        (tmp_path / "GPU-00-x.lock").write_bytes(record)
        with pytest.raises(NoSlot) as caught:
            take(tmp_path, FakeGpus(1))
    assert caught.value.message.isprintable()


def _link(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def _hard_link(path: Path, victim: Path) -> None:
    path.hardlink_to(victim)


def _pipe(path: Path, victim: Path) -> None:
    os.mkfifo(path)


def _folder(path: Path, victim: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("trap", [_link, _hard_link, _pipe, _folder])
def test_traps_in_the_shared_folder(tmp_path: Path, trap: Any) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    trap(tmp_path / "GPU-00-x.lock", victim)
    with pytest.raises(BackendError, match=r"GPU-00-x\.lock"):
        take(tmp_path, FakeGpus(1))
    assert victim.read_text() == "precious"


def test_a_removed_lock_file_is_not_taken_for_a_lock(tmp_path: Path) -> None:
    descriptor = lockfiles.open_lock(tmp_path, "GPU-00-x")
    (tmp_path / "GPU-00-x.lock").unlink()
    assert not lockfiles.lock(descriptor)
    os.close(descriptor)


def test_the_shared_folder_is_for_all_users(tmp_path: Path) -> None:
    public = tmp_path / "tmp"
    public.mkdir()
    public.chmod(0o1777)
    before = os.umask(0o077)
    try:
        folder = devices.shared_folder([tmp_path / "missing", tmp_path, public])
        assert folder.parent == public
        assert stat.S_IMODE(folder.stat().st_mode) == 0o1777
        take(folder, FakeGpus(1)).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE((folder / "GPU-00-x.lock").stat().st_mode) == 0o666
    folder.chmod(0o755)
    with pytest.raises(BackendError, match="mode 1777"):
        devices.shared_folder([public])
    (folder / "GPU-00-x.lock").unlink()
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(BackendError, match="mode 1777"):
        devices.shared_folder([public])
    with pytest.raises(BackendError, match="no folder that all its users"):
        devices.shared_folder([tmp_path])


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that other users can reach (pytest's cannot be)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o1777)
        yield folder


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be two users")
def test_two_users_share_a_machine(public_folder: Path) -> None:
    def as_nobody() -> str:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.setgid(65534)
            os.setuid(65534)
            try:
                with take(public_folder, FakeGpus(1), job="theirs"):
                    os.write(write, b"got it")
            except BackendError as error:
                os.write(write, error.message.encode())
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        os.close(write)
        with os.fdopen(read) as stream:
            return stream.read()

    with take(public_folder, FakeGpus(1), job="ours"):
        assert "is held by root (job ours" in as_nobody()
    assert as_nobody() == "got it"
    (public_folder / "GPU-00-x.lock").unlink()
    assert as_nobody() == "got it"  # the file is theirs now
    take(public_folder, FakeGpus(1)).close()
    assert as_nobody() == "got it"


def test_many_processes_want_one_gpu(tmp_path: Path) -> None:
    pids = []
    for _ in range(6):
        pid = os.fork()
        if pid == 0:
            for _ in range(3):
                with take(tmp_path, FakeGpus(1), wait=True, poll_s=0.005):
                    os.close(os.open(tmp_path / "inside", os.O_CREAT | os.O_EXCL))  # fails if another is inside
                    time.sleep(0.005)
                    (tmp_path / "inside").unlink()
            os._exit(0)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 6


@dataclass
class FakeNvml:
    """NVML's answers for one machine: a card in MIG mode with two slices, one plain card, one that is lost."""

    NVML_DEVICE_MIG_ENABLE = 1

    class NVMLError(Exception):
        """As pynvml's."""

    def _no(self, *_: object) -> None:
        raise self.NVMLError

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return ["mig", "plain", "lost"][index]

    def nvmlDeviceGetMigMode(self, handle: str) -> list[int]:
        if handle == "plain":
            self._no()
        return [1, 1]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: str) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: str, number: int) -> str:
        if number not in (0, 3):
            self._no()
        return f"slice{number}"

    def nvmlDeviceGetCudaComputeCapability(self, handle: str) -> list[int]:
        if handle == "lost":
            self._no()
        return [9, 0]

    def nvmlDeviceGetUUID(self, handle: str) -> bytes | str:
        answers: dict[str, bytes | str] = {"plain": "GPU-p", "slice0": b"MIG-0", "slice3": "MIG-3"}
        return answers[handle]

    def nvmlDeviceGetMinorNumber(self, handle: str) -> int:
        if handle == "mig":
            self._no()
        return 5

    def nvmlDeviceGetName(self, handle: str) -> str:
        return handle

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        return SimpleNamespace(total=2**34)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=30), SimpleNamespace(pid=20), SimpleNamespace(pid=10)] if handle == "plain" else []

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=20)]


def test_mig_slices_and_users_of_a_card() -> None:
    nvml = FakeNvml()
    found = [gpu for index in (0, 1) for gpu in nvml_module._of_board(nvml, index)]
    assert [(gpu.uuid, gpu.index, gpu.users) for gpu in found] == [
        ("MIG-0", 0, ()),
        ("MIG-3", 0, ()),
        ("GPU-p", 1, (10, 30)),
    ]
    assert {gpu.capability for gpu in found} == {(9, 0)}
    assert [gpu.minor for gpu in found] == [-1, -1, 5]
    with pytest.raises(nvml.NVMLError):
        nvml_module._of_board(nvml, 2)
    assert [gpu.uuid for gpu in devices.visible(lambda: found, {"CUDA_VISIBLE_DEVICES": "MIG-3"})] == ["MIG-3"]


def test_the_record_names_the_supervisor(tmp_path: Path) -> None:
    with take(tmp_path, FakeGpus(1), job="j") as lease:
        lease.name(4711)
        assert json.loads((tmp_path / "GPU-00-x.lock").read_text())["pid"] == 4711
