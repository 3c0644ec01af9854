"""Did this executor change? What became of every object from one result (the reference) to the next."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from segserve.evaluate.contingency import Overlap, overlap
from segserve.evaluate.matching import match
from segserve.evaluate.objects import Objects

SAME_OBJECT = 0.5  # IoU over which an object counts as the same one; nothing else can be it then
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
STATUSES = ("same", "changed", "lost", "new")


@dataclass(frozen=True, slots=True)
class Change:
    """One object. `reference` and `now` are its ids (label values, positions from 1) on either side, None: not there.

    `status`: `same` (the same pixels), `changed` (IoU over 0.5), `lost`, `new`. `iou` is 0 for the last two. `score` is
    the difference of the scores, None unless both have one. `renamed` says that its class is another.
    """

    status: str
    reference: int | None
    now: int | None
    iou: float
    score: float | None = None
    renamed: bool = False


@dataclass(frozen=True, slots=True)
class Drift:
    """One image: its objects, first those of the reference in their order, then the new ones in theirs."""

    changes: tuple[Change, ...]

    @property
    def value(self) -> float:
        """1 - panoptic quality at IoU 0.5: 0 when all objects have the same pixels, 1 when none is found again."""
        counts = self.counts
        matched = counts["same"] + counts["changed"]
        whole = matched + (counts["lost"] + counts["new"]) / 2
        return 1 - sum(change.iou for change in self.changes) / whole if whole else 0.0

    @property
    def counts(self) -> dict[str, int]:
        """How many objects of each status."""
        found = Counter(change.status for change in self.changes)
        return {status: found[status] for status in STATUSES}

    def as_dict(self) -> dict[str, Any]:
        """Numbers of this image, for JSON: drift, counts, quantiles of the matched IoU, changes of score and class."""
        matched = [change.iou for change in self.changes if change.status in ("same", "changed")]
        quantiles = np.quantile(matched, QUANTILES, method="lower").tolist() if matched else [None] * len(QUANTILES)
        scores = [abs(change.score) for change in self.changes if change.score is not None]
        return {
            "drift": self.value,
            **self.counts,
            "iou": {f"q{round(100 * q)}": value for q, value in zip(QUANTILES, quantiles, strict=True)},
            "largest_score_change": max(scores, default=None),
            "renamed": sum(change.renamed for change in self.changes),
        }


def drift(now: Objects, reference: Objects) -> Drift:
    """What changed from `reference` to `now` in one image; overlapping objects are matched one to one.

    Raises:
        UsageError, TooLarge: as `overlap`.
    """
    table: Overlap = overlap(now, reference)
    matches = match(table, SAME_OBJECT)
    partner = dict(
        zip(matches.true.tolist(), zip(matches.pred.tolist(), matches.iou.tolist(), strict=True), strict=True)
    )
    changes = []
    for position, name in enumerate(reference.ids.tolist()):
        if position not in partner:
            changes.append(Change("lost", name, None, 0.0))
            continue
        other, iou = partner[position]
        difference = float(now.scores[other] - reference.scores[position])
        changes.append(
            Change(
                "same" if iou == 1 else "changed",
                name,
                int(now.ids[other]),
                iou,
                None if np.isnan(difference) else difference,
                now.names[other] != reference.names[position],
            )
        )
    found = set(matches.pred.tolist())
    new = (Change("new", None, name, 0.0) for position, name in enumerate(now.ids.tolist()) if position not in found)
    return Drift((*changes, *new))
