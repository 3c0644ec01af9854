"""Cellpose 4: its import, also where torchvision's compiled part does not fit torch, and its networks."""

import os
from pathlib import Path
from typing import Any

from segserve_sdk.sources import NoModel
from segserve_sdk.weights import fetch

NAMES = ("cpsam_v2", "cpsam")
NEW = "new"
URL = "https://huggingface.co/mouseland/cellpose-sam/resolve/main"
_OPERATORS = ("nms", "qnms")  # those that torchvision describes while it is imported, whether it has them or not


def cellpose() -> Any:
    """`cellpose.models`."""
    _import_torchvision()
    from cellpose import models

    return models


def _import_torchvision() -> None:
    """torchvision, whose wheels hold operators compiled for one build of torch.

    With another build (a CPU torch with the wheel for CUDA) they are not loaded, and its import fails on describing
    them. Cellpose needs none of them, only functions in Python: they are declared here, so that the import passes. Who
    called one would be told that it has no kernel.
    """
    import torch

    try:
        import torchvision
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        global _declared  # noqa: PLW0603 - the declaration lives as long as this object
        _declared = torch.library.Library("torchvision", "DEF")
        for name in _OPERATORS:
            _declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401


_declared: Any = None


def weights_of(name: str) -> Path:
    """The file of one of `NAMES`: where Cellpose keeps its models, or downloaded (1.2 GB).

    Not by the package's own function: that one switches the check of certificates off, for the whole process.

    Raises:
        WeightsError: it cannot be had.
    """
    kept = Path(os.environ.get("CELLPOSE_LOCAL_MODELS_PATH") or Path.home() / ".cellpose" / "models") / name
    return kept if kept.is_file() else fetch(f"{URL}/{name}", name=name)


def load(weights: Path, device: Any, *, half: bool) -> Any:
    """A `CellposeModel` with the network in a file, in bfloat16 (`half`) or float32.

    Raises:
        NoModel: the file holds no network of Cellpose 4.
    """
    import torch

    models = cellpose()
    try:
        state = torch.load(str(weights), map_location="cpu", weights_only=True, mmap=True)  # nothing is unpickled
    except Exception as error:  # whatever a damaged file makes of torch
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NoModel(f"'{weights}' holds no weights that can be loaded: {first}") from error
    if not isinstance(state, dict) or "W2" not in state:
        raise NoModel(f"'{weights}' holds no network of Cellpose 4; executors/cellpose runs those of Cellpose 3.")
    return models.CellposeModel(pretrained_model=str(weights), device=device, use_bfloat16=half)


def new(device: Any, *, half: bool) -> Any:
    """A `CellposeModel` with random weights: it finds nothing sensible, but everything around it can be tried.

    The package makes models from files only, and this one's would have 1.2 GB.
    """
    import torch

    models = cellpose()
    from cellpose.vit import CPSAM

    torch.manual_seed(0)
    model = models.CellposeModel.__new__(models.CellposeModel)
    model.device, model.gpu = device, device.type != "cpu"
    model.pretrained_model, model.backbone = NEW, "sam_vitl"
    model.net = CPSAM(dtype=torch.bfloat16 if half else torch.float32).to(device).eval()
    return model
