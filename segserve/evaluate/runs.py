"""Objects as runs of pixels, row by row: exact for overlapping objects and for images of any size.

A run is the pixels `start … stop - 1` of one row. Unlike a label image runs can hold objects that overlap, and they
cost what the objects are high, not what the image is large.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from segserve.errors import TooLarge
from segserve.format import geometry
from segserve.format.document import Floats, Integers

LIMIT = 1 << 27  # crossings of edges and rows of one image, pairs of runs
BATCH = 1 << 21  # crossings that are worked on at once
Shape = tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """`owner` (k,) is the position of the object; `row`, `start`, `stop` (k,) int64. Sorted, disjoint per owner."""

    owner: Integers
    row: Integers
    start: Integers
    stop: Integers

    def areas(self, count: int) -> Floats:
        """(count,) pixels of each object."""
        return np.bincount(self.owner, self.stop - self.start, count).astype(np.float64)

    def united(self) -> Runs:
        """All objects as one: owner 0."""
        return merged(np.zeros_like(self.owner), self.row, self.start, self.stop)

    def clipped(self, shape: Shape) -> Runs:
        """Without the pixels outside an image of (rows, columns)."""
        start, stop = np.maximum(self.start, 0), np.minimum(self.stop, shape[1])
        keep = (self.row >= 0) & (self.row < shape[0]) & (start < stop)
        return Runs(self.owner[keep], self.row[keep], start[keep], stop[keep])


def merged(owner: Integers, row: Integers, start: Integers, stop: Integers) -> Runs:
    """Runs in any order, empty ones among them, that may touch or overlap: sorted and joined per owner and row."""
    keep = np.flatnonzero(stop > start)
    order = keep[np.lexsort((start[keep], row[keep], owner[keep]))]
    owner, row, start, stop = owner[order], row[order], start[order], stop[order]
    if not len(order):
        return Runs(owner, row, start, stop)
    line = np.append(0, np.cumsum((owner[1:] != owner[:-1]) | (row[1:] != row[:-1])))
    low = int(start.min())
    span = int(stop.max()) - low + 1
    # How far each line reaches so far; as lines have codes of their own, one running maximum serves all of them.
    reach = np.maximum.accumulate(line * span + (stop - low))
    first = np.append(True, line[1:] * span + (start[1:] - low) > reach[:-1])
    last = np.append(np.flatnonzero(first)[1:] - 1, len(first) - 1)
    return Runs(owner[first], row[first], start[first], reach[last] - line[last] * span + low)


def of_mask(ranks: npt.NDArray[np.integer]) -> Runs:
    """Runs of a mask (rows, columns) of object positions from 1; 0 is background."""
    rows, columns = ranks.shape
    if not ranks.size:
        nothing = np.empty(0, np.int64)
        return Runs(nothing, nothing, nothing, nothing)
    change = np.ones((rows, columns), bool)
    np.not_equal(ranks[:, 1:], ranks[:, :-1], out=change[:, 1:])
    begin = np.flatnonzero(change)
    owner = ranks.ravel()[begin].astype(np.int64) - 1
    end = np.append(begin[1:], ranks.size)
    keep = owner >= 0
    begin, end, owner = begin[keep], end[keep], owner[keep]
    row = begin // columns
    order = np.argsort(owner, kind="stable")
    return Runs(owner[order], row[order], (begin - row * columns)[order], (end - row * columns)[order])


def of_rings(coordinates: Floats, offsets: Integers, owner: Integers) -> Runs:
    """Runs of closed rings (even-odd, points on the line included); `owner` (m,) is the object of each ring.

    The arithmetic is that of `segserve_sdk.contours`, for many rings at once.

    Raises:
        TooLarge: the rings reach over so many rows that they would not fit into memory.
    """
    following = coordinates[geometry.successors(offsets)]
    low = np.ceil(np.minimum(coordinates[:, 1], following[:, 1]))
    high = np.floor(np.maximum(coordinates[:, 1], following[:, 1]))
    work = np.append(0, np.cumsum(np.maximum(high - low + 1, 0)))[offsets]
    if work[-1] > LIMIT:
        raise TooLarge(
            f"The polygons of one image cross {int(work[-1])} rows of pixels; {LIMIT} is the limit.",
            hint="Are these coordinates in pixels?",
        )
    parts, begin = [], 0
    while begin < len(owner):
        end = max(int(np.searchsorted(work, work[begin] + BATCH, "right")) - 1, begin + 1)
        first, last = offsets[begin], offsets[end]
        ring = np.repeat(np.arange(begin, end), np.diff(offsets[begin : end + 1]))
        parts.append(_of_edges(coordinates[first:last], following[first:last], owner[ring], ring))
        begin = end
    ascending = len(owner) < 2 or bool((owner[1:] > owner[:-1]).all())
    return _stacked(parts) if ascending else joined(parts)


def _of_edges(points: Floats, following: Floats, owner: Integers, ring: Integers) -> Runs:
    """The runs of rings given by their edges (n, 2) → (n, 2); `owner` and `ring` (n,) of each."""
    rising = (points[:, 1] <= following[:, 1])[:, None]
    upper, lower = np.where(rising, points, following), np.where(rising, following, points)
    first, last = np.ceil(upper[:, 1]).astype(np.int64), np.floor(lower[:, 1]).astype(np.int64)
    count = np.maximum(last - first + 1, 0)
    edge = np.repeat(np.arange(len(count)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    (x0, y0), (x1, y1) = upper[edge].T, lower[edge].T
    level = y0 == y1
    x = np.where(row == y1, x1, x0 + (x1 - x0) * ((row - y0) / np.where(level, 1, y1 - y0)))
    crossing = np.flatnonzero(~level & (row < y1))
    inside = crossing[np.lexsort((x[crossing], row[crossing], ring[edge[crossing]]))]
    # Between odd and even crossings is inside; then the points on the line, and level edges.
    starts = np.concatenate([x[inside[0::2]], x, np.minimum(x0, x1)[level]])
    ends = np.concatenate([x[inside[1::2]], x, np.maximum(x0, x1)[level]])
    rows = np.concatenate([row[inside[0::2]], row, row[level]])
    owners = owner[np.concatenate([edge[inside[0::2]], edge, edge[level]])]
    return merged(owners, rows, np.ceil(starts).astype(np.int64), np.floor(ends).astype(np.int64) + 1)


def of_pixels(owner: Integers, row: Integers, column: Integers) -> Runs:
    """Runs of single pixels."""
    return merged(owner, row, column, column + 1)


def joined(parts: list[Runs]) -> Runs:
    """Several sets of runs as one."""
    everything = _stacked(parts)
    return merged(everything.owner, everything.row, everything.start, everything.stop)


def _stacked(parts: list[Runs]) -> Runs:
    def column(name: str) -> Integers:
        return np.concatenate([np.empty(0, np.int64), *(getattr(part, name) for part in parts)])

    return Runs(column("owner"), column("row"), column("start"), column("stop"))


def painted(runs: Runs, shape: Shape) -> npt.NDArray[np.int32]:
    """A mask (rows, columns) of object positions from 1; where objects overlap, the last one wins."""
    runs = runs.clipped(shape)
    mask = np.zeros(shape, np.int32)
    length = runs.stop - runs.start
    begin = runs.row * shape[1] + runs.start
    at = np.arange(int(length.sum())) - np.repeat(np.cumsum(length) - length, length) + np.repeat(begin, length)
    # Assignment through an index array keeps the last value; owners ascend.
    mask.ravel()[at] = np.repeat(runs.owner + 1, length)
    return mask


def crossings(one: Runs, two: Runs) -> tuple[Integers, Integers, Integers]:
    """Every pair of runs that share pixels: positions in `one`, in `two`, number of pixels.

    Raises:
        TooLarge: objects lie upon each other so often that the pairs would not fit into memory.
    """
    if not len(one.row) or not len(two.row):
        nothing = np.empty(0, np.int64)
        return nothing, nothing, nothing
    begin1, end1, begin2, end2 = _positions(one, two)
    order1, order2 = np.argsort(begin1, kind="stable"), np.argsort(begin2, kind="stable")
    begin1, end1, begin2, end2 = begin1[order1], end1[order1], begin2[order2], end2[order2]
    # Of two runs that share pixels, either the second begins within the first (or with it), or the first begins
    # within the second: two disjoint cases, and each is a range in the other's sorted beginnings.
    low2, high2 = np.searchsorted(begin2, begin1, "left"), np.searchsorted(begin2, end1, "left")
    low1, high1 = np.searchsorted(begin1, begin2, "right"), np.searchsorted(begin1, end2, "left")
    total = int((high2 - low2).sum() + np.maximum(high1 - low1, 0).sum())
    if total > LIMIT:
        raise TooLarge(f"Objects of one image lie upon each other {total} times; {LIMIT} is the limit.")
    from1, to2 = _ranges(low2, high2)
    from2, to1 = _ranges(low1, high1)
    first, second = np.concatenate([from1, to1]), np.concatenate([to2, from2])
    pixels = np.minimum(end1[first], end2[second]) - np.maximum(begin1[first], begin2[second])
    return order1[first], order2[second], pixels


def _positions(one: Runs, two: Runs) -> tuple[Integers, Integers, Integers, Integers]:
    """Begin and end of all runs on one line of numbers, row behind row."""
    rows = np.concatenate([one.row, two.row])
    low = int(min(one.start.min(), two.start.min()))
    span = int(max(one.stop.max(), two.stop.max())) - low + 1
    rows -= rows.min()
    if int(rows.max()) * span >= 1 << 62:
        rows = np.unique(rows, return_inverse=True)[1].astype(np.int64)
    lines = rows * span - low
    line1, line2 = lines[: len(one.row)], lines[len(one.row) :]
    return line1 + one.start, line1 + one.stop, line2 + two.start, line2 + two.stop


def _ranges(low: Integers, high: Integers) -> tuple[Integers, Integers]:
    """(i, j) for every j in low[i] … high[i] - 1."""
    count = np.maximum(high - low, 0)
    source = np.repeat(np.arange(len(count)), count)
    return source, np.arange(len(source)) - np.repeat(np.cumsum(count) - count, count) + low[source]
