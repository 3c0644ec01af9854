"""Numbers per image and pooled. Everything is kept as sums, so that a pooled number is one of sums, not of ratios."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from segserve.evaluate.contingency import Overlap
from segserve.evaluate.matching import match
from segserve.format.document import Floats, Integers

AT_THRESHOLD = ("ap", "precision", "recall", "f1", "panoptic_quality", "mean_matched_iou", "mean_true_iou")
WITHOUT_THRESHOLD = ("dice", "foreground_iou", "aji", "aji_cellpose", "seg")


@dataclass(frozen=True, slots=True, eq=False)
class Tally:
    """The sums of one or more images.

    `predicted`, `true`: objects. `hits` (k,) matched pairs and `iou_sums` (k,) their summed IoU at each of
    `thresholds`. `pred_pixels`, `true_pixels`, `both_pixels`: pixels of any object. `aji_shared`, `aji_union`: Kumar's
    sums. `matched_shared`: pixels that matched objects share. `seg_sum`: CTC's Jaccard index, summed over true objects.
    """

    thresholds: tuple[float, ...]
    predicted: int
    true: int
    hits: Integers
    iou_sums: Floats
    pred_pixels: float
    true_pixels: float
    both_pixels: float
    aji_shared: float
    aji_union: float
    matched_shared: float
    seg_sum: float

    def at(self, index: int) -> dict[str, Any]:
        """The numbers at one threshold. NaN where neither side has an object: there is nothing to be right about."""
        tp, iou_sum = int(self.hits[index]), float(self.iou_sums[index])
        fp, fn = self.predicted - tp, self.true - tp
        nothing = math.nan if self.predicted == self.true == 0 else 0.0
        return {
            "iou": self.thresholds[index],
            "tp": tp,
            "fp": fp,
            "fn": fn,
            "ap": _ratio(tp, tp + fp + fn, nothing),
            "precision": _ratio(tp, tp + fp, nothing),
            "recall": _ratio(tp, tp + fn, nothing),
            "f1": _ratio(2 * tp, 2 * tp + fp + fn, nothing),
            "panoptic_quality": _ratio(iou_sum, tp + (fp + fn) / 2, nothing),
            "mean_matched_iou": _ratio(iou_sum, tp, nothing),
            "mean_true_iou": _ratio(iou_sum, self.true, nothing),
        }

    def overall(self) -> dict[str, float]:
        """The numbers that have no threshold; NaN as above."""
        either = self.pred_pixels + self.true_pixels - self.both_pixels
        return {
            "dice": _ratio(2 * self.both_pixels, self.pred_pixels + self.true_pixels, math.nan),
            "foreground_iou": _ratio(self.both_pixels, either, math.nan),
            "aji": _ratio(self.aji_shared, self.aji_union, math.nan),
            "aji_cellpose": _ratio(self.matched_shared, either, math.nan),
            "seg": _ratio(self.seg_sum, self.true, math.nan if not self.predicted else 0.0),
        }

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        at = [self.at(index) for index in range(len(self.thresholds))]
        mean_ap = float(np.mean([one["ap"] for one in at]))
        return {"predicted": self.predicted, "true": self.true, "mean_ap": mean_ap, **self.overall(), "at": at}


def _ratio(part: float, whole: float, otherwise: float) -> float:
    return part / whole if whole else otherwise


def tally(overlap: Overlap, thresholds: Sequence[float]) -> Tally:
    """The sums of one image."""
    matches = [match(overlap, threshold) for threshold in thresholds]
    shared, union = _kumar(overlap)
    return Tally(
        tuple(thresholds),
        len(overlap.pred_areas),
        len(overlap.true_areas),
        np.array([len(one) for one in matches], np.int64),
        np.array([one.iou.sum() for one in matches], np.float64),
        overlap.pred_pixels,
        overlap.true_pixels,
        overlap.both_pixels,
        shared,
        union,
        float(match(overlap, 0.5, rest=True).shared.sum()),
        _seg(overlap),
    )


def pool(tallies: Sequence[Tally]) -> Tally:
    """The sums of several images as one."""
    if not tallies:
        raise ValueError("nothing to pool")
    return Tally(
        tallies[0].thresholds,
        sum(one.predicted for one in tallies),
        sum(one.true for one in tallies),
        np.sum([one.hits for one in tallies], axis=0),
        np.sum([one.iou_sums for one in tallies], axis=0),
        *(
            math.fsum(getattr(one, name) for one in tallies)
            for name in Tally.__slots__[Tally.__slots__.index("pred_pixels") :]
        ),
    )


def mean_of_images(tallies: Sequence[Tally]) -> dict[str, Any]:
    """Each number's mean over the images in which it is defined."""
    alone = [one.as_dict() for one in tallies]
    at = [
        {"iou": threshold} | {name: _mean([one["at"][index][name] for one in alone]) for name in AT_THRESHOLD}
        for index, threshold in enumerate(tallies[0].thresholds)
    ]
    means = {name: _mean([one[name] for one in alone]) for name in ("mean_ap", *WITHOUT_THRESHOLD)}
    return {**means, "at": at}


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def _best_per_true(overlap: Overlap) -> Integers:
    """For each true object that shares pixels with any, the pair of the greatest IoU (the first of equal ones)."""
    order = np.lexsort((-overlap.iou, overlap.true))
    first = np.append(True, np.diff(overlap.true[order]) > 0)[: len(order)]
    best: Integers = order[first]
    return best


def _kumar(overlap: Overlap) -> tuple[float, float]:
    """Shared and united pixels of AJI, as Kumar et al. 2017 define it (doi:10.1109/TMI.2017.2677499, algorithm 1)."""
    best = _best_per_true(overlap)
    pred, true = overlap.pred[best], overlap.true[best]
    alone_true = overlap.true_areas.sum() - overlap.true_areas[true].sum()
    used = np.zeros(len(overlap.pred_areas), bool)
    used[pred] = True
    shared = overlap.shared[best].sum()
    union = (overlap.pred_areas[pred] + overlap.true_areas[true] - overlap.shared[best]).sum()
    return float(shared), float(union + alone_true + overlap.pred_areas[~used].sum())


def _seg(overlap: Overlap) -> float:
    """The IoU of the predicted object that covers more than half of a true one, summed over the true objects.

    Cell Tracking Challenge, SEG. Where several do (predicted objects overlap), the greatest counts.
    """
    most = np.zeros(len(overlap.true_areas))
    covers = overlap.shared > 0.5 * overlap.true_areas[overlap.true]
    np.maximum.at(most, overlap.true[covers], overlap.iou[covers])
    return float(most.sum())
