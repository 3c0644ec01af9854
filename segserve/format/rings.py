"""What kind of ring each one is. Rings that are simple at a glance are recognised by numpy, the others by shapely."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from segserve.format import geometry
from segserve.format.document import Floats, Integers
from segserve.format.geometry import Booleans

FEW, FLAT, SIMPLE, TOUCHING, KEYHOLE, CROSSED = range(6)
Kinds = npt.NDArray[np.int8]

_CACHED = 1 << 15  # points; so much of every temporary array stays in the processor's cache
_COPIED = 1 << 20  # points that shapely copies at once

# Hostile rings must cost no more than linear time. An outline of an object comes nowhere near these limits.
_DENSE = ((4096, 512), (64, 64))  # points, and for how many others the box of a segment meets, on average
_SAMPLE = 64  # segments that this average is taken over
_SPARE, _PER_POINT = 1 << 24, 1 << 8  # steps of counting windings that a call may take
_FACES = 64  # regions of a ring that are looked at when that is used up


def classify(coordinates: Floats, offsets: Integers) -> Kinds:
    """(m,) what each ring is: FEW, FLAT, SIMPLE, TOUCHING, KEYHOLE or CROSSED.

    SIMPLE is what shapely calls valid. Among the others, a ring is CROSSED when some place has a winding number other
    than 0 and one more, always the same: two strands that cross make three different ones around their crossing, and a
    ring that only touches or retraces itself makes two. KEYHOLE: it encloses places with winding number 0.
    Rings that are absurdly dense (`tangled`) count as CROSSED without a closer look.
    """
    kinds = np.full(offsets.size - 1, SIMPLE, np.int8)
    few = _few(coordinates, offsets)
    kinds[few] = FEW
    hard = np.flatnonzero(~few & ~star_shaped(coordinates, offsets))
    dense = tangled(coordinates, offsets, hard, *_DENSE[0])
    kinds[hard[dense]] = CROSSED
    for part in _batches(hard[~dense], offsets, _COPIED):
        kinds[part] = _classified(part, coordinates, offsets)
    for number in np.concatenate([np.flatnonzero(kinds == FLAT), hard[dense]]).tolist():
        if len(np.unique(coordinates[offsets[number] : offsets[number + 1]], axis=0)) < 3:
            kinds[number] = FEW
    return kinds


def odd_rings(coordinates: Floats, offsets: Integers) -> Booleans:
    """(m,) rings that are not SIMPLE: for them Pick's theorem does not give the number of pixels."""
    odd: Booleans = classify(coordinates, offsets) != SIMPLE
    return odd


def star_shaped(coordinates: Floats, offsets: Integers) -> Booleans:
    """(m,) rings that certainly are simple, since they run once around the mean of their points without turning back.

    Most outlines of cells are. Where rounding could decide, and for rings of less than three points, it says no.
    """
    result = np.zeros(offsets.size - 1, np.bool_)
    for first, last in _slices(offsets):
        begin, end = int(offsets[first]), int(offsets[last])
        result[first:last] = _run_around(coordinates[begin:end], offsets[first : last + 1] - begin)
    return result


def _slices(offsets: Integers) -> Iterator[tuple[int, int]]:
    """First and last + 1 of runs of rings with about `_CACHED` points."""
    first, count = 0, offsets.size - 1
    while first < count:
        last = int(np.searchsorted(offsets, offsets[first] + _CACHED, side="right")) - 1
        last = min(max(last, first + 1), count)
        yield first, last
        first = last


def _run_around(coordinates: Floats, offsets: Integers) -> Booleans:
    """`star_shaped` for a few rings.

    Seen from the mean, each step turns by less than half a turn to the same side (the cross product of two successive
    points), and the ray to the right is passed once. An error of rounding of a cross product is smaller than 1e-14 of
    its terms, since each coordinate relative to the mean is off by at most 1e-16 of itself.
    """
    counts = np.diff(offsets)
    enough = counts >= 3
    if not enough.all():
        result = np.zeros(counts.size, np.bool_)
        if enough.any():
            kept = np.repeat(enough, counts)
            few = np.concatenate([[0], np.cumsum(counts[enough])])
            result[enough] = _run_around(coordinates[kept], few)
        return result
    starts, ends = offsets[:-1], offsets[1:] - 1
    relative = []
    still = np.ones(len(coordinates), np.bool_)  # the next point is the same again, as where a ring is closed
    for axis in (0, 1):
        values = np.ascontiguousarray(coordinates[:, axis])
        following = np.empty_like(values)
        following[:-1] = values[1:]
        following[ends] = values[starts]
        still &= values == following
        mean = np.repeat(np.add.reduceat(values, starts) / counts, counts)
        relative.append((values - mean, following - mean))
    (x, next_x), (y, next_y) = relative
    one, other = x * next_y, y * next_x
    cross = one - other
    slack = (np.abs(one) + np.abs(other)) * 1e-14 + 1e-200
    low, high = cross - slack, cross + slack
    low[still], high[still] = np.inf, -np.inf
    turns = (np.minimum.reduceat(low, starts) > 0) | (np.maximum.reduceat(high, starts) < 0)
    passed = np.add.reduceat((y < 0) & (next_y >= 0), starts, dtype=np.int64)
    once: Booleans = turns & (passed == 1)
    return once


