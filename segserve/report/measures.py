"""What is measured on every object: its size and place, its outline, in pixels and in micrometres."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from segserve.evaluate import runs as rows
from segserve.evaluate import shape
from segserve.evaluate.runs import Runs
from segserve.format import Document, geometry, rules
from segserve.format.document import Floats, Integers
from segserve.model import StagedImage

BATCH = 1 << 22  # rows crossed by the edges of the rings whose pixels are listed at once


@dataclass(frozen=True, slots=True)
class Measures:
    """Per object, all in pixels: `ids` (m,) from 1 within its image, `areas` (m,), `centroids` (m, 2), `boxes` (m, 4),
    `perimeters` (m,) and `circularities` (m,). `perimeters_um` (m,) in micrometres. NaN: not known.
    """

    ids: Integers
    areas: Floats
    centroids: Floats
    boxes: Integers
    perimeters: Floats
    circularities: Floats
    perimeters_um: Floats


def measure(document: Document, images: Sequence[StagedImage]) -> Measures:
    """Measure every object. Conventions: `tables.CONVENTIONS`. Without images nothing is known about outlines."""
    coordinates, offsets = document.coordinates, document.offsets
    odd = rules.odd_rings(coordinates, offsets)
    starts = document.starts()
    perimeters, circularities, perimeters_um = _outlines(document, images)
    return Measures(
        ids=np.arange(len(document), dtype=np.int64) - starts[document.image_index] + 1,
        areas=geometry.pixel_areas(coordinates, offsets, odd=odd),
        centroids=geometry.centroids(coordinates, offsets),
        boxes=geometry.pixel_boxes(coordinates, offsets),
        perimeters=perimeters,
        circularities=circularities,
        perimeters_um=perimeters_um,
    )


def _outlines(document: Document, images: Sequence[StagedImage]) -> tuple[Floats, Floats, Floats]:
    """(m,) perimeter, circularity, perimeter in micrometres."""
    count = len(document)
    crossed, pixels = np.zeros((count, 3)), np.zeros(count)
    if images:
        shapes = np.array([image.shape for image in images])[document.image_index]
        for first, found in pixels_of(document, 0, count):
            visible = _within(found, shapes[first:])
            crossed[first:] += shape.crossings(visible, count - first)
            pixels[first:] += visible.areas(count - first)
    perimeters_um = np.full(count, np.nan)
    for size in {image.pixel_size_um for image in images if image.pixel_size_um is not None}:
        own = np.array([image.pixel_size_um == size for image in images])[document.image_index]
        perimeters_um[own] = shape.perimeters(crossed[own], size)
    perimeters = shape.perimeters(crossed)
    unseen = pixels == 0
    perimeters[unseen], perimeters_um[unseen] = np.nan, np.nan
    return perimeters, 4 * np.pi * pixels / perimeters**2, perimeters_um


def _within(found: Runs, shapes: Integers) -> Runs:
    """Without the pixels outside the image of each object; `shapes` (m, 2) rows and columns."""
    height, width = shapes[found.owner].T
    start, stop = np.maximum(found.start, 0), np.minimum(found.stop, width)
    keep = (found.row >= 0) & (found.row < height) & (start < stop)
    return Runs(found.owner[keep], found.row[keep], start[keep], stop[keep])


def pixels_of(document: Document, begin: int, end: int) -> Iterator[tuple[int, Runs]]:
    """The pixels of the objects `begin … end - 1`, in batches of bounded size: the number of the batch's first object,
    which is owner 0 of the runs. A ring so long that it alone is no batch is left out.
    """
    coordinates, offsets = document.coordinates, document.offsets
    y = np.ceil(coordinates[offsets[begin] : offsets[end], 1])
    own = offsets[begin : end + 1] - offsets[begin]
    work = geometry.per_ring(np.add, np.abs(y[geometry.successors(own)] - y) + 1, own)
    total = np.append(0, np.cumsum(work))
    first = 0
    while first < end - begin:
        last = int(np.searchsorted(total, total[first] + BATCH, "right")) - 1
        if last == first:
            first += 1
            continue
        points = slice(int(offsets[begin + first]), int(offsets[begin + last]))
        owner = np.arange(last - first, dtype=np.int64)
        yield begin + first, rows.of_rings(coordinates[points], own[first : last + 1] - own[first], owner)
        first = last
