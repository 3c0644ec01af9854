"""Which object shares how many pixels with which: the sparse contingency table that every measure is computed from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from segserve.errors import UsageError
from segserve.evaluate import runs as rows
from segserve.evaluate.objects import Labels, Objects
from segserve.format.document import Floats, Integers

DENSE = 1 << 22  # cells of a contingency table that is counted densely


@dataclass(frozen=True, eq=False)
class Overlap:
    """Pairs of a predicted and a true object that share pixels, ordered by true, then by predicted position.

    `pred_areas` (P,) and `true_areas` (T,) in pixels; `pred`, `true` (k,) positions, `shared` (k,) pixels, > 0.
    `pred_pixels`, `true_pixels`, `both_pixels`: pixels of any object, each counted once.
    """

    pred_areas: Floats
    true_areas: Floats
    pred: Integers
    true: Integers
    shared: Floats
    pred_pixels: float
    true_pixels: float
    both_pixels: float

    @cached_property
    def iou(self) -> Floats:
        """(k,) intersection over union of each pair."""
        return self.shared / (self.pred_areas[self.pred] + self.true_areas[self.true] - self.shared)

    def same_name(self, pred: Objects, true: Objects) -> Overlap:
        """Only the pairs whose objects have the same class."""
        names = {name: number for number, name in enumerate(dict.fromkeys((*pred.names, *true.names)))}
        one, two = (np.fromiter((names[n] for n in side.names), np.int64, len(side)) for side in (pred, true))
        keep = one[self.pred] == two[self.true]
        return replace(self, pred=self.pred[keep], true=self.true[keep], shared=self.shared[keep])


def overlap(pred: Objects, true: Objects) -> Overlap:
    """Compare two sides of one image. Two label images are counted directly, everything else by runs.

    Where a size is known, pixels outside the image do not count. Runs find overlapping polygons several times faster
    than shapely's STRtree with intersections does, and count pixels exactly (benchmarks/compare.py).

    Raises:
        UsageError: the two images have different shapes.
        TooLarge: see `runs`.
    """
    if pred.shape and true.shape and pred.shape != true.shape:
        one, two = ("×".join(str(size) for size in side.shape or ()) for side in (pred, true))
        raise UsageError(
            f"The two images have different shapes (rows×columns): {one} and {two}.",
            hint="Compare results of the same image, at the same scale.",
        )
    if isinstance(pred.form, np.ndarray) and isinstance(true.form, np.ndarray):
        return _of_labels(pred, true, pred.form, true.form)
    return _of_runs(pred, true)


def _of_labels(pred: Objects, true: Objects, pred_labels: Labels, true_labels: Labels) -> Overlap:
    one, two = pred_labels.ravel(), true_labels.ravel()
    if not one.size:
        return _table(len(pred), len(true), *(np.empty(0, np.int64),) * 3)
    # Neighbouring pixels mostly are of the same pair: count runs of pairs.
    change = one[1:] != one[:-1]
    change |= two[1:] != two[:-1]
    begin = np.append(0, np.flatnonzero(change) + 1)
    length = np.diff(begin, append=one.size)
    return _table(len(pred), len(true), _rank(one[begin], pred.ids), _rank(two[begin], true.ids), length)


def _rank(values: Labels, ids: Integers) -> Integers:
    """Positions from 1, 0 for background."""
    if len(ids) and ids[-1] < 1 << 22:
        table = np.zeros(int(ids[-1]) + 1, np.int64)
        table[ids] = np.arange(1, len(ids) + 1)
        ranked: Integers = table[values]
        return ranked
    return np.searchsorted(ids, values, "right").astype(np.int64)


def _table(n_pred: int, n_true: int, pred: Integers, true: Integers, pixels: Integers) -> Overlap:
    """From pairs of positions from 1 (0: background) and how many pixels have them."""
    pred_areas = np.bincount(pred, pixels, n_pred + 1)[1:].astype(np.float64)
    true_areas = np.bincount(true, pixels, n_true + 1)[1:].astype(np.float64)
    both = (pred > 0) & (true > 0)
    pairs = _summed(pred[both] - 1, true[both] - 1, pixels[both], n_pred, n_true)
    return Overlap(
        pred_areas, true_areas, *pairs, float(pred_areas.sum()), float(true_areas.sum()), float(pixels[both].sum())
    )


def _summed(
    pred: Integers, true: Integers, pixels: Integers, n_pred: int, n_true: int
) -> tuple[Integers, Integers, Floats]:
    """Each pair once, ordered by true, then by pred."""
    codes = true * n_pred + pred
    if n_pred * n_true <= DENSE:
        sums = np.bincount(codes, pixels, n_pred * n_true)
        found = np.flatnonzero(sums)
        shared = sums[found].astype(np.float64)
    else:
        order = np.argsort(codes, kind="stable")
        codes, pixels = codes[order], pixels[order]
        first = np.flatnonzero(np.append(True, codes[1:] != codes[:-1])) if len(codes) else np.empty(0, np.int64)
        found = codes[first]
        shared = np.add.reduceat(pixels, first).astype(np.float64) if len(first) else np.empty(0)
    return found % max(n_pred, 1), found // max(n_pred, 1), shared


def _of_runs(pred: Objects, true: Objects) -> Overlap:
    shape = pred.shape or true.shape
    one, two = pred.runs, true.runs
    if shape:
        one, two = one.clipped(shape), two.clipped(shape)
    pred_areas, true_areas = one.areas(len(pred)), two.areas(len(true))
    first, second, pixels = rows.crossings(one, two)
    pairs = _summed(one.owner[first], two.owner[second], pixels, len(pred), len(true))
    all_pred, all_true = one.united(), two.united()
    pred_pixels, true_pixels = (float(side.areas(1)[0]) for side in (all_pred, all_true))
    if pred_pixels == pred_areas.sum() and true_pixels == true_areas.sum():
        both = float(pixels.sum())  # no objects of one side overlap
    else:
        both = float(rows.crossings(all_pred, all_true)[2].sum())
    return Overlap(pred_areas, true_areas, *pairs, pred_pixels, true_pixels, both)
