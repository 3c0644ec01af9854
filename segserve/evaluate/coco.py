"""COCO's average precision: objects ranked by score over all images, precision read at 101 recalls.

https://github.com/cocodataset/cocoapi/blob/master/PythonAPI/pycocotools/cocoeval.py, area range "all", no crowds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from segserve.evaluate.contingency import Overlap
from segserve.format.document import Floats, Integers

RECALLS = np.linspace(0, 1, 101)
NEARLY_ONE = 1 - 1e-10  # COCO lets an IoU of 1 pass a threshold of 1 in spite of rounding
Booleans = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Ranked:
    """One image: its overlap, the predictions' scores (P,), and the classes of both sides ("" = unknown)."""

    overlap: Overlap
    scores: Floats
    pred_names: Sequence[str]
    true_names: Sequence[str]


@dataclass(frozen=True, slots=True)
class CocoScores:
    """`ap` and `recall` (average recall) per threshold; NaN when no image has a true object."""

    thresholds: tuple[float, ...]
    ap: tuple[float, ...]
    recall: tuple[float, ...]

    @property
    def mean_ap(self) -> float:
        """COCO's headline number, when the thresholds are 0.5:0.95:0.05."""
        return float(np.mean(self.ap)) if self.ap else math.nan


def coco_scores(
    images: Sequence[Ranked], thresholds: Sequence[float], *, max_detections: int | None = None, by_name: bool = False
) -> CocoScores | None:
    """AP as pycocotools computes it; None when a prediction has no score (there is nothing to rank by).

    `max_detections`: only the best per image and class; pycocotools takes 100 unless told otherwise, here all count.
    `by_name`: objects match within their class, and the mean over the classes of the true objects is taken.
    """
    if any(np.isnan(image.scores).any() for image in images):
        return None
    names = sorted({name for image in images for name in image.true_names}) if by_name else [None]
    found = [_one_class(images, thresholds, name, max_detections) for name in names]
    defined = [one for one in found if one is not None]
    if not defined:
        nothing = (math.nan,) * len(thresholds)
        return CocoScores(tuple(thresholds), nothing, nothing)
    ap, recall = np.mean(defined, axis=0)
    return CocoScores(tuple(thresholds), tuple(ap.tolist()), tuple(recall.tolist()))


def _one_class(
    images: Sequence[Ranked], thresholds: Sequence[float], name: str | None, most: int | None
) -> tuple[list[float], list[float]] | None:
    scores, hits, n_true = [], [], 0
    for image in images:
        pred = _of_class(image.pred_names, name)
        true = np.isin(np.arange(len(image.true_names)), _of_class(image.true_names, name))
        n_true += int(true.sum())
        ranked = pred[np.argsort(-image.scores[pred], kind="stable")][:most]
        scores.append(image.scores[ranked])
        hits.append(_hits(image.overlap, ranked, true, thresholds))
    if not n_true:
        return None
    order = np.argsort(-np.concatenate(scores), kind="stable")
    ranked_hits = np.concatenate(hits, axis=1)[:, order]
    both = [_area(row, n_true) for row in ranked_hits]
    return [area for area, _ in both], [recall for _, recall in both]


def _of_class(names: Sequence[str], name: str | None) -> Integers:
    return np.array([n for n, own in enumerate(names) if name is None or own == name], np.int64)


def _hits(overlap: Overlap, ranked: Integers, true: Booleans, thresholds: Sequence[float]) -> Booleans:
    """(thresholds, predictions): does each prediction, best score first, still find a true object of its own?"""
    order = np.argsort(overlap.pred, kind="stable")
    ends = np.searchsorted(overlap.pred[order], np.arange(len(overlap.pred_areas) + 1))
    trues, ious = overlap.true[order].tolist(), overlap.iou[order].tolist()
    hits = np.zeros((len(thresholds), len(ranked)), bool)
    for number, threshold in enumerate(thresholds):
        free = true.copy()
        for rank, pred in enumerate(ranked.tolist()):
            best, partner = min(threshold, NEARLY_ONE), -1
            for edge in range(ends[pred], ends[pred + 1]):
                if free[trues[edge]] and ious[edge] >= best:  # of equal ones the last, as in pycocotools
                    best, partner = ious[edge], trues[edge]
            if partner >= 0:
                free[partner] = False
                hits[number, rank] = True
    return hits


def _area(hits: Booleans, n_true: int) -> tuple[float, float]:
    """Mean of the precision at 101 recalls, made monotonic; and the recall that is reached."""
    if not len(hits):
        return 0.0, 0.0
    true_positives = np.cumsum(hits).astype(np.float64)
    recall = true_positives / n_true
    precision = true_positives / (np.arange(1, len(hits) + 1) + np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, RECALLS, "left")
    return float(np.append(precision, 0.0)[np.minimum(at, len(precision))].mean()), float(recall[-1])
