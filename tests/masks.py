"""Label masks with everything that breaks converters, and results made from masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from segserve_sdk import contours

from segserve.exporters import Results
from segserve.format import Document
from segserve.format.document import Builder
from segserve.model import StagedImage

Labels = npt.NDArray[np.int32]


def hard_mask() -> Labels:
    """One pixel, lines, touching objects, holes in holes, holes at corners, diagonal neighbours, the image's border."""
    mask = np.zeros((48, 64), np.int32)
    mask[2, 2] = 1  # one pixel
    mask[4, 2:9] = 2  # a line
    mask[6:11, 2:9], mask[6:11, 9:14] = 3, 4  # touching
    mask[14:24, 2:14] = 5  # a ring with an object in it, which has a hole itself
    mask[16:22, 4:12] = 0
    mask[17:21, 5:11] = 6
    mask[18:20, 7:9] = 0
    mask[26, 2], mask[27, 3], mask[28, 2] = 7, 7, 7  # a diagonal zigzag
    for row, column in ((31, 3), (31, 4), (32, 2), (32, 4), (33, 2), (33, 3)):
        mask[row, column] = 8  # two L that touch at two corners and close a hole
    mask[36:40, 2:10] = 9
    mask[37, 3] = mask[38, 4] = mask[37, 6] = mask[37, 8] = 0  # holes that touch at a corner
    mask[0:5, 50:64], mask[47, 63], mask[40:48, 30:34] = 10, 11, 12  # the border and its corner
    mask[10:30, 20:40], mask[10:30, 40:44] = 13, 14
    mask[12:28, 22:38][np.add.outer(np.arange(16), np.arange(16)) % 2 == 0] = 0  # a chessboard of holes
    mask[30, 20:24], mask[31, 24], mask[32, 25:28] = 15, 15, 15
    return mask


def random_masks() -> st.SearchStrategy[Labels]:
    """Small masks in which labels touch, enclose and interleave."""
    shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))
    return shapes.flatmap(lambda shape: arrays.arrays(np.int32, shape, elements=st.integers(0, 3)))


def document(masks: Sequence[Labels], *, scores: bool = True, labels: Sequence[str] = ("Cell",)) -> Document:
    """Format 0.2 of label masks, one per image."""
    builder = Builder()
    for mask in masks:
        found = contours.polygons(mask)
        names = [labels[label % len(labels)] for label, _ in found]
        values = [0.5 + label / 1000 if scores else np.nan for label, _ in found]
        builder.add_image([ring.tolist() for _, ring in found], names, values)
    return builder.build("https://host/group/executor#abc", "0.2")


def image(number: int, mask: Labels, source: str = "/data/plate/cells.tif", **changes: Any) -> StagedImage:
    """The image that a mask belongs to."""
    rows, columns = mask.shape
    return StagedImage(f"{number:05d}.png", source, (rows, columns), 1, "uint16", f"{number:064x}", **changes)


def results(masks: Sequence[Labels], **changes: Any) -> Results:
    """One file per mask."""
    images = [image(number, mask, f"/data/plate/cells{number}.tif", **changes) for number, mask in enumerate(masks)]
    return Results(document(masks), images)


def truth(found: Results, index: int) -> Labels:
    """The mask of one image with `object_id` as values, painted from the document."""
    one = found.document.image(index)
    rings = ((number + 1, one.ring(number)) for number in range(len(one)))
    return contours.mask(rings, found.images[index].shape)
