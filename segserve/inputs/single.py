"""One image at once, in memory: for services, whose images come one by one and go on to a process that waits."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from segserve.errors import TooLarge, UnreadableImage
from segserve.inputs import kinds, scaling
from segserve.inputs.base import Array, Unusable
from segserve.inputs.pixels import image
from segserve.inputs.selection import Selection, choose

# What people put on the web; the others need choices, or open further files.
_PICTURES = frozenset({"png", "jpeg", "tiff", "bmp"})


def foreign(head: bytes) -> str:
    """Why a file that starts with `head` is no picture; "" when it is one."""
    try:
        kind = kinds.kind_of(head[:32], "")
    except Unusable as problem:
        return f"it {problem.message}"
    return "" if kind in _PICTURES else f"it is {kind.upper()}, not PNG, JPEG, TIFF or BMP"


def decoded(path: Path, *, max_pixels: int) -> Array:
    """The pixels of a picture as staging writes them: (rows, columns) or (rows, columns, 3) as RGB, uint8 or uint16.

    Raises:
        UnreadableImage: it is none, is damaged, or holds more than one.
        TooLarge: its header declares more than `max_pixels`.
    """
    try:
        source = kinds.inspect(str(path), path.name)
        requests = choose(source, Selection()) if source.kind in _PICTURES else []
        if len(requests) != 1:
            raise UnreadableImage(f"The image is {source.kind.upper()} with {len(requests)} pictures, not one picture.")
        series = source.series[requests[0].series]
        rows, columns = series.shape
        if rows * columns > max_pixels:
            raise TooLarge(f"The image has {columns} × {rows} pixels; {max_pixels} are allowed.")
        with kinds.opened(source) as planes:
            values = image(planes, requests[0], series)
        kind = values.dtype.name
        scale = scaling.fixed(kind, None) or scaling.fitted(*scaling.value_range([values]), kind, None)
    except Unusable as problem:
        raise UnreadableImage(f"The image {problem.message}.") from None
    return np.ascontiguousarray(scaling.apply(values, scale))
