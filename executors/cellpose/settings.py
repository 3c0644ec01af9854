"""What a person can set when segmenting. Lengths in pixels of the image."""

from typing import Dict, NamedTuple, Tuple

import network
from segserve_sdk import sources

CHANNELS = ("grey", "red", "green", "blue")  # cellpose's numbers 0 … 3
NUCLEI = ("none", "red", "green", "blue")
DEVICES = ("auto", "cpu", "cuda", "mps")


class Settings(NamedTuple):
    """See README.md.

    model: a name of Cellpose 3, a file, https://…[#sha256=…], runs:/…, models:/….
    diameter: of a typical object; 0 = estimated by the model (cyto3, cyto2, cyto, nuclei), else that of its training.
    channel, nucleus: which channel to segment, and which one shows nuclei.
    flow_threshold: greatest error of the flows; higher keeps more and stranger objects, 0 keeps all.
    cellprob_threshold: lower makes objects larger and more numerous (-6 … 6).
    min_size: smaller objects (square pixels) are dropped.
    invert: dark objects on bright ground.
    tile, tile_overlap: width of the tiles that the network sees, and which share of them overlaps.
    augment: average over flipped tiles, four times slower.
    tiles_at_once: tiles per step; less needs less memory.
    """

    model: str = "cyto3"
    diameter: float = 0.0
    channel: str = "grey"
    nucleus: str = "none"
    flow_threshold: float = 0.4
    cellprob_threshold: float = 0.0
    min_size: int = 15
    invert: bool = False
    tile: int = 224
    tile_overlap: float = 0.1
    augment: bool = False
    tiles_at_once: int = 8
    device: str = "auto"


CHOICES: Dict[str, Tuple[str, ...]] = {"channel": CHANNELS, "nucleus": NUCLEI, "device": DEVICES}


def problems(settings: Settings) -> Tuple[str, ...]:
    """What is wrong with the settings, one sentence each."""
    found = [
        f"{name} is '{getattr(settings, name)}'; it can be {', '.join(allowed)}."
        for name, allowed in CHOICES.items()
        if getattr(settings, name) not in allowed
    ]
    limits = {
        "diameter": (0, 10_000),
        "flow_threshold": (0, 100),
        "cellprob_threshold": (-20, 20),
        "min_size": (0, 1e9),
        "tile": (32, 4096),
        "tile_overlap": (0.05, 0.5),
        "tiles_at_once": (1, 4096),
    }
    for name, (low, high) in limits.items():
        value = getattr(settings, name)
        if not low <= value <= high:
            found.append(f"{name} is {value:g}; it lies between {low:g} and {high:g}.")
    wrong = sources.problem(settings.model, network.NAMES)
    return (*found, wrong) if wrong else tuple(found)


def channels_of(channel: str, nucleus: str) -> Tuple[int, int]:
    """Cellpose's pair of numbers."""
    return CHANNELS.index(channel), NUCLEI.index(nucleus)
