"""What a person can set when segmenting. Lengths in pixels of the image."""

from typing import Dict, NamedTuple, Tuple

import network
import numpy as np
from segserve_sdk import sources


class Settings(NamedTuple):
    """See README.md.

    model: a name (cpsam_v2, cpsam), a file, https://…[#sha256=…], runs:/…, models:/…, or new (random weights).
    diameter: of a typical object; images are scaled so that it becomes 30. 0 = not scaled: Cellpose-SAM sees 7 … 120.
    channel: all (up to three, in any order), or one of red, green, blue.
    flow_threshold, cellprob_threshold, min_size, tile_overlap, augment, tiles_at_once: as in executors/cellpose.
    precision: bfloat16 or float32; auto: bfloat16 on a GPU.
    """

    model: str = "cpsam_v2"
    diameter: float = 0.0
    channel: str = "all"
    flow_threshold: float = 0.4
    cellprob_threshold: float = 0.0
    min_size: int = 15
    tile_overlap: float = 0.1
    augment: bool = False
    tiles_at_once: int = 8
    precision: str = "auto"
    device: str = "auto"


CHANNELS = ("all", "red", "green", "blue")
CHOICES: Dict[str, Tuple[str, ...]] = {"channel": CHANNELS, "device": ("auto", "cpu", "cuda", "mps")}
_PRECISION = {"precision": ("auto", "bfloat16", "float32")}
_LIMITS = {
    "diameter": (0, 10_000),
    "flow_threshold": (0, 100),
    "cellprob_threshold": (-20, 20),
    "min_size": (0, 1e9),
    "tile_overlap": (0.05, 0.5),
    "tiles_at_once": (1, 4096),
}


def problems(chosen: Settings) -> Tuple[str, ...]:
    """What is wrong with the settings, one sentence each."""
    found = []
    for name, allowed in {**CHOICES, **_PRECISION}.items():
        if getattr(chosen, name) not in allowed:
            found.append(f"{name} is '{getattr(chosen, name)}'; it can be {', '.join(allowed)}.")
    for name, (low, high) in _LIMITS.items():
        if not low <= getattr(chosen, name) <= high:
            found.append(f"{name} is {getattr(chosen, name):g}; it lies between {low:g} and {high:g}.")
    wrong = sources.problem(chosen.model, (*network.NAMES, network.NEW))
    return (*found, wrong) if wrong else tuple(found)


def channel_of(image: np.ndarray, channel: str) -> np.ndarray:
    """The image without alpha, or one channel of it.

    Raises:
        ValueError: the image is grey and a colour was asked for.
    """
    if image.ndim == 2:
        if channel != "all":
            raise ValueError(f"the image is grey: channel={channel} needs colours")
        return image
    return image[..., :3] if channel == "all" else image[..., CHANNELS.index(channel) - 1]
