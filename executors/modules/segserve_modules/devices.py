"""Which device a module runs on: what was asked for, what it supports, what there is."""

import os
from typing import Callable, Sequence

from segserve_modules.session import ModuleError

AUTO = "auto"
_FOR_TORCH = {"cpu": "cpu", "gpu": "cuda", "mps": "mps"}


def choose(asked: str, supported: Sequence[str], default: str, say: Callable[[str, str], None]) -> str:
    """The device in torch's words: cpu, cuda or mps.

    asked: `auto` (the module's default, where this machine has it, else the CPU with a warning) or a device by name.

    Raises:
        ModuleError: the device that was asked for, or the only one that the module supports, is not here.
    """
    wanted = default if asked == AUTO else asked
    if wanted == "cpu" or _is_here(wanted):
        return _FOR_TORCH[wanted]
    if asked != AUTO or "cpu" not in supported:
        why = "was asked for" if asked != AUTO else "is all that this module supports"
        raise ModuleError(f"The device '{wanted}' {why}, and this job has none. Lease one: --gpus 1.")
    say("WARNING", f"This job has no {wanted}; the module runs on the CPU.")
    return "cpu"


def _is_here(device: str) -> bool:
    leased = os.environ.get("CUDA_VISIBLE_DEVICES")  # segserve sets it; empty means none
    if device == "gpu" and leased is not None:
        return bool(leased.strip())
    try:
        import torch
    except ImportError:
        return False
    if device == "gpu":
        return bool(torch.cuda.is_available())
    backend = getattr(torch.backends, "mps", None)
    return backend is not None and bool(backend.is_available())
