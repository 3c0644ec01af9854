"""The rules about rings, coordinates and images: what is well-formed JSON and still not a good result.

All checks are vectorised over flat arrays (numpy, shapely 2); only what is kept as a finding is formatted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from segserve.findings import Finding
from segserve.format import geometry
from segserve.format.catalogue import Collector
from segserve.format.document import Document, Floats, Integers
from segserve.format.geometry import Booleans

SLACK = 1e-6  # pixels; a coordinate that was computed may miss the image's edge by rounding


def check(
    document: Document,
    shapes: Sequence[tuple[int, int]] | None = None,
    *,
    names: Sequence[str] | None = None,
    strict: bool = True,
) -> list[Finding]:
    """Everything that the rules have to say about a document.

    `shapes` are (rows, columns) and `names` what the images are called, in the order of the document. With `strict` the
    severities are those of the specification, else those of a run (`catalogue`).
    """
    collector = Collector(strict=strict)
    if shapes is not None and len(shapes) != document.n_images:
        collector.add("image-count-mismatch", f"{document.n_images} results for {len(shapes)} images.", "$")
        shapes = None
    if document.n_images and not len(document):
        what = "The image has" if document.n_images == 1 else f"None of {document.n_images} images has"
        collector.add("suspicious-emptiness", f"{what} no object at all.", "$")
    checks = _Checks(document, names if names is not None and len(names) == document.n_images else None, collector)
    checks.rings()
    checks.duplicates()
    if shapes is not None:
        checks.bounds(np.asarray(shapes, np.float64).reshape(-1, 2))
    return collector.findings()


class _Checks:
    def __init__(self, document: Document, names: Sequence[str] | None, collector: Collector) -> None:
        self._document = document
        self._names = names
        self._collector = collector
        self._boxes = geometry.boxes(document.coordinates, document.offsets)

    def _report(self, rule: str, objects: Booleans | Integers, message: str) -> None:
        numbers = np.flatnonzero(objects) if objects.dtype == bool else objects

        def describe(number: int) -> tuple[str, str, str]:
            image = self._names[int(self._document.image_index[number])] if self._names else ""
            return message, self._document.json_path(int(number)), image

        self._collector.add_all(rule, numbers.tolist(), describe)

    def rings(self) -> None:
        """Fewer than three points, no area, crossings, keyholes."""
        ring_kinds = classify(self._document.coordinates, self._document.offsets)
        for kind, rule, message in (
            (FEW, "too-few-points", "The ring has fewer than three distinct points."),
            (FLAT, "zero-area", "All points lie on one line or retrace it: the ring encloses nothing."),
            (CROSSED, "self-intersection", "The ring crosses itself."),
            (KEYHOLE, "keyhole", "A hole is said by one keyhole ring."),
            (TOUCHING, "touches-itself", "The ring touches itself; it is filled as one object."),
        ):
            self._report(rule, ring_kinds == kind, message)

    def duplicates(self) -> None:
        """Objects of one image with the same points, whatever point they start from and whichever way they run."""
        document = self._document
        if not len(document):
            return
        columns = np.column_stack([document.image_index, geometry.lengths(document.offsets), self._boxes])
        order = np.lexsort(columns.T[::-1])
        same = np.concatenate([[False], (columns[order][1:] == columns[order][:-1]).all(axis=1)])
        again = []
        group: dict[bytes, int] = {}
        for place in np.flatnonzero(same | np.concatenate([same[1:], [False]])):
            if not same[place]:
                group = {}
            number = int(order[place])
            if group.setdefault(_canonical(document.ring(number)), number) != number:
                again.append(number)
        self._report("duplicate-object", np.array(sorted(again), np.int64), "The image has the same object before.")

    def bounds(self, shapes: Floats) -> None:
        """Points outside [-0.5, width - 0.5] × [-0.5, height - 0.5], and whether swapping x and y would help."""
        document = self._document
        limits = shapes[document.image_index][:, ::-1] - 0.5  # x, y
        low, high = self._boxes[:, :2], self._boxes[:, 2:]
        outside = ~_within(low, high, limits) & ~np.isnan(low[:, 0])
        away = ((low > limits) | (high < -0.5)).any(axis=1)
        fits_swapped = _within(low[:, ::-1], high[:, ::-1], limits) | np.isnan(low[:, 0])
        swapped = np.zeros(document.n_images, bool)
        # One object that lies wholly outside is needed: a box that overlaps the edge a little proves nothing.
        swapped[document.image_index[away]] = True
        swapped[document.image_index[~fits_swapped]] = False
        for image in np.flatnonzero(swapped):
            rows, columns = (int(side) for side in shapes[image])
            text = f"Objects lie outside the image ({columns} × {rows}), and all fit when x and y are swapped."
            name = self._names[int(image)] if self._names else ""
            path = document.form.split("[{position}]")[0].format(image=int(image))
            self._collector.add("swapped-axes", text, path, image=name)
        self._report("outside-image", outside & ~swapped[document.image_index], "Points lie outside the image.")


def _within(low: Floats, high: Floats, limits: Floats) -> Booleans:
    inside: Booleans = np.all((low >= -0.5 - SLACK) & (high <= limits + SLACK), axis=1)
    return inside


def _canonical(ring: Floats) -> bytes:
    """The same bytes for the same ring, from any start and in both directions."""
    if not len(ring):
        return b""
    candidates = []
    for way in (ring, ring[::-1]):
        starts = np.flatnonzero((way == way[np.lexsort(way.T[::-1])[0]]).all(axis=1))
        candidates += [np.roll(way, -int(start), axis=0).tobytes() for start in starts]
    return min(candidates)


FEW, FLAT, SIMPLE, TOUCHING, KEYHOLE, CROSSED = range(6)


def classify(coordinates: Floats, offsets: Integers) -> npt.NDArray[np.int8]:
    """(m,) what each ring is: FEW, FLAT, SIMPLE, TOUCHING, KEYHOLE or CROSSED.

    SIMPLE is what shapely calls valid. Among the others, a ring is CROSSED when some place has a winding number other
    than 0 and one more, always the same: two strands that cross make three different ones around their crossing, and a
    ring that only touches or retraces itself makes two. KEYHOLE: it encloses places with winding number 0.
    """
    import shapely

    kinds = np.full(offsets.size - 1, SIMPLE, np.int8)
    kinds[_few(coordinates, offsets)] = FEW
    for part in _batches(np.flatnonzero(kinds == SIMPLE), offsets):
        flat, index = _gather(coordinates, offsets, part)
        rings = shapely.linearrings(flat, indices=index)
        odd = ~shapely.is_valid(shapely.polygons(rings))
        if odd.any():
            kinds[part[odd]] = _windings(rings[odd], coordinates, offsets, part[odd])
    for number in np.flatnonzero(kinds == FLAT):
        if len(np.unique(coordinates[offsets[number] : offsets[number + 1]], axis=0)) < 3:
            kinds[number] = FEW
    return kinds


def odd_rings(coordinates: Floats, offsets: Integers) -> Booleans:
    """(m,) rings that are not SIMPLE: for them Pick's theorem does not give the number of pixels."""
    odd: Booleans = classify(coordinates, offsets) != SIMPLE
    return odd


