"""Which GPUs there are (NVML), who computes on them, and which of them a scheduler left to us."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, or one MIG slice of it. `memory` is in bytes, `capability` the CUDA one, `users` pids that compute,
    `minor` the number of its device file (/dev/nvidia<minor>).
    """

    uuid: str
    index: int
    name: str
    memory: int
    capability: tuple[int, int]
    users: tuple[int, ...] = ()
    minor: int = -1

    def __str__(self) -> str:
        return f"GPU {self.index} ({self.name})"


Inventory = Callable[[], Sequence[Gpu]]


def gpus() -> tuple[Gpu, ...]:
    """All GPUs that NVML shows, in its order; none without an NVIDIA driver. MIG slices stand for their GPU."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver, no library, no permission: no GPU for us
        return ()
    try:
        found: list[Gpu] = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            with suppress(pynvml.NVMLError):  # one that fell off the bus does not hide the others
                found += _of_board(pynvml, index)
        return tuple(found)
    except pynvml.NVMLError:
        return ()
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA that the driver knows, None without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        number = int(pynvml.nvmlSystemGetCudaDriverVersion_v2())
        return number // 1000, number % 1000 // 10
    except pynvml.NVMLError:
        return None
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _of_board(nvml: Any, index: int) -> list[Gpu]:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    capability = tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle))
    slices = list(_slices(nvml, handle))
    return [
        Gpu(
            uuid=_text(nvml.nvmlDeviceGetUUID(device)),
            index=index,
            name=_text(nvml.nvmlDeviceGetName(device)),
            memory=int(nvml.nvmlDeviceGetMemoryInfo(device).total),
            capability=(int(capability[0]), int(capability[1])),
            users=_users(nvml, device),
            minor=_minor(nvml, handle),
        )
        for device in slices or [handle]
    ]


def _slices(nvml: Any, handle: Any) -> Iterator[Any]:
    try:
        if nvml.nvmlDeviceGetMigMode(handle)[0] != nvml.NVML_DEVICE_MIG_ENABLE:
            return
        count = nvml.nvmlDeviceGetMaxMigDeviceCount(handle)
    except nvml.NVMLError:  # this card cannot do MIG
        return
    for number in range(count):
        with suppress(nvml.NVMLError):  # a number without a slice
            yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)


def _minor(nvml: Any, handle: Any) -> int:
    with suppress(nvml.NVMLError):  # not where a driver has no device files (WSL)
        return int(nvml.nvmlDeviceGetMinorNumber(handle))
    return -1


def _users(nvml: Any, device: Any) -> tuple[int, ...]:
    # A desktop's compositor and browser are listed as graphics, too ("C+G"): they are no competitors.
    try:
        compute = {entry.pid for entry in nvml.nvmlDeviceGetComputeRunningProcesses(device)}
    except nvml.NVMLError:
        return ()
    with suppress(nvml.NVMLError):
        compute -= {entry.pid for entry in nvml.nvmlDeviceGetGraphicsRunningProcesses(device)}
    return tuple(sorted(compute))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def visible(inventory: Inventory = gpus, environ: Mapping[str, str] = os.environ) -> tuple[Gpu, ...]:
    """The GPUs that a scheduler left to us by `CUDA_VISIBLE_DEVICES`: indices (NVML's order), or UUIDs or their start.

    As CUDA does it: the first entry that names nothing, or nothing new, ends the list; empty or `-1` is none.
    """
    everything = tuple(inventory())
    wanted = environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return everything
    chosen: list[Gpu] = []
    for entry in (part.strip() for part in wanted.split(",")):
        if entry.isdigit():
            matches = [gpu for gpu in everything if gpu.index == int(entry)]
        else:
            matches = [gpu for gpu in everything if entry and gpu.uuid.startswith(entry)]
        if not matches or (len(matches) > 1 and not entry.isdigit()) or matches[0] in chosen:
            break
        chosen += matches
    return tuple(chosen)
