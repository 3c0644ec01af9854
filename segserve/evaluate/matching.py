"""Who belongs to whom: a one-to-one matching of predicted and true objects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segserve.evaluate.contingency import Overlap
from segserve.format.document import Floats, Integers


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """Matched pairs, ordered by true position: `pred`, `true` (k,) positions, `iou` (k,), `shared` (k,) pixels."""

    pred: Integers
    true: Integers
    iou: Floats
    shared: Floats

    def __len__(self) -> int:
        """How many pairs."""
        return len(self.iou)


def match(overlap: Overlap, threshold: float, *, rest: bool = False) -> Matches:
    """As many pairs of IoU ≥ `threshold` as possible, and among such matchings the one of the greatest sum of IoU.

    That is what stardist and cellpose maximise. Above an IoU of 0.5 there is nothing to choose: when no object is in
    two pairs over the threshold, all of these pairs are the matching. `rest` also matches what is left, below it.
    """
    iou = overlap.iou
    strong = np.flatnonzero(iou >= threshold)
    if _unique(overlap.pred[strong]) and _unique(overlap.true[strong]):
        chosen = strong
        if rest:
            free = ~np.isin(overlap.pred, overlap.pred[strong]) & ~np.isin(overlap.true, overlap.true[strong])
            left = np.flatnonzero(free)
            chosen = np.sort(np.append(strong, left[_assign(overlap.true[left], overlap.pred[left], iou[left])]))
    else:
        scale = 2 * max(min(len(overlap.pred_areas), len(overlap.true_areas)), 1)
        chosen = _assign(overlap.true, overlap.pred, (iou >= threshold) + iou / scale)
        if not rest:
            chosen = chosen[iou[chosen] >= threshold]
    return Matches(overlap.pred[chosen], overlap.true[chosen], iou[chosen], overlap.shared[chosen])


def _unique(values: Integers) -> bool:
    return len(np.unique(values)) == len(values)


def _assign(rows: Integers, columns: Integers, weight: Floats) -> Integers:
    """Positions of the edges of a matching of the greatest weight; weights are between 0 and 1.5.

    A sparse Hungarian algorithm: every row may also take a column of its own that costs as much as staying alone.
    """
    if not len(rows):
        return np.empty(0, np.int64)
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    row_names, row = np.unique(rows, return_inverse=True)
    column_names, column = np.unique(columns, return_inverse=True)
    height, width = len(row_names), len(column_names)
    alone = np.arange(height)
    costs = np.append(2 - weight, np.full(height, 2.0))
    indices = (np.append(row, alone), np.append(column, width + alone))
    graph = csr_array((costs, indices), shape=(height, width + height))
    taken_row, taken_column = min_weight_full_bipartite_matching(graph)
    taken = taken_column < width
    codes = taken_row[taken].astype(np.int64) * width + taken_column[taken]
    return np.flatnonzero(np.isin(row.astype(np.int64) * width + column, codes))