def _few(coordinates: Floats, offsets: Integers) -> Booleans:
    """Rings of too few points to build: none, one, two, or three of which the last closes the ring."""
    counts = geometry.lengths(offsets)
    three = np.flatnonzero(counts == 3)
    first = offsets[:-1][three]
    few: Booleans = counts < 3
    few[three] = (coordinates[first] == coordinates[first + 2]).all(axis=1)
    return few


def _batches(numbers: Integers, offsets: Integers, points: int = 1 << 20) -> list[Integers]:
    """The ring numbers in parts of about `points` points, so that shapely's copies stay small."""
    if not numbers.size:
        return []
    cumulated = np.cumsum(geometry.lengths(offsets)[numbers])
    cuts = np.searchsorted(cumulated, np.arange(points, int(cumulated[-1]), points))
    return [part for part in np.split(numbers, np.unique(cuts)) if part.size]


def _gather(coordinates: Floats, offsets: Integers, rings: Integers) -> tuple[Floats, Integers]:
    """The points of some rings, and the number (from 0) of the ring of each."""
    counts = geometry.lengths(offsets)[rings]
    index = np.repeat(np.arange(rings.size), counts)
    if int(rings[-1]) - int(rings[0]) + 1 == rings.size:  # without gaps, as nearly always: no copy
        return coordinates[offsets[rings[0]] : offsets[rings[-1] + 1]], index
    inner = np.arange(index.size) - np.repeat(np.cumsum(counts) - counts, counts)
    return coordinates[offsets[rings][index] + inner], index


def _windings(lines: Any, coordinates: Floats, offsets: Integers, rings: Integers) -> npt.NDArray[np.int8]:
    """What each ring that shapely refuses is: FLAT, TOUCHING, KEYHOLE or CROSSED."""
    import shapely

    faces, owner = shapely.get_parts(
        shapely.polygonize(shapely.node(lines)[:, None], axis=1), return_index=True
    )  # every bounded region that the ring's lines cut the plane into
    kinds = np.full(rings.size, FLAT, np.int8)
    if not faces.size:
        return kinds
    inner = shapely.point_on_surface(faces)
    winding = _winding(shapely.get_x(inner), shapely.get_y(inner), owner, coordinates, offsets, rings)
    most = np.zeros(rings.size, np.int64)
    least = np.zeros(rings.size, np.int64)
    np.maximum.at(most, owner, winding)
    np.minimum.at(least, owner, winding)
    enclosed = np.zeros(rings.size, bool)
    enclosed[owner[winding == 0]] = True
    some = (most != 0) | (least != 0)
    kinds[some] = TOUCHING
    kinds[some & enclosed] = KEYHOLE
    kinds[most - least > 1] = CROSSED
    return kinds


def _winding(
    x: Floats, y: Floats, owner: Integers, coordinates: Floats, offsets: Integers, rings: Integers
) -> Integers:
    """(k,) how often ring `rings[owner[k]]` runs around the point (x[k], y[k])."""
    result = np.zeros(x.size, np.int64)
    following = geometry.successors(offsets)
    counts = geometry.lengths(offsets)[rings]
    for part in np.split(np.arange(x.size), np.arange(4096, x.size, 4096)):
        size = counts[owner[part]]
        point = np.repeat(part, size)
        within = np.arange(point.size) - np.repeat(np.cumsum(size) - size, size)
        edge = offsets[rings][owner[point]] + within
        (x0, y0), (x1, y1) = coordinates[edge].T, coordinates[following[edge]].T
        upward, downward = (y0 <= y[point]) & (y1 > y[point]), (y1 <= y[point]) & (y0 > y[point])
        side = (x1 - x0) * (y[point] - y0) - (x[point] - x0) * (y1 - y0)
        np.add.at(result, point, (upward & (side > 0)).astype(np.int64) - (downward & (side < 0)))
    return result
