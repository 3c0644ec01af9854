"""What is read: images with names, whose objects are loaded one image at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from segserve.evaluate import Objects


@dataclass(frozen=True, slots=True)
class SideImage:
    """One image: its `name` ("" where the file does not tell), its COCO `number`, and how to get its objects."""

    name: str
    load: Callable[[], Objects]
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison. `listed` is False for COCO's results form: images without objects are missing."""

    path: Path
    kind: str
    images: tuple[SideImage, ...]
    notes: tuple[str, ...] = ()
    listed: bool = True
