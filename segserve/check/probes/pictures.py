"""The probe set: drawn the same on every machine (integers only), bright discs upon a dark, slightly uneven ground."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

Disc = tuple[int, int, int]  # x, y (pixel centre) and radius, in pixels


@dataclass(frozen=True, slots=True)
class Picture:
    """One image: (rows, columns), its discs, and how it is stored."""

    shape: tuple[int, int]
    discs: tuple[Disc, ...]
    bits: int = 8
    colour: bool = False


_ONE: tuple[Disc, ...] = ((28, 30, 9), (70, 24, 11), (120, 34, 8), (36, 84, 12), (84, 92, 9), (132, 88, 11))
_MOVED: tuple[Disc, ...] = tuple((x + 6, y - 4, radius) for x, y, radius in _ONE)
MANY = 1_001

SETS: Mapping[str, Sequence[Picture]] = {
    "one": (Picture((128, 160), _ONE),),
    "sizes": (
        Picture((96, 128), ((30, 30, 9), (90, 64, 10))),
        Picture((160, 112), ((80, 30, 9), (30, 70, 11), (84, 84, 8), (60, 132, 10))),
        Picture((128, 200), ((168, 28, 10), (120, 60, 9), (168, 96, 11), (60, 100, 9), (110, 108, 8))),
    ),
    "16-bit": (Picture((128, 160), _ONE, bits=16),),
    "colour": (Picture((128, 160), _ONE, colour=True),),
    "blank": (Picture((128, 160), ()),),
    "upside-down": (Picture((128, 160), tuple((x, 127 - y, radius) for x, y, radius in _ONE)),),
    "pair": (Picture((128, 160), _ONE), Picture((128, 160), _MOVED)),
    "pair-16-bit": (Picture((128, 160), _ONE, bits=16), Picture((128, 160), _MOVED, bits=16)),
    # Where the disc stands says which image it is: 1,001 are the first number with four digits.
    "many": tuple(Picture((48, 48), ((12 + 8 * (n % 4), 12 + 8 * (n // 4 % 4), 6),)) for n in range(MANY)),
}


def write(name: str, folder: Path) -> Path:
    """The images of one set as PNG files in a new folder."""
    folder.mkdir(parents=True)
    for number, picture in enumerate(SETS[name]):
        cv2.imwrite(str(folder / f"probe-{number}.png"), draw(picture))
    return folder


def draw(picture: Picture) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """The pixels: grey, or BGR as cv2 writes them."""
    rows, columns = np.indices(picture.shape)
    inside = np.zeros(picture.shape, bool)
    for x, y, radius in picture.discs:
        inside |= (columns - x) ** 2 + (rows - y) ** 2 <= radius**2
    # Uneven by a few grey values, the same in an image and its upside-down twin.
    uneven = (columns * 7 + np.minimum(rows, picture.shape[0] - 1 - rows) * 5) % 9
    grey = np.where(inside, 190, 30) + (uneven if picture.discs else 0)
    image = grey.astype(np.uint16) * 257 if picture.bits == 16 else grey.astype(np.uint8)
    return np.dstack([image // 3, image, image // 2]) if picture.colour else image
