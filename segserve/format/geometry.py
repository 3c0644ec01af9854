"""Measures of rings, over flat arrays: `coordinates` (n, 2) and `offsets` (m + 1,) as in `Document`.

Coordinates are (x right, y down) and integer values are pixel centres. The area of a ring through centres (551 for a
mask of 20 × 30 pixels) is not the number of pixels (600): biologists expect the latter, and `pixel_areas` gives it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from segserve.format.document import Floats, Integers

Booleans = npt.NDArray[np.bool_]
RASTER_LIMIT = 1 << 24  # pixels of the box of one odd ring that is counted pixel by pixel
RASTER_BUDGET = 1 << 29  # pixels of all such boxes together: hostile rings must not cost minutes


def lengths(offsets: Integers) -> Integers:
    """(m,) points per ring."""
    return np.diff(offsets)


def successors(offsets: Integers) -> Integers:
    """(n,) index of the point behind each point on its closed ring."""
    following = np.arange(1, int(offsets[-1]) + 1, dtype=np.int64) if offsets.size else np.empty(0, np.int64)
    filled = lengths(offsets) > 0
    following[offsets[1:][filled] - 1] = offsets[:-1][filled]
    return following


def per_ring(ufunc: np.ufunc, values: npt.NDArray[np.generic], offsets: Integers, empty: float = 0.0) -> Floats:
    """(m,) `ufunc.reduceat` of (n,) values; a ring without points gets `empty`."""
    reduced = np.full(offsets.size - 1, empty, np.float64)
    filled = lengths(offsets) > 0
    if filled.any():  # reduceat would give an empty segment its neighbour's value, so the empty ones are left out
        reduced[filled] = ufunc.reduceat(values, offsets[:-1][filled])
    return reduced


def _local(coordinates: Floats, offsets: Integers) -> Floats:
    """Coordinates relative to each ring's first point, so that products of them do not cancel."""
    counts = lengths(offsets)
    origins = np.repeat(coordinates[offsets[:-1][counts > 0]], counts[counts > 0], axis=0)
    return coordinates - origins


def signed_areas(coordinates: Floats, offsets: Integers) -> Floats:
    """(m,) shoelace area in square pixels of the ring as it is; positive for clockwise on the screen (y down)."""
    x, y = _local(coordinates, offsets).T
    following = successors(offsets)
    return per_ring(np.add, x * y[following] - x[following] * y, offsets) / 2


def areas(coordinates: Floats, offsets: Integers) -> Floats:
    """(m,) absolute shoelace area of the ring as it is."""
    return np.abs(signed_areas(coordinates, offsets))


def boxes(coordinates: Floats, offsets: Integers) -> Floats:
    """(m, 4) xmin, ymin, xmax, ymax of the points; NaN for a ring without points."""
    x, y = coordinates.T
    columns = (
        per_ring(np.minimum, x, offsets, np.nan),
        per_ring(np.minimum, y, offsets, np.nan),
        per_ring(np.maximum, x, offsets, np.nan),
        per_ring(np.maximum, y, offsets, np.nan),
    )
    return np.stack(columns, axis=1)


def pixel_boxes(coordinates: Floats, offsets: Integers) -> Integers:
    """(m, 4) x, y, width, height in whole pixels: those whose centres lie within the ring's box (COCO's order).

    A ring without points, or one so thin that it holds no centre, gets width and height 0.
    """
    box = boxes(coordinates, offsets)
    empty = np.isnan(box[:, 0])
    box[empty] = 0
    first, last = np.ceil(box[:, :2]), np.floor(box[:, 2:])
    size = np.maximum(last - first + 1, 0)
    size[empty] = 0
    return np.concatenate([first, size], axis=1).astype(np.int64)


def integral(coordinates: Floats, offsets: Integers) -> Booleans:
    """(m,) rings whose coordinates all are integers: pixel centres, as cv2 traces them."""
    whole = (coordinates == np.rint(coordinates)).all(axis=1)
    return per_ring(np.logical_and, whole, offsets, 1.0).astype(bool)


def pixel_areas(coordinates: Floats, offsets: Integers, *, odd: Booleans | None = None) -> Floats:
    """(m,) area in pixels.

    An integral ring: the number of pixel centres in the closed ring, which is the area of the corner outline of these
    pixels. By Pick's theorem that is A + B/2 + 1 (A shoelace area, B lattice steps along the ring) for every ring that
    does not touch itself. `odd` marks the others (`rules.odd_rings`): their pixels are counted one by one, unless their
    boxes are absurdly large. Any other ring: its shoelace area.
    """
    result = areas(coordinates, offsets)
    steps = np.abs(coordinates[successors(offsets)] - coordinates)
    whole = integral(coordinates, offsets) & (lengths(offsets) > 0)
    gcd = np.gcd(steps[:, 0].astype(np.int64), steps[:, 1].astype(np.int64))
    boundary = per_ring(np.add, gcd, offsets)
    result[whole] += boundary[whole] / 2 + 1
    budget = RASTER_BUDGET
    for number in np.flatnonzero(odd & whole) if odd is not None else ():
        ring = coordinates[offsets[number] : offsets[number + 1]]
        size = float(np.prod(ring.max(axis=0) - ring.min(axis=0) + 1))
        if size <= min(RASTER_LIMIT, budget):
            budget -= int(size)
            result[number] = np.count_nonzero(covered(ring)[0])
    return result


