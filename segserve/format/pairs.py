"""Rules about two objects of one image: the same twice, one within the other, two on the same ground."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from segserve.format import geometry
from segserve.format.document import Document, Floats, Integers
from segserve.format.geometry import Booleans
from segserve.format.rings import gather

_Found = tuple[Integers, Integers, npt.NDArray[np.int8]]
OVERLAP, INSIDE, HOLE = range(3)
TEXTS = {
    OVERLAP: "It covers a part of {}.",
    INSIDE: "It lies wholly within {}.",
    HOLE: "It lies within {}, has the same label and runs the other way round, as the contours of holes do.",
}
CHUNK = 64  # objects whose neighbours are looked up at once, to begin with
SPARE, PER_POINT = 1 << 22, 64  # points of compared pairs: hostile documents must cost no more than linear time


def duplicates(document: Document, boxes: Floats, skipped: Booleans | None = None) -> Integers:
    """(m,) the earlier object of the image with the same points, from any start and in either direction; else -1.

    Objects that are `skipped` (m,) are not compared.
    """
    same = np.full(len(document), -1, np.int64)
    alike = _alike(document, boxes)
    alike = alike if skipped is None else alike[~skipped[alike]]
    group: dict[bytes, int] = {}
    previous: bytes = b""
    for number in alike.tolist():
        key = boxes[number].tobytes() + int(document.image_index[number]).to_bytes(8, "little")
        group = group if key == previous else {}
        previous = key
        earlier = group.setdefault(_canonical(document.ring(number)), number)
        same[number] = earlier if earlier != number else -1
    return same


def _alike(document: Document, boxes: Floats) -> Integers:
    """Numbers of the objects that share image, box and number of points with another; these stand together, ascending.

    Sorting by one hash is several times quicker than sorting by six columns; rows of equal hash are compared later.
    """
    columns = np.column_stack([document.image_index.astype(np.float64), geometry.lengths(document.offsets), boxes])
    columns += 0.0  # -0.0 is 0.0
    mixed = np.zeros(len(columns), np.uint64)
    for column in np.ascontiguousarray(columns).view(np.uint64).T:
        mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    ordered = np.sort(mixed)
    twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not twice.size:
        return np.empty(0, np.int64)
    place = np.minimum(np.searchsorted(twice, mixed), twice.size - 1)
    numbers = np.flatnonzero(twice[place] == mixed)
    order: Integers = np.lexsort((numbers, *columns[numbers].T))
    return numbers[order]


def _canonical(ring: Floats) -> bytes:
    """The same bytes for the same ring, from any start and in both directions."""
    points = list(map(tuple, (ring + 0.0).tolist()))
    ways = []
    for way in (points, points[::-1]):
        start = _least_rotation(way)
        ways.append(way[start:] + way[:start])
    return np.array(min(ways), np.float64).tobytes()


def _least_rotation(items: list[tuple[float, ...]]) -> int:
    """Where the smallest rotation begins, in linear time: two candidates race, the loser is overtaken."""
    one, other, same, count = 0, 1, 0, len(items)
    while one < count and other < count and same < count:
        left, right = items[(one + same) % count], items[(other + same) % count]
        if left == right:
            same += 1
            continue
        if left > right:
            one += same + 1
        else:
            other += same + 1
        if one == other:
            other += 1
        same = 0
    return min(one, other)


@dataclass(frozen=True)
class Pairs:
    """Pair k: `first[k]` and `second[k]`, which is the one to report, stand in `relation[k]`.

    In the images `crowded` not all pairs were compared.
    """

    first: Integers
    second: Integers
    relation: npt.NDArray[np.int8]
    crowded: list[int]


def compare(document: Document, boxes: Floats, odd: Booleans, skipped: Booleans) -> Pairs:
    """Find objects that share ground; `odd` (m,) are rings that shapely does not call valid, `skipped` no objects.

    Objects that only touch share none: rings run through the centres of pixels, and those of neighbours keep apart.
    """
    found: list[_Found] = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int8))]
    crowded: list[int] = []
    starts = document.starts()
    relate = _Relate(document, boxes, odd)
    for image in np.flatnonzero(np.diff(starts) > 1).tolist():
        numbers = np.arange(starts[image], starts[image + 1])
        numbers = numbers[~skipped[numbers]]
        budget = SPARE + PER_POINT * int(relate.points[numbers].sum())
        for one, other in _candidates(boxes, numbers):
            budget -= int(relate.points[one].sum() + relate.points[other].sum())
            if budget < 0:
                crowded.append(image)
                break
            found += relate.tolerantly(one, other)
    first, second, relation = (np.concatenate(column) for column in zip(*found, strict=True))
    _keep_islands(document, first, second, relation)
    return Pairs(first, second, relation, crowded)


def _keep_islands(document: Document, first: Integers, second: Integers, relation: npt.NDArray[np.int8]) -> None:
    """What runs the other way round than the hole in which it lies is no hole but an island in it."""
    places = np.flatnonzero(relation == HOLE)
    areas = geometry.areas(document.coordinates, document.offsets)
    holes: set[int] = set()
    for k in places[np.argsort(-areas[second[places]], kind="stable")].tolist():
        if int(first[k]) in holes:
            relation[k] = INSIDE
        else:
            holes.add(int(second[k]))


def _candidates(boxes: Floats, numbers: Integers) -> Iterator[tuple[Integers, Integers]]:
    """Pairs of objects whose boxes meet, the one with the lower number first, in portions."""
    import shapely

    rectangles = shapely.box(*boxes[numbers].T)
    tree = shapely.STRtree(rectangles)
    first, size = 0, CHUNK
    while first < numbers.size:
        one, other = tree.query(rectangles[first : first + size])
        one += first
        kept = one < other
        if kept.any():
            yield numbers[one[kept]], numbers[other[kept]]
        first += size
        size = min(size * 2, 64 * CHUNK) if one.size < 1 << 16 else max(size // 4, 1)


def _holds(outer: Floats, inner: Floats) -> Booleans:
    """(k,) which boxes hold the other."""
    held: Booleans = np.all((inner[:, :2] >= outer[:, :2]) & (inner[:, 2:] <= outer[:, 2:]), axis=1)
    return held


class _Relate:
    """Builds the polygons that are needed, each once, and says how two of them lie."""

    def __init__(self, document: Document, boxes: Floats, odd: Booleans) -> None:
        self._boxes = boxes
        self.points = geometry.lengths(document.offsets)
        self._document = document
        self._odd = odd
        self._turns = np.sign(geometry.signed_areas(document.coordinates, document.offsets))
        self._polygons: npt.NDArray[Any] = np.full(len(document), None, object)
        self._built = np.zeros(len(document), np.bool_)

    def tolerantly(self, one: Integers, other: Integers) -> list[_Found]:
        """`pairs`, without those that GEOS cannot compare (numbers as small as 1e-300); they harm no others."""
        import shapely

        try:
            return [self.pairs(one, other)]
        except shapely.errors.GEOSException:
            if one.size == 1:
                return []
        half = one.size // 2
        return self.tolerantly(one[:half], other[:half]) + self.tolerantly(one[half:], other[half:])

    def pairs(self, one: Integers, other: Integers) -> _Found:
        """Those of the pairs that share ground: the outer (or first) object, the inner (or later) one, the relation."""
        import shapely

        self._build(np.unique(np.concatenate([one, other])))
        a, b = self._polygons[one], self._polygons[other]
        meet = shapely.intersects(a, b)
        meet[meet] = ~shapely.touches(a[meet], b[meet])
        one, other, a, b = one[meet], other[meet], a[meet], b[meet]
        inner = _holds(self._boxes[one], self._boxes[other])
        inner[inner] = shapely.covers(a[inner], b[inner])
        outer = _holds(self._boxes[other], self._boxes[one])
        outer[inner] = False
        outer[outer] = shapely.covers(b[outer], a[outer])
        relation = np.where(inner | outer, INSIDE, OVERLAP).astype(np.int8)
        first, second = np.where(outer, other, one), np.where(outer, one, other)
        labels = self._document.labels
        opposite = (relation == INSIDE) & (self._turns[first] != self._turns[second])
        for k in np.flatnonzero(opposite).tolist():
            if labels[first[k]] == labels[second[k]]:
                relation[k] = HOLE
        return first, second, relation

    def _build(self, numbers: Integers) -> None:
        import shapely

        numbers = numbers[~self._built[numbers]]
        if not numbers.size:
            return
        flat, index = gather(self._document.coordinates, self._document.offsets, numbers)
        polygons = shapely.polygons(shapely.linearrings(flat, indices=index))
        odd = self._odd[numbers]
        if odd.any():  # they touch themselves or are keyholes: the ground with winding number 1
            polygons[odd] = shapely.buffer(polygons[odd], 0)
        shapely.prepare(polygons)
        self._polygons[numbers] = polygons
        self._built[numbers] = True
