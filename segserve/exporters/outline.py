"""From a ring to its pixels, and from pixels to their outline in corner coordinates.

Corner coordinates: pixel (0, 0) is the square from (0, 0) to (1, 1), as QuPath, ImageJ, COCO and most others have it.
The area of an outline is the number of pixels, exactly.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from segserve.format.document import Floats

Ring = npt.NDArray[np.int64]  # (n, 2) x, y; not closed
Polygon = list[Ring]  # the outer ring (clockwise on the screen), then its holes (counter-clockwise)
_STEPS = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])  # east, south, west, north
_RIGHT_PIXEL = ((0, 0), (-1, 0), (-1, -1), (0, -1))  # from the start of a step, the pixel to the right of it


def pixels(ring: Floats, shape: tuple[int, int]) -> tuple[npt.NDArray[np.bool_], int, int]:
    """The pixels of an image of `shape` (rows, columns) whose centres lie in the closed ring: (mask, left, top).

    `ring` is (n, 2) in pixel-centre coordinates. The mask is no larger than the ring's box within the image.
    """
    from segserve_sdk import contours

    if not len(ring):
        return np.zeros((0, 0), bool), 0, 0
    low = np.maximum(np.ceil(ring.min(axis=0)), 0)
    high = np.minimum(np.floor(ring.max(axis=0)), (shape[1] - 1, shape[0] - 1))
    width, height = (int(size) for size in np.maximum(high - low + 1, 0))
    if not width or not height:
        return np.zeros((0, 0), bool), 0, 0
    if _is_box(ring):  # single pixels and lines, of which there may be very many
        return np.ones((height, width), bool), int(low[0]), int(low[1])
    return contours.mask([(1, ring - low)], (height, width)) > 0, int(low[0]), int(low[1])


def _is_box(ring: Floats) -> bool:
    """Four corners of an upright rectangle, one after the other."""
    if len(ring) != 4:
        return False
    (a, b), (c, d), (e, f), (g, h) = ring.tolist()
    upright = a == c and d == f and e == g and h == b
    return upright or bool(b == d and c == e and f == h and g == a)


def polygons(mask: npt.NDArray[np.bool_]) -> list[Polygon]:
    """The outline of a mask as polygons with holes, valid in the sense of the OGC (of shapely, JTS, QuPath).

    Every ring is simple. There is one polygon per 4-connected part: pixels that touch at a corner only have no valid
    ring in common. Corners only; two neighbouring points of a ring differ in one coordinate.
    """
    loops = [part for loop in _loops(mask) for part in _simple(loop)]
    shells = [loop for loop in loops if _doubled_area(loop) > 0]
    if len(shells) == 1:
        return [[shells[0], *(loop for loop in loops if loop is not shells[0])]]
    import cv2

    _, part = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    by_part: dict[int, Polygon] = {int(part[_right_pixel(shell)]): [shell] for shell in shells}
    for loop in loops:
        if _doubled_area(loop) < 0:
            by_part[int(part[_right_pixel(loop)])].append(loop)
    return list(by_part.values())


def keyholes(parts: list[Polygon]) -> list[Ring]:
    """One ring each for targets whose polygons have no holes: parts that share corners, and their holes, joined.

    A way leads straight to the left from each hole, along a pixel border (never through a centre), and back: area and
    even-odd filling are those of the polygons. One ring is enough unless the object lies in pieces that do not touch.
    """
    waiting = [_in_one(polygon) for polygon in parts]
    rings = []
    while waiting:
        joined = waiting.pop(0)
        while (found := _touching(joined, waiting)) is not None:
            number, here, there = found
            other = np.roll(waiting.pop(number), -there, axis=0)
            joined = np.concatenate([joined[: here + 1], other[1:], joined[here:]])
        rings.append(joined)
    return rings


def _in_one(polygon: Polygon) -> Ring:
    joined, *holes = polygon
    for hole in sorted(holes, key=lambda ring: tuple(ring.min(axis=0).tolist())):
        joined = _with_hole(joined, hole)
    return joined


def _touching(ring: Ring, others: list[Ring]) -> tuple[int, int, int] | None:
    """The first other ring that shares a corner with a ring, and where in both that is."""
    places = {corner: place for place, corner in enumerate(map(tuple, ring.tolist()))}
    for number, other in enumerate(others):
        for there, corner in enumerate(map(tuple, other.tolist())):
            if corner in places:
                return number, places[corner], there
    return None


def _with_hole(ring: Ring, hole: Ring) -> Ring:
    """From the leftmost corner of the hole straight to the left, until the ring is met."""
    first = int(np.lexsort((hole[:, 1], hole[:, 0]))[0])
    entry = np.roll(hole, -first, axis=0)
    x, y = entry[0].tolist()
    following = np.roll(ring, -1, axis=0)
    low, high = np.minimum(ring[:, 1], following[:, 1]), np.maximum(ring[:, 1], following[:, 1])
    met = np.flatnonzero((ring[:, 0] == following[:, 0]) & (low <= y) & (y <= high) & (ring[:, 0] <= x))
    edge = int(met[ring[met, 0].argmax()])
    door = np.array([(ring[edge, 0], y)])
    before, after = ring[: edge + 1], ring[edge + 1 :]
    way = [door] if door[0, 0] != x else []  # else the hole touches the ring there
    detour = np.concatenate([*way, entry, entry[:1], *way])
    if (door == ring[edge]).all():  # the ring has this corner already, before the detour …
        detour = detour[1:]
    elif (door == following[edge]).all():  # … or behind it
        detour = detour[:-1]
    return np.concatenate([before, detour, after])


def _loops(mask: npt.NDArray[np.bool_]) -> list[Ring]:
    """The borders of a mask as closed walks of corners with the object on the right; they may touch themselves."""
    solid = np.pad(mask, 1).astype(np.int8)
    across, down = np.diff(solid, axis=0)[:, 1:-1], np.diff(solid, axis=1)[1:-1]
    starts, headings = [], []
    for heading, (edges, sign, offset) in enumerate(
        ((across, 1, (0, 0)), (down, -1, (0, 0)), (across, -1, (1, 0)), (down, 1, (0, 1)))
    ):
        rows, columns = np.nonzero(edges == sign)
        starts.append(np.stack([columns + offset[0], rows + offset[1]], axis=1))
        headings.append(np.full(len(rows), heading))
    start, heading_of = np.concatenate(starts), np.concatenate(headings)
    following = _following(start, heading_of, mask.shape[1] + 1)
    return _walk(start, heading_of.tolist(), following.tolist())


def _following(start: Ring, heading: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.int64]:
    """The edge behind each edge: the one to the right where there is a choice, so that the object stays on our right
    and pixels that touch at a corner are walked around one by one."""
    code = (start[:, 1] * width + start[:, 0]) * 4 + heading
    order = np.argsort(code)
    ordered = code[order]
    end = start + _STEPS[heading]
    at = (end[:, 1] * width + end[:, 0]) * 4
    result = np.full(len(code), -1, np.int64)
    for turn in (3, 0, 1):  # left, straight on, right: the last that exists stays
        wanted = at + (heading + turn) % 4
        found = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
        exists = ordered[found] == wanted
        result[exists] = order[found[exists]]
    return result


def _walk(start: Ring, heading: list[int], following: list[int]) -> list[Ring]:
    loops, seen = [], bytearray(len(heading))
    for first in range(len(heading)):
        if seen[first]:
            continue
        corners, edge = [], first
        while not seen[edge]:
            seen[edge] = 1
            after = following[edge]
            if heading[after] != heading[edge]:
                corners.append(after)
            edge = after
        loops.append(start[corners])
    return loops


def _simple(loop: Ring) -> list[Ring]:
    """A walk that touches itself, cut into rings that do not."""
    points = list(map(tuple, loop.tolist()))
    if len(set(points)) == len(points):
        return [loop]
    rings: list[Ring] = []
    stack: list[tuple[int, ...]] = []
    place: dict[tuple[int, ...], int] = {}
    for point in points:
        if point in place:
            cut = place[point]
            rings.append(np.array(stack[cut:]))
            for passed in stack[cut + 1 :]:
                del place[passed]
            del stack[cut + 1 :]
        else:
            place[point] = len(stack)
            stack.append(point)
    rings.append(np.array(stack))
    return rings


def _doubled_area(ring: Ring) -> int:
    x, y = ring.T
    return int(x @ np.roll(y, -1) - np.roll(x, -1) @ y)


def _right_pixel(ring: Ring) -> tuple[int, int]:
    """(row, column) of the pixel to the right of the ring's first step."""
    (x0, y0), (x1, y1) = ring[0].tolist(), ring[1].tolist()
    heading = (0 if x1 > x0 else 2) if y0 == y1 else (1 if y1 > y0 else 3)
    dx, dy = _RIGHT_PIXEL[heading]
    return y0 + dy, x0 + dx
