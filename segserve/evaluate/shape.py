"""How long the outline of an object is, from its runs of pixels."""

from __future__ import annotations

import math

import numpy as np

from segserve.evaluate.runs import Runs
from segserve.format.document import Floats, Integers


def crossings(runs: Runs, count: int) -> Floats:
    """(count, 3) how often lines through pixel centres cross the outline of each object, holes included.

    Columns: the lines along rows, those along columns, those along both diagonals. A line enters an object as often as
    it leaves it; it enters wherever a pixel of the object has none of the object before it.
    """
    pixels = runs.areas(count)
    entries = [np.bincount(runs.owner, minlength=count).astype(np.float64)]  # a run is one entry
    entries += [pixels - _shared(runs, count, shift) for shift in (0, -1, 1)]
    along_rows, along_columns, *diagonal = (2 * values for values in entries)
    return np.stack([along_rows, along_columns, sum(diagonal)], axis=1)


def _shared(runs: Runs, count: int, shift: int) -> Floats:
    """(count,) pixels of each object that have a pixel of it in the next row, `shift` columns further."""
    if not len(runs.row):
        return np.zeros(count)
    # All rows of all objects on one line of numbers, one behind the other, with room for the shift between them.
    width = int(runs.stop.max()) + 3
    height = int(runs.row.max()) + 2
    line = (runs.owner * height + runs.row) * width + 1
    start, stop = line + runs.start, line + runs.stop
    before = np.cumsum(stop - start) - (stop - start)

    def covered(position: Integers) -> Integers:
        """How many pixels lie before a position."""
        run = np.searchsorted(start, position, "right") - 1
        inside = np.minimum(position, stop[run]) - start[run]
        return np.where(run < 0, 0, before[run] + inside)

    step = width + shift
    return np.bincount(runs.owner, covered(stop + step) - covered(start + step), count).astype(np.float64)


def perimeters(crossings: Floats, pixel: tuple[float, float] = (1.0, 1.0)) -> Floats:
    """(m,) length of the outline by Crofton's formula in four directions; `pixel` is the width and height of a pixel.

    Half the integral of crossings over all lines, with the lines of each direction standing for the directions that
    are nearest to it. For square pixels this is `skimage.measure.perimeter_crofton(directions=4)`. Source: Legland,
    Kiêu, Devaux, Computation of Minkowski measures on 2D and 3D binary images, Image Anal. Stereol. 26 (2007).
    """
    width, height = pixel
    diagonal = math.atan2(height, width)  # between rows and diagonals
    weights = np.array(
        (
            height * diagonal,
            width * (math.pi / 2 - diagonal),
            width * height / math.hypot(width, height) * math.pi / 4,
        )
    )
    return np.asarray(crossings @ weights / 2)
