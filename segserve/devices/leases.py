"""Leases on whole GPUs, machine-wide for all users, held as long as somebody has a copy of their descriptors."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from segserve import process
from segserve.devices import lockfiles
from segserve.devices.nvml import Gpu, Inventory, gpus, visible
from segserve.errors import NoSlot, UsageError
from segserve.model import COOKIE


def parse(wanted: int | str) -> int | None:
    """`auto` → None, `none` → 0, a number → itself.

    Raises:
        UsageError: it is none of these.
    """
    text = str(wanted).strip().lower()
    if text in ("auto", "none"):
        return None if text == "auto" else 0
    if not text.isascii() or not text.isdigit():
        raise UsageError(f"'{wanted}' is no number of GPUs.", hint="Use --gpus auto, none or a number.")
    return int(text)


def describe(wanted: int | str, *, inventory: Inventory = gpus, folder: Path | None = None) -> str:
    """What a lease would take now, for `--dry-run`: `1 of 2 GPUs; GPU 0 (…) is held by …`."""
    available = visible(inventory)
    count = _count(wanted, available)
    if count == 0:
        return "none (CPU)"
    busy = [reason for gpu in available if (reason := _peek(gpu, folder or lockfiles.shared_folder()))]
    return "; ".join([f"{count} of {len(available)} GPU{'s' if len(available) > 1 else ''}", *busy])


@dataclass(slots=True)
class Lease:
    """GPUs that are ours alone while a copy of `descriptors` is open. Use it in a `with`, or `close` it.

    Closing lets go of *our* copies; a supervisor that was given others goes on holding the GPUs.
    """

    gpus: tuple[Gpu, ...] = ()
    descriptors: tuple[int, ...] = ()
    job: str = ""

    @property
    def uuids(self) -> tuple[str, ...]:
        """What goes into CUDA_VISIBLE_DEVICES."""
        return tuple(gpu.uuid for gpu in self.gpus)

    @property
    def names(self) -> tuple[str, ...]:
        """For people: `GPU 0 (NVIDIA H200)`."""
        return tuple(str(gpu) for gpu in self.gpus)

    def name(self, pid: int) -> None:
        """Write down that process `pid` holds it from now on."""
        for descriptor in self.descriptors:
            lockfiles.write_record(descriptor, lockfiles.Record(lockfiles.user(), self.job, pid, time.time()))

    def close(self) -> None:
        """Let go of our copies (twice is fine). Never unlocks: that would take it from the other holders, too."""
        descriptors, self.descriptors = self.descriptors, ()
        for descriptor in descriptors:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def clear(descriptors: Sequence[int]) -> None:
    """Say that the holder has ended in order and left nothing on the GPU; the lock itself goes with the descriptor."""
    for descriptor in descriptors:
        os.ftruncate(descriptor, 0)


def lease(
    wanted: int | str = "auto",
    *,
    job: str,
    wait: bool = True,
    on_wait: Callable[[str], None] | None = None,
    tick: Callable[[], None] | None = None,
    poll_s: float = 1.0,
    inventory: Inventory = gpus,
    folder: Path | None = None,
) -> Lease:
    """Take whole GPUs, all or none; `auto` is one where there is any.

    Args:
        wanted: a number, `auto` or `none`.
        job: id of the job, shown to those who wait for us.
        wait: wait until enough are free; else fail.
        on_wait: called with a sentence that says who holds them, at first and whenever it changes.
        tick: called at every look, may raise to give up.
        poll_s: seconds between two looks.
        inventory: lists the machine's GPUs.
        folder: where the lock files are (default: one place per machine).

    Raises:
        UsageError: `wanted` means nothing.
        NoSlot: there are not as many GPUs, or they are taken and `wait` is false.
    """
    available = visible(inventory)
    count = _count(wanted, available)
    if count == 0:
        return Lease(job=job)
    where, said = folder or lockfiles.shared_folder(), ""
    while True:
        lease, reasons = _attempt(available, count, where, job)
        if lease is not None:
            return lease
        sentence = "; ".join(reasons)
        if not wait:
            raise NoSlot(
                f"{count} of {len(available)} GPUs asked for, too few are free: {sentence}.",
                hint="Leave --no-wait out to wait for them, or use --gpus none to run on the CPU.",
            )
        if on_wait is not None and sentence != said:
            on_wait(sentence)
        said = sentence
        if tick is not None:
            tick()
        time.sleep(poll_s)
        available = visible(inventory)  # who computes there, and whether a card fell off, changes


def _count(wanted: int | str, available: Sequence[Gpu]) -> int:
    count = parse(wanted)
    if count is None:
        return min(1, len(available))
    if count > len(available):
        seen = "is none" if not available else f"{'is' if len(available) == 1 else 'are'} {len(available)}"
        limited = " that CUDA_VISIBLE_DEVICES leaves to us" if "CUDA_VISIBLE_DEVICES" in os.environ else ""
        raise NoSlot(
            f"{count} GPU{'s' if count > 1 else ''} asked for, but there {seen}{limited}.",
            hint="Use --gpus auto, or --gpus none to run on the CPU.",
        )
    return count


def _attempt(available: Sequence[Gpu], count: int, folder: Path, job: str) -> tuple[Lease | None, list[str]]:
    taken: list[tuple[Gpu, int]] = []
    reasons: list[str] = []
    try:
        for gpu in available:
            if len(taken) == count:
                break
            descriptor, reason = _take(gpu, folder)
            if descriptor is None:
                reasons.append(reason)
            else:
                taken.append((gpu, descriptor))
        if len(taken) == count:
            lease = Lease(tuple(gpu for gpu, _ in taken), tuple(descriptor for _, descriptor in taken), job)
            lease.name(os.getpid())
            taken = []
            return lease, []
    finally:
        for _, descriptor in taken:  # all or none: two that hold one each and want two would wait for ever
            os.close(descriptor)
    return None, reasons


def _take(gpu: Gpu, folder: Path) -> tuple[int | None, str]:
    """A descriptor with the lock, or None and why not."""
    descriptor = lockfiles.open_lock(folder, gpu.uuid)
    kept = False
    try:
        record = lockfiles.read_record(descriptor)
        if not lockfiles.lock(descriptor):
            return None, f"{gpu} is held by {record}"
        # A record that nobody has cleared: its supervisor was killed, and may have left its executor on the card.
        strays = process.marked(COOKIE, f"{record.job}.") if record.job else []
        if strays:
            return None, f"{gpu} is used by what a killed job left: {record}, pid {strays[0].pid}"
        if gpu.users:
            return None, f"{gpu} is used by {', '.join(_who(pid) for pid in gpu.users[:3])}"
        kept = True
        return descriptor, ""
    finally:
        if not kept:
            os.close(descriptor)


def _peek(gpu: Gpu, folder: Path) -> str:
    descriptor, reason = _take(gpu, folder)
    if descriptor is not None:
        os.close(descriptor)
    return reason


def _who(pid: int) -> str:
    with suppress(psutil.Error):
        found = psutil.Process(pid)
        return f"{found.username()} ({lockfiles.printable(found.name())}, pid {pid})"
    return f"pid {pid}"
