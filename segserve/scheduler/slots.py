"""How many jobs may be driven at a time: by GPUs, and by memory and cores for those that need none."""

from __future__ import annotations

import os
from collections.abc import Mapping

import psutil

from segserve.config import QueueSettings
from segserve.pipeline.submit import CPU, GPU

_SHARE_OF_MEMORY = 0.8


def slots(settings: QueueSettings, gpus: int) -> Mapping[str, int]:
    """Slots per lane. On GPUs one job more than there are cards: it is prepared while the others run."""
    return {GPU: gpus + 1 if gpus else 0, CPU: settings.cpu_slots or _by_memory(settings.slot_memory_gb)}


def _by_memory(slot_gb: float) -> int:
    memory = psutil.virtual_memory().total * _SHARE_OF_MEMORY / 1e9
    return max(1, min(int(memory / slot_gb), len(os.sched_getaffinity(0))))