def covered(ring: Floats) -> tuple[Booleans, tuple[int, int]]:
    """Which pixel centres lie in one closed ring: a mask (rows, columns) of the ring's box, and the box's x, y."""
    from segserve_sdk import contours

    corner = np.ceil(ring.min(axis=0)).astype(np.int64)
    width, height = np.maximum(np.floor(ring.max(axis=0)).astype(np.int64) - corner + 1, 0)
    mask = contours.mask([(1, ring - corner)], (int(height), int(width)))
    return mask.astype(bool), (int(corner[0]), int(corner[1]))


def centroids(coordinates: Floats, offsets: Integers) -> Floats:
    """(m, 2) x, y of the centre of area, in pixel-centre coordinates.

    A ring without area has the centre of its line, a single point itself, a ring without points NaN.
    """
    local = _local(coordinates, offsets)
    following = successors(offsets)
    x, y = local.T
    cross = x * y[following] - x[following] * y
    doubled = per_ring(np.add, cross, offsets)
    step = np.hypot(*(local[following] - local).T)
    length = per_ring(np.add, step, offsets)
    points = lengths(offsets).astype(np.float64)
    result = np.full((offsets.size - 1, 2), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        for axis, values in enumerate((x, y)):
            pairs = values + values[following]
            by_area = per_ring(np.add, pairs * cross, offsets) / (3 * doubled)
            by_length = per_ring(np.add, pairs * step, offsets) / (2 * length)
            by_point = per_ring(np.add, values, offsets) / points
            result[:, axis] = np.where(doubled != 0, by_area, np.where(length > 0, by_length, by_point))
    filled = lengths(offsets) > 0
    result[filled] += coordinates[offsets[:-1][filled]]
    return result


def corner_outline(ring: Floats) -> list[Floats]:
    """The outline of the pixels of one ring through pixel centres, as closed-polygon rings of pixel *corners*.

    Corner convention: pixel (0, 0) covers the square from (0, 0) to (1, 1), as QuPath, ImageJ and COCO have it. The
    first array is an outer ring; further ones are holes or further parts. The signed areas (`signed_areas`) add up to
    exactly the number of pixels: the ring of a 20 × 30 mask, area 551, becomes one of area 600. Non-integral rings get
    the outline of the pixel centres that they contain.
    """
    mask, (left, top) = covered(ring)
    padded = np.pad(mask, 1).astype(np.int8)
    edges: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for row, column in np.argwhere(np.diff(padded, axis=0)):  # a horizontal edge on top of row `row` of the mask
        begin, end = (int(column) - 1, int(row)), (int(column), int(row))
        if not padded[row + 1, column]:
            begin, end = end, begin
        edges.setdefault(begin, []).append(end)
    for row, column in np.argwhere(np.diff(padded, axis=1)):
        begin, end = (int(column), int(row)), (int(column), int(row) - 1)
        if not padded[row, column + 1]:
            begin, end = end, begin
        edges.setdefault(begin, []).append(end)
    outlines = [np.array(loop, np.float64) + np.array((left, top)) for loop in _loops(edges)]
    return sorted(outlines, key=lambda loop: -float(signed_areas(loop, np.array([0, len(loop)]))[0]))


def _loops(edges: dict[tuple[int, int], list[tuple[int, int]]]) -> list[list[tuple[int, int]]]:
    """Unit edges (start → ends), object on their right, joined to loops of corners; diagonal pixels stay joined."""
    loops = []
    while edges:
        start = next(iter(edges))
        loop, heading, here = [start], (0, 0), start
        first = edges[start][0]
        while True:
            # At a point where two pixels touch diagonally, turn left so that both belong to one ring.
            left = (here[0] + heading[1], here[1] - heading[0])
            if here == start and len(loop) > 1 and (start not in edges or left == first):
                break
            ends = edges[here]
            following = left if left in ends else ends[0]
            ends.remove(following)
            if not ends:
                del edges[here]
            step = (following[0] - here[0], following[1] - here[1])
            if step == heading:
                loop.pop()
            loop.append(following)
            heading, here = step, following
        loop.pop()
        loops.append(loop)
    return loops
