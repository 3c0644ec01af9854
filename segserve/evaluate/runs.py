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
    keep = stop > start
    if not keep.all():
        owner, row, start, stop = owner[keep], row[keep], start[keep], stop[keep]
    if not len(owner):
        return Runs(owner, row, start, stop)
    order = _order(owner, row, start)
    owner, row, start, stop = owner[order], row[order], start[order], stop[order]
    line = np.append(0, np.cumsum((owner[1:] != owner[:-1]) | (row[1:] != row[:-1])))
    low = int(start.min())
    span = int(stop.max()) - low + 1
    # How far each line reaches so far; as lines have codes of their own, one running maximum serves all of them.
    reach = np.maximum.accumulate(line * span + (stop - low))
    first = np.append(True, line[1:] * span + (start[1:] - low) > reach[:-1])
    if first.all():
        return Runs(owner, row, start, stop)
    last = np.append(np.flatnonzero(first)[1:] - 1, len(first) - 1)
    return Runs(owner[first], row[first], start[first], reach[last] - line[last] * span + low)


def _order(owner: Integers, row: Integers, start: Integers) -> Integers:
    """By owner, row, start: sorting one number is several times faster than three."""
    spans = [int(values.max()) - int(values.min()) + 1 for values in (owner, row, start)]
    if spans[0] * spans[1] * spans[2] >= 1 << 62:
        return np.lexsort((start, row, owner)).astype(np.int64)
    code = (owner * spans[1] + (row - row.min())) * spans[2] + (start - start.min())
    if (code[1:] >= code[:-1]).all():
        return np.arange(len(code))
    return np.argsort(code)


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
    steps = np.abs(np.ceil(following[:, 1]) - np.ceil(coordinates[:, 1])) + 1
    work = np.append(0, np.cumsum(steps))[offsets]
    if work[-1] > LIMIT:
        raise TooLarge(
            f"The polygons of one image cross {int(work[-1])} rows of pixels; {LIMIT} is the limit.",
            hint="Are these coordinates in pixels?",
        )
    parts, begin = [], 0
    while begin < len(owner):
        end = max(int(np.searchsorted(work, work[begin] + BATCH, "right")) - 1, begin + 1)
        own = slice(int(offsets[begin]), int(offsets[end]))
        ring = np.repeat(np.arange(begin, end), np.diff(offsets[begin : end + 1]))
        parts.append(_of_edges(coordinates[own], following[own], owner, ring))
        begin = end
    ascending = len(owner) < 2 or bool((owner[1:] > owner[:-1]).all())
    return _stacked(parts) if ascending else joined(parts)


def _of_edges(points: Floats, following: Floats, owner: Integers, ring: Integers) -> Runs:
    """The runs of whole rings given by their edges (n, 2) → (n, 2); `ring` (n,) of each, `owner` (m,) of each ring."""
    (px, py), (fx, fy) = np.ascontiguousarray(points.T), np.ascontiguousarray(following.T)
    edge, row, x = _crossings_of_rows(px, py, fx, fy)
    left, right = _pairs(ring[edge], row, x)
    # The lower end of an edge is no crossing (the next edge begins there). That leaves level edges, and tips at the
    # bottom: a point behind a falling edge and in front of a rising one.
    level = np.flatnonzero((py == fy) & (py == np.rint(py)))
    falls = py < fy
    behind = np.flatnonzero(falls[:-1] & (fy[1:] < py[1:]) & (ring[1:] == ring[:-1])) + 1
    ends = np.flatnonzero(np.append(ring[1:] != ring[:-1], True)) if len(ring) else np.empty(0, np.int64)
    starts = np.append(0, ends[:-1] + 1)[: len(ends)]
    tips = np.append(behind, starts[falls[ends] & (fy[starts] < py[starts])])
    tips = tips[py[tips] == np.rint(py[tips])]
    low = np.concatenate([x[left], np.minimum(px, fx)[level], px[tips]])
    high = np.concatenate([x[right], np.maximum(px, fx)[level], px[tips]])
    at = np.concatenate([row[left], py[level].astype(np.int64), py[tips].astype(np.int64)])
    of = owner[ring[np.concatenate([edge[left], level, tips])]]
    return merged(of, at, np.ceil(low).astype(np.int64), np.floor(high).astype(np.int64) + 1)


def _crossings_of_rows(px: Floats, py: Floats, fx: Floats, fy: Floats) -> tuple[Integers, Integers, Floats]:
    """Edge, row and x of every row that an edge crosses, its lower end excluded."""
    falls = py <= fy
    x0, x1, y0, y1 = np.where(falls, px, fx), np.where(falls, fx, px), np.minimum(py, fy), np.maximum(py, fy)
    first = np.ceil(y0).astype(np.int64)
    count = np.ceil(y1).astype(np.int64) - first
    edge = np.repeat(np.arange(len(count)), count)
    row = np.arange(len(edge)) + np.repeat(first - (np.cumsum(count) - count), count)
    top = y0[edge]
    x = x0[edge] + (x1 - x0)[edge] * ((row - top) / (y1[edge] - top))
    return edge, row, x


def _pairs(ring: Integers, row: Integers, x: Floats) -> tuple[Integers, Integers]:
    """Positions of odd and even crossings: inside is between them. Rings cross a row an even number of times."""
    if not len(row):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    top, height = int(row.min()), int(row.max()) - int(row.min()) + 1
    line = ring * height + (row - top)
    order = np.argsort(line, kind="stable")
    line = line[order]
    left, right = order[0::2], order[1::2]
    # Most rows are crossed twice; only the others need their crossings sorted.
    more = np.flatnonzero(line[1:-1:2] == line[2::2])
    if len(more):
        busy = np.isin(line, line[2 * more + 1])
        sub = order[busy]
        sub = sub[np.lexsort((x[sub], line[busy]))]
        calm = ~busy[0::2]
        left, right = np.append(left[calm], sub[0::2]), np.append(right[calm], sub[1::2])
    wrong = x[left] > x[right]
    return np.where(wrong, right, left), np.where(wrong, left, right)


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