def _few(coordinates: Floats, offsets: Integers) -> Booleans:
    """Rings of too few points to build: none, one, two, or three of which the last closes the ring."""
    counts = geometry.lengths(offsets)
    three = np.flatnonzero(counts == 3)
    first = offsets[:-1][three]
    few: Booleans = counts < 3
    few[three] = (coordinates[first] == coordinates[first + 2]).all(axis=1)
    return few


def _batches(numbers: Integers, offsets: Integers, points: int) -> list[Integers]:
    """The ring numbers in parts of about `points` points."""
    if not numbers.size:
        return []
    cumulated = np.cumsum(geometry.lengths(offsets)[numbers])
    cuts = np.searchsorted(cumulated, np.arange(points, int(cumulated[-1]), points))
    return [part for part in np.split(numbers, np.unique(cuts)) if part.size]


def gather(coordinates: Floats, offsets: Integers, rings: Integers) -> tuple[Floats, Integers]:
    """The points of some rings, and the number (from 0) of the ring of each."""
    counts = geometry.lengths(offsets)[rings]
    index = np.repeat(np.arange(rings.size), counts)
    if int(rings[-1]) - int(rings[0]) + 1 == rings.size:  # without gaps, as nearly always: no copy
        return coordinates[offsets[rings[0]] : offsets[rings[-1] + 1]], index
    inner = np.arange(index.size) - np.repeat(np.cumsum(counts) - counts, counts)
    return coordinates[offsets[rings][index] + inner], index


def _classified(rings: Integers, coordinates: Floats, offsets: Integers) -> Kinds:
    import shapely

    flat, index = gather(coordinates, offsets, rings)
    lines = shapely.linearrings(flat, indices=index)
    odd = np.flatnonzero(~shapely.is_valid(shapely.polygons(lines)))
    kinds = np.full(rings.size, SIMPLE, np.int8)
    if odd.size:
        dense = tangled(coordinates, offsets, rings[odd], *_DENSE[1])
        kinds[odd[dense]] = CROSSED
        odd = odd[~dense]
        kinds[odd] = _told_apart(lines[odd], coordinates, offsets, rings[odd])
    return kinds


def _told_apart(lines: Any, coordinates: Floats, offsets: Integers, rings: Integers) -> Kinds:
    """`_windings`; a ring that GEOS cannot take apart (numbers as small as 1e-300) is CROSSED and harms no other."""
    import shapely

    try:
        with np.errstate(all="ignore"):
            return _windings(lines, coordinates, offsets, rings)
    except shapely.errors.GEOSException:
        if rings.size == 1:
            return np.array([CROSSED], np.int8)
    half = rings.size // 2
    parts = (slice(None, half), slice(half, None))
    return np.concatenate([_told_apart(lines[part], coordinates, offsets, rings[part]) for part in parts])


def tangled(coordinates: Floats, offsets: Integers, rings: Integers, points: int, others: int) -> Booleans:
    """(k,) which of these rings have more than so many points, and segments whose boxes meet so many others'."""
    result = np.zeros(rings.size, np.bool_)
    counts = geometry.lengths(offsets)[rings]
    for place in np.flatnonzero(counts > points).tolist():
        ring = coordinates[offsets[rings[place]] : offsets[rings[place] + 1]]
        following = np.roll(ring, -1, axis=0)
        low, high = np.minimum(ring, following), np.maximum(ring, following)
        met = 0
        for k in np.linspace(0, len(ring) - 1, _SAMPLE).astype(np.int64).tolist():
            met += int(np.count_nonzero(((low <= high[k]) & (high >= low[k])).all(axis=1)))
        result[place] = met > others * _SAMPLE
    return result


def _windings(lines: Any, coordinates: Floats, offsets: Integers, rings: Integers) -> Kinds:
    """What each ring that shapely refuses is: FLAT, TOUCHING, KEYHOLE or CROSSED."""
    import shapely

    faces, owner = shapely.get_parts(
        shapely.polygonize(shapely.node(lines)[:, None], axis=1), return_index=True
    )  # every bounded region that the ring's lines cut the plane into
    kinds = np.full(rings.size, FLAT, np.int8)
    counts = geometry.lengths(offsets)[rings]
    if int(counts[owner].sum()) > _SPARE + _PER_POINT * int(counts.sum()):
        faces, owner = _thinned(faces, owner)
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


def _thinned(faces: npt.NDArray[Any], owner: Integers) -> tuple[npt.NDArray[Any], Integers]:
    """About `_FACES` of the faces of each ring, evenly chosen."""
    first = np.searchsorted(owner, owner)  # `owner` ascends
    total = np.searchsorted(owner, owner, side="right") - first
    kept = (np.arange(owner.size) - first) % np.maximum(total // _FACES, 1) == 0
    return faces[kept], owner[kept]


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
