"""Which device to compute on. No deep-learning library is imported here; one that you have may be asked."""

import os
import platform
from pathlib import Path
from typing import Any, List, Optional

KINDS = ("cuda", "mps", "cpu")


def choose(wish: str = "auto", torch: Optional[Any] = None) -> str:
    """`cuda`, `mps` or `cpu`: what was wished for, or with `auto` the best that is visible.

    segserve shows an executor the GPUs that it has leased, and no others (`CUDA_VISIBLE_DEVICES`). `torch` is the
    module, if you have imported it: then a GPU counts only when this build of it can compute there.

    Raises:
        ValueError: there is no such kind.
        RuntimeError: the device that was asked for cannot be used.
    """
    if wish == "auto":
        return next(kind for kind in KINDS if usable(kind, torch))
    if wish not in KINDS:
        raise ValueError(f"there is no device '{wish}': choose auto, {', '.join(KINDS)}")
    if not usable(wish, torch):
        raise RuntimeError(f"the device '{wish}' was asked for, but it cannot be used here; try 'auto' or 'cpu'")
    return wish


def usable(kind: str, torch: Optional[Any] = None) -> bool:
    """Whether a kind of device is visible, and with `torch` whether it can compute there."""
    if kind == "cpu":
        return True
    visible = _cuda_visible() if kind == "cuda" else _mps_visible()
    return visible and (torch is None or _computes(torch, kind))


def onnx_providers(device: str) -> List[str]:
    """The `providers` of an onnxruntime session for a device of `choose`; what is not installed is not used."""
    first = {"cuda": ["CUDAExecutionProvider"], "mps": ["CoreMLExecutionProvider"]}.get(device, [])
    return [*first, "CPUExecutionProvider"]


def _cuda_visible() -> bool:
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None and listed.split(",")[0].strip() in ("", "-1", "none", "NoDevFiles"):
        return False
    # /dev/dxg: Windows' own driver under WSL.
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()


def _mps_visible() -> bool:
    return platform.system() == "Darwin" and platform.machine() == "arm64"


def _computes(torch: Any, kind: str) -> bool:
    backend = torch.cuda if kind == "cuda" else getattr(torch.backends, "mps", None)
    if backend is None or not backend.is_available():
        return False
    try:
        # An old build sees a new GPU and fails with the first thing that it computes ("no kernel image").
        return float(torch.ones(2, device=kind).sum()) == 2.0
    except RuntimeError as error:
        print(f"the device '{kind}' is there, but torch cannot use it: {error}", flush=True)
        return False
