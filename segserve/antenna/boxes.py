"""Polygons → boxes → crops.

Polygons go through pixel centres (format 0.2); boxes are corners of pixels, x2 and y2 behind the last one, as image
libraries crop: the polygon of the single pixel at (3, 4) has the box 3, 4, 4, 5.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segserve.antenna.chains import Box
from segserve.format import Document

Array = NDArray[Any]


def boxes(document: Document, shape: tuple[int, int]) -> list[Box]:
    """The box of every object, clipped to an image of `shape` (rows, columns); one outside of it is at its edge."""
    if not len(document):
        return []
    starts = document.offsets[:-1].astype(np.intp)
    first = np.floor(np.minimum.reduceat(document.coordinates, starts, axis=0) + 0.5)
    last = np.floor(np.maximum.reduceat(document.coordinates, starts, axis=0) + 0.5) + 1
    size = np.array([shape[1], shape[0]], np.float64)
    first = np.clip(first, 0, size - 1)
    last = np.maximum(np.clip(last, 0, size), first + 1)
    return [(x1, y1, x2, y2) for (x1, y1), (x2, y2) in zip(first.tolist(), last.tolist(), strict=True)]


def crop(image: Array, box: Box, margin: int = 0) -> Array:
    """The pixels of a box and of `margin` pixels around it, as far as they lie in the image; empty if none does."""
    rows, columns = image.shape[:2]
    left, top = _inside(np.floor(box[0]) - margin, columns), _inside(np.floor(box[1]) - margin, rows)
    right, bottom = _inside(np.ceil(box[2]) + margin, columns), _inside(np.ceil(box[3]) + margin, rows)
    return image[top : max(top, bottom), left : max(left, right)]


def whole(shape: tuple[int, int]) -> Box:
    """The box of a whole image of `shape` (rows, columns)."""
    return (0.0, 0.0, float(shape[1]), float(shape[0]))


def _inside(value: float, size: int) -> int:
    return int(min(max(value, 0), size))
