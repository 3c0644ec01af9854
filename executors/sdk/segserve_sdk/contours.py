"""Label masks ⇄ polygons: the one home of tracing, for executors and for segserve itself.

**What a polygon means.** Coordinates are (x to the right, y down) in pixels and run through pixel *centres*, as
`cv2.findContours` gives them: the pixel in column 3 of row 5 has its centre at (3.0, 5.0). One rule reads every ring:
a pixel belongs to the object when its centre lies in the closed ring (inside by the even-odd rule, or on the line).
So `mask(polygons(labels), labels.shape)` gives `labels` back, pixel by pixel.

- A label in several parts (8-connected) becomes one polygon per part.
- Holes are said within the same ring, as a *keyhole*: the ring walks to the hole along pixels of the object, around it
  and back on the same way.
- A part whose ring through the centres has no area (one pixel, a line one pixel wide) is given as the outline of its
  pixels, with corners at half-integer coordinates: every polygon has at least three points and an area.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from threading import local
from typing import Any, Iterable, Iterator, List, NamedTuple, Optional, Tuple

import cv2
import numpy as np

from segserve_sdk import outlines

# cv2's flood-fill mode marks pixels in the two topmost bits of its int32 copy; this one says that a ring runs there.
_VISITED = 2**30
_LARGEST = _VISITED - 1
_ROOMY = 10_000  # pixels per label from which on the rings around background cost less than leaving them out …
_SMALL = 1 << 19  # … in images that do not fit into the cache
_KEPT = 1 << 22  # pixels of a mask from which on memory is got anew for each
_NOTHING = np.empty(0, np.int32)
_FEW = 32  # labels that are quicker traced one by one than all of them again
_HALVED = 1 << 23  # pixels of a mask from which on two threads trace a half each
_ACROSS = 0.25  # of the mask, in boxes around the labels that lie on both sides: more is quicker traced as a whole
_WORKERS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Contours(NamedTuple):
    """Many polygons in flat arrays; polygon `i` is `coordinates[offsets[i]:offsets[i + 1]]`.

    labels: (m,) int64, ascending. offsets: (m + 1,) int64. coordinates: (n, 2) float64, (x, y); rings are not closed.
    """

    labels: np.ndarray
    offsets: np.ndarray
    coordinates: np.ndarray


def polygons(labels: np.ndarray) -> List[Tuple[int, np.ndarray]]:
    """`(label, ring)` for every part of every label, ascending by label; a ring is (n, 2) float64, see `trace`."""
    found = trace(labels)
    ends = found.offsets.tolist()
    return [(label, found.coordinates[ends[i] : ends[i + 1]]) for i, label in enumerate(found.labels.tolist())]


def trace(labels: np.ndarray) -> Contours:
    """Trace all objects of a label mask in one pass.

    labels: 2-D, any integer or boolean type, 0 = background. Parts of one label are ordered from top to bottom.

    Raises:
        ValueError: not a 2-D array of integers, or a negative label.
    """
    image, names, largest = _as_int32(labels)
    if not largest:
        return Contours(np.empty(0, np.int64), np.zeros(1, np.int64), np.empty((0, 2)))
    return _assemble(image, names, _all_rings(image, largest))


def mask(polygons: Iterable[Tuple[int, Any]], shape: Tuple[int, int]) -> np.ndarray:
    """The label mask of `(label, ring)` pairs: int32 of `shape` (rows, columns); where rings overlap, the last wins.

    A ring is anything like (n, 2), in the coordinates of this module; what lies outside the image is cut off.

    Raises:
        ValueError: a ring is not (n, 2) or not finite.
    """
    result = np.zeros(shape, np.int32)
    for label, ring in polygons:
        points = np.asarray(ring, np.float64)
        if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
            raise ValueError("a ring is an array of n finite (x, y) points")
        if len(points):
            _paint(result, points, label)
    return result


# ------------------------------------------------------------------------------------------------------- tracing


class _Rings(NamedTuple):
    """Rings as cv2 gives them, flat: ring `i` has `lengths[i]` of the `points` (n, 2) int32 from `starts[i]` on.

    `parts[i]` is the ring of the part that a hole lies in, -1 for parts themselves. cv2 walks holes the other way
    round than parts, so that `twice_area` is negative for them.
    """

    points: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    parts: np.ndarray
    starts: np.ndarray
    twice_area: np.ndarray
    steps: np.ndarray

    def ring(self, index: int) -> np.ndarray:
        """The points of one ring."""
        return self.points[self.starts[index] : self.starts[index] + self.lengths[index]]

    def pixels(self) -> np.ndarray:
        """How many pixels each ring adds to its label (a hole takes away), by Pick's theorem.

        cv2's rings walk in the 8 directions, a step has `max(|dx|, |dy|)` pixels. A part has area + steps / 2 + 1
        pixels, also where the ring walks a spur to and fro; a hole has area - steps / 2 + 1.
        """
        return (self.twice_area + self.steps) // 2 + np.where(self.parts < 0, 1, -1)


def _rings(points: np.ndarray, lengths: np.ndarray, labels: np.ndarray, parts: np.ndarray) -> _Rings:
    starts = np.cumsum(lengths) - lengths
    ends = starts + lengths - 1
    x, y = np.ascontiguousarray(points.T)
    step_x, step_y = np.empty_like(x), np.empty_like(y)
    for step, values in ((step_x, x), (step_y, y)):
        step[:-1] = values[1:] - values[:-1]
        step[ends] = values[starts] - values[ends]
    # The cross product of a point with the next one is that with the step between them.
    twice_area = np.add.reduceat(step_x * y.astype(np.int64) - x.astype(np.int64) * step_y, starts)
    steps = np.add.reduceat(np.maximum(np.abs(step_x), np.abs(step_y)), starts, dtype=np.int64)
    return _Rings(points, lengths, labels, parts, starts, twice_area, steps)


def _as_int32(labels: np.ndarray) -> Tuple[np.ndarray, Any, int]:
    """The mask as contiguous int32, the original value of every new one if values had to be renumbered, the largest."""
    array = np.asarray(labels)
    if array.ndim != 2 or array.dtype.kind not in "iub":
        raise ValueError(f"a label mask is a 2-D array of integers, not {array.ndim}-D {array.dtype}")
    # Read as unsigned a negative value is larger than any other.
    whole = array.view(f"u{array.dtype.itemsize}") if array.dtype.kind == "i" else array
    largest = int(whole.max()) if array.size else 0
    if array.dtype.kind == "i" and largest > np.iinfo(array.dtype).max:
        raise ValueError("a label mask has no negative values")
    if largest > min(_LARGEST, 8 * array.size + 65536):  # labels are counted, in arrays as long as the largest
        names, inverse = np.unique(np.append(array, array.dtype.type(0)), return_inverse=True)
        return inverse[:-1].reshape(array.shape).astype(np.int32), names, len(names) - 1
    return np.ascontiguousarray(array, np.int32), None, largest


def _all_rings(image: np.ndarray, largest: int) -> _Rings:
    """The rings of all parts and holes; they hold all pixels (Pick's theorem), unless a hole is missing.

    Half of what cv2 finds are rings around background. It does not look for them where background pixels look as if it
    had been there already; the holes that are background then are missing, too.
    """
    covered = cv2.countNonZero(image)
    bare = image.size <= _SMALL or largest * _ROOMY > image.size
    halved = image.size >= _HALVED and _WORKERS > 1
    rings = (_in_halves(image, bare) if halved else None) or _rings(*_flood_fill(image, bare))
    if rings.pixels().sum() == covered:
        return rings
    wrong = _wrong_labels(image, rings)
    if bare and len(wrong) > _FEW:
        rings = _rings(*_flood_fill(image, False))
        if rings.pixels().sum() == covered:
            return rings
        wrong = _wrong_labels(image, rings)
    return _alone(image, rings, wrong)  # cv2's flood fill overlooks a hole that other labels fill to its brim


def _without_background(image: np.ndarray) -> np.ndarray:
    """`_VISITED` less the mask: background becomes just this mark, labels become other values below it."""
    return np.subtract(_VISITED, image, out=_buffer(image.shape))


_kept = local()


def _buffer(shape: Tuple[int, int]) -> np.ndarray:
    """An int32 array for the moment. One of up to 16 MB is kept per thread: the C library would give its pages back
    to the system after every mask, and getting them again takes as long as tracing."""
    size = shape[0] * shape[1]
    if size > _KEPT:
        return np.empty(shape, np.int32)
    if getattr(_kept, "buffer", _NOTHING).size < size:
        _kept.buffer = np.empty(size, np.int32)
    return _kept.buffer[:size].reshape(shape)


def _in_halves(image: np.ndarray, bare: bool) -> Optional[_Rings]:
    """The rings of a large mask, whose upper and lower half are traced at the same time: cv2 lets go of Python's lock.

    Labels on both sides of the seam are traced again, alone; None if that is more work than it saves.
    """
    seam = image.shape[0] // 2
    upper, lower = image[:seam], image[seam:]
    if not seam or not cv2.countNonZero(upper) or not cv2.countNonZero(lower):
        return None
    with ThreadPoolExecutor(1) as other:
        later = other.submit(_flood_fill, lower, bare)
        above, below = _flood_fill(upper, bare), later.result()
    below[0][:, 1] += seam
    below[3][below[3] >= 0] += len(above[1])
    rings = _rings(*(np.concatenate(part) for part in zip(above, below)))
    across = np.intersect1d(image[seam - 1], image[seam])
    across = across[across > 0]
    low, high = _boxes(rings)
    boxes = (high - low + 1).prod(axis=1, dtype=np.int64)
    if boxes[np.isin(rings.labels, across)].sum() > _ACROSS * image.size:
        return None
    return _alone(image, rings, across) if len(across) else rings


def _flood_fill(image: np.ndarray, bare: bool) -> Tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All rings that cv2's int32 mode finds, without those around background: the first four fields of `_Rings`."""
    marked = _without_background(image) if bare else image
    found, tree = cv2.findContours(marked, cv2.RETR_FLOODFILL, cv2.CHAIN_APPROX_SIMPLE)
    lengths = np.fromiter(map(len, found), np.int64, len(found))
    points, parts = np.concatenate(found).reshape(-1, 2), tree[0, :, 3]
    x, y = points[np.cumsum(lengths) - lengths].T.astype(np.intp)
    rows, columns = image.shape
    labels = np.take(image, y * columns + x, mode="clip")
    keep = labels > 0
    if not bare:  # rings around background may leave the image by one pixel
        keep &= (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
    if not keep.all():
        points, lengths, labels = points[np.repeat(keep, lengths)], lengths[keep], labels[keep]
        parts = np.append(np.cumsum(keep) - 1, -1)[parts[keep]]
    return points, lengths, labels, parts


def _wrong_labels(image: np.ndarray, rings: _Rings) -> np.ndarray:
    """The labels whose rings do not hold as many pixels as the label has, ascending."""
    pixels = np.bincount(image.ravel())
    wrong = np.flatnonzero(pixels != np.bincount(rings.labels, rings.pixels(), len(pixels)))
    return wrong[wrong > 0]


def _boxes(rings: _Rings) -> Tuple[np.ndarray, np.ndarray]:
    """(m, 2) least and greatest (x, y) of each ring."""
    low, high = (function.reduceat(rings.points, rings.starts, axis=0) for function in (np.minimum, np.maximum))
    return low, high


def _alone(image: np.ndarray, rings: _Rings, again: np.ndarray) -> _Rings:
    """The same rings, but those of some labels traced one label at a time. Their rings so far tell where they lie."""
    keep = ~np.isin(rings.labels, again)
    number = np.append(np.cumsum(keep) - 1, -1)
    points, lengths = [rings.points[np.repeat(keep, rings.lengths)]], [rings.lengths[keep]]
    labels, parts = [rings.labels[keep]], [number[rings.parts[keep]]]
    total = int(keep.sum())
    low, high = _boxes(rings)
    for label in again.tolist():
        own = rings.labels == label
        (left, top), (right, bottom) = low[own].min(axis=0).tolist(), high[own].max(axis=0).tolist()
        crop = (image[top : bottom + 1, left : right + 1] == label).astype(np.uint8)
        found, tree = cv2.findContours(crop, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(left, top))
        points += [ring[:, 0, :] for ring in found]
        lengths.append(np.fromiter(map(len, found), np.int64, len(found)))
        labels.append(np.full(len(found), label, rings.labels.dtype))
        parts.append(np.where(tree[0, :, 3] < 0, -1, tree[0, :, 3] + total))
        total += len(found)
    return _rings(*(np.concatenate(part) for part in (points, lengths, labels, parts)))


def _assemble(image: np.ndarray, names: Any, rings: _Rings) -> Contours:
    """One ring per part: holes joined, flat parts outlined, everything in order."""
    points, starts, lengths = rings.points, rings.starts, rings.lengths
    if not rings.twice_area.all() or rings.parts.max() >= 0:
        points, starts, lengths = _replaced(image, rings)
    parts = np.flatnonzero(rings.parts < 0)
    x, y = rings.points[rings.starts[parts]].T
    parts = parts[np.lexsort((x, y, rings.labels[parts]))]
    labels, lengths = rings.labels[parts].astype(np.int64), lengths[parts]
    offsets = np.append(0, np.cumsum(lengths))
    gather = np.arange(offsets[-1]) + np.repeat(starts[parts] - offsets[:-1], lengths)
    coordinates = np.take(points, gather, axis=0).astype(np.float64, copy=False)
    return Contours(labels if names is None else names[labels].astype(np.int64), offsets, coordinates)


def _replaced(image: np.ndarray, rings: _Rings) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points, starts and lengths of the rings in which those that cannot stay are replaced; holes are left over."""
    pool, starts, lengths = [rings.points.astype(np.float64)], rings.starts.copy(), rings.lengths.copy()
    end = len(rings.points)
    for indices, replacement in _replacements(image, rings):
        count = len(replacement) // len(indices)
        starts[indices], lengths[indices] = end + count * np.arange(len(indices)), count
        pool.append(replacement)
        end += len(replacement)
    return np.concatenate(pool), starts, lengths


def _replacements(image: np.ndarray, rings: _Rings) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
    """Rings that cannot stay as cv2 gave them: indices (k,) and the new points (k * points of each, 2)."""
    flat = np.flatnonzero(rings.twice_area == 0)
    one = rings.points[rings.starts[flat]]
    other = rings.points[rings.starts[flat] + rings.lengths[flat] - 1]
    straight = (rings.lengths[flat] <= 2) & (one == other).any(axis=1)
    if straight.any():
        low, high = np.minimum(one, other)[straight] - 0.5, np.maximum(one, other)[straight] + 0.5
        corners = [low[:, 0], low[:, 1], low[:, 0], high[:, 1], high[:, 0], high[:, 1], high[:, 0], low[:, 1]]
        yield flat[straight], np.stack(corners, axis=1).reshape(-1, 2)
    for index in flat[~straight]:
        yield np.array([index]), outlines.outline(rings.ring(index))
    holes = np.flatnonzero(rings.parts >= 0)
    for index in np.unique(rings.parts[holes]):
        own = sorted((rings.ring(hole) for hole in holes[rings.parts[holes] == index]), key=outlines.first)
        joined = outlines.keyhole(image, [rings.ring(index), *own])
        if not outlines.has_area(joined):
            joined = outlines.thin_outline([rings.ring(index), *own], joined)
        yield np.array([index]), joined


# ------------------------------------------------------------------------------------------------------ painting


def _paint(image: np.ndarray, ring: np.ndarray, label: int) -> None:
    whole = ring.astype(np.int32) if np.abs(ring).max() < 2**20 else None
    if whole is not None and (whole == ring).all():
        step = np.abs(np.roll(whole, -1, axis=0) - whole)
        if ((step.min(axis=1) == 0) | (step[:, 0] == step[:, 1])).all():
            # Steps in the 8 directions only: all pixels that cv2 draws have their centre on the line.
            cv2.fillPoly(image, [whole], int(label))
            return
    rows, columns = _covered(ring, image.shape)
    image[rows, columns] = label


def _covered(ring: np.ndarray, shape: Tuple[int, int]) -> Tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pixels whose centres lie in the closed ring (even-odd), cut to the image."""
    following = np.roll(ring, -1, axis=0)
    upper = np.where((ring[:, 1] <= following[:, 1])[:, None], ring, following)
    lower = np.where((ring[:, 1] <= following[:, 1])[:, None], following, ring)
    # Every row that an edge reaches, both ends included, and where the edge crosses it.
    first = np.clip(np.ceil(upper[:, 1]), 0, shape[0]).astype(np.int64)
    last = np.clip(np.floor(lower[:, 1]), -1, shape[0] - 1).astype(np.int64)
    count = np.maximum(last - first + 1, 0)
    edge = np.repeat(np.arange(len(ring)), count)
    row = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    (x0, y0), (x1, y1) = upper[edge].T, lower[edge].T
    level = y0 == y1
    x = np.where(row == y1, x1, x0 + (x1 - x0) * ((row - y0) / np.where(level, 1, y1 - y0)))
    # Between odd and even crossings is inside (an edge counts without its lower end); points on the line belong too.
    crossing = ~level & (row < y1)
    by_row = np.lexsort((x[crossing], row[crossing]))
    inside_row, inside_x = row[crossing][by_row], x[crossing][by_row]
    starts = np.concatenate([inside_x[0::2], x, np.minimum(x0, x1)[level]])
    ends = np.concatenate([inside_x[1::2], x, np.maximum(x0, x1)[level]])
    at = np.concatenate([inside_row[0::2], row, row[level]])
    start = np.clip(np.ceil(starts), 0, shape[1]).astype(np.int64)
    length = np.maximum(np.clip(np.floor(ends), -1, shape[1] - 1).astype(np.int64) - start + 1, 0)
    column = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length) + np.repeat(start, length)
    return np.repeat(at, length), column
