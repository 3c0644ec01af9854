"""One polygon from the rings of one part: outlines of what has no area, keyholes to its holes.

Rings are (n, 2) arrays of (x, y) pixel centres in the steps of `cv2.findContours`; `contours` says what they mean.
"""

from bisect import bisect_left
from typing import Dict, List, Tuple

import numpy as np


def first(ring: np.ndarray) -> Tuple[int, int]:
    """(y, x) of the uppermost, leftmost point: an order that does not hang on the way in which rings were found."""
    x, y = ring[np.lexsort((ring[:, 0], ring[:, 1]))[0]].tolist()
    return y, x


def _unit_steps(ring: np.ndarray) -> np.ndarray:
    """The pixels that a ring of 8-direction steps walks over, one after the other: (k, 2) int64."""
    step = np.roll(ring, -1, axis=0).astype(np.int64) - ring
    count = np.abs(step).max(axis=1)
    ahead = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return np.repeat(ring, count, axis=0) + np.repeat(np.sign(step), count, axis=0) * ahead[:, None]


def outline(ring: np.ndarray) -> np.ndarray:
    """The corner outline of the pixels that a ring without area walks over, round in cv2's direction."""
    pixels = set(map(tuple, _unit_steps(ring).tolist()))
    x, y = start = min(pixels, key=lambda pixel: (pixel[1], pixel[0]))
    dx, dy, corners = 1, 0, []
    while True:  # corner (x, y) is the upper left one of pixel (x, y); the object lies to the right of our way
        x, y = x + dx, y + dy
        left = (x + (dx + dy - 1) // 2, y + (dy - dx - 1) // 2)
        right = (x + (dx - dy - 1) // 2, y + (dy + dx - 1) // 2)
        if left in pixels:  # first, so that pixels that touch at a corner stay together
            corners.append((x, y))
            dx, dy = dy, -dx
        elif right not in pixels:
            corners.append((x, y))
            dx, dy = -dy, dx
        if (x, y) == start and (dx, dy) == (1, 0):
            return np.array(corners[::-1]) - 0.5


def has_area(ring: np.ndarray) -> bool:
    """Whether a ring encloses anything, by twice its signed area."""
    x, y = ring.T
    return bool(np.dot(x, np.roll(y, -1)) != np.dot(y, np.roll(x, -1)))


def thin_outline(rings: List[np.ndarray], otherwise: np.ndarray) -> np.ndarray:
    """The corner outline, holes included, of a part whose rings all run through the same pixels: a closed thin line.

    Its own ring and those of its holes enclose the same area, so the keyhole has none. Such a line has diagonal steps
    (a corner without one would have area); there the outlines outside and inside touch, so one walk takes all of them
    (Hierholzer's). It touches itself and never crosses, whichever way it turns. `otherwise`: if there is no such walk.
    """
    pixels = {pixel for ring in rings for pixel in map(tuple, _unit_steps(ring).tolist())}
    ways: Dict[Tuple[int, int], List[Tuple[int, int]]] = {}
    for x, y in sorted(pixels, key=lambda pixel: (pixel[1], pixel[0])):
        corners = [(x, y), (x + 1, y), (x + 1, y + 1), (x, y + 1)]
        beyond = [(x, y - 1), (x + 1, y), (x, y + 1), (x - 1, y)]
        for side, neighbour in enumerate(beyond):
            if neighbour not in pixels:
                ways.setdefault(corners[side], []).append(corners[(side + 1) % 4])
    walk, todo = [], [next(iter(ways))]
    while todo:
        if ways[todo[-1]]:
            todo.append(ways[todo[-1]].pop())
        else:
            walk.append(todo.pop())
    if any(ways.values()):
        return otherwise
    return _turns(np.array(walk[:-1])) - 0.5


def keyhole(image: np.ndarray, rings: List[np.ndarray]) -> np.ndarray:
    """One ring from a part's ring (first) and those of its holes: (n, 2) float64.

    From the leftmost point of a hole a bridge goes left until the object ends, which is on the part's own ring or on
    that of a hole further left. All of its pixels are the object's, so the closed ring holds no pixel too many.
    """
    walks = [_unit_steps(ring) for ring in rings]
    walks[1:] = [np.roll(walk, -_leftmost(walk), axis=0) for walk in walks[1:]]
    points = np.concatenate(walks)
    begin = np.cumsum([0] + [len(walk) for walk in walks])
    codes = points[:, 1] * image.shape[1] + points[:, 0]
    order = np.argsort(codes, kind="stable")
    doors: Dict[int, int] = {}  # position among the points → the hole that is entered there
    for hole in range(1, len(walks)):
        x, y = points[begin[hole]].tolist()
        outside = np.flatnonzero(image[y, :x] != image[y, x])
        door = y * image.shape[1] + (int(outside[-1]) + 1 if len(outside) else 0)
        low, high = np.searchsorted(codes, [door, door + 1], sorter=order)
        spots = [spot for spot in order[low:high].tolist() if not begin[hole] <= spot < begin[hole + 1]]
        doors[next((spot for spot in spots if _opens_right(points, begin, spot)), spots[0])] = hole
    return _turns(points[_tour(begin.tolist(), doors)]).astype(np.float64)


def _leftmost(walk: np.ndarray) -> int:
    """Where a walk is leftmost, of several such points the uppermost: wherever cv2 began with the ring."""
    following = np.roll(walk, -1, axis=0)
    return int(np.lexsort((following[:, 1], following[:, 0], walk[:, 1], walk[:, 0]))[0])


def _opens_right(points: np.ndarray, begin: np.ndarray, spot: int) -> bool:
    """Whether the object lies to the right of a ring's point, between its way in and its way out.

    A ring may pass a pixel several times; a bridge from the right that meets the wrong passage would cross the ring.
    """
    ring = int(np.searchsorted(begin, spot, side="right")) - 1
    first, length = begin[ring], begin[ring + 1] - begin[ring]
    back = points[first + (spot - first - 1) % length] - points[spot]
    ahead = points[first + (spot - first + 1) % length] - points[spot]
    way_out, way_in = np.arctan2(ahead[1], ahead[0]), np.arctan2(back[1], back[0])
    return bool(way_out % (2 * np.pi) <= ((way_out - way_in) % (2 * np.pi) or 2 * np.pi))


def _tour(begin: List[int], doors: Dict[int, int]) -> List[int]:
    """Positions in the order of one walk: along the part's ring, at each door to the hole, around it and back."""
    spots = sorted(doors)
    tour: List[int] = []
    todo = [(0, 0, begin[1])]  # go on at a position, look for doors from a position on, end
    while todo:
        position, look, end = todo.pop()
        found = bisect_left(spots, look)
        if found == len(spots) or spots[found] >= end:
            tour.extend(range(position, end))
            continue
        spot = spots[found]
        hole = doors[spot]
        tour.extend(range(position, spot + 1))
        todo += [(spot, spot + 1, end), (begin[hole], begin[hole] + 1, begin[hole] + 1)]
        todo.append((begin[hole], begin[hole], begin[hole + 1]))
    return tour


def _turns(ring: np.ndarray) -> np.ndarray:
    """The ring without repeated points and without those between two steps in the same direction."""
    ring = ring[(ring != np.roll(ring, 1, axis=0)).any(axis=1)]
    ahead = np.sign(np.roll(ring, -1, axis=0) - ring)
    return ring[(ahead != np.roll(ahead, 1, axis=0)).any(axis=1)]
