"""Two files in, numbers out: read both sides, pair their images, compare image by image, pool."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segserve import evaluate, sides
from segserve.errors import SegserveError, UsageError
from segserve.evaluate import CocoScores, Drift, Objects, Tally
from segserve.evaluate.drawing import Picture
from segserve.sides import Pair

THRESHOLDS = tuple(round(0.5 + 0.05 * step, 10) for step in range(10))
LARGEST_PICTURE = 1 << 28  # pixels of an image that is drawn


@dataclass(frozen=True, slots=True)
class Comparison:
    """One tally per pair of images, in the order of the truth. `coco` is None when predictions have no scores."""

    pred: Path
    true: Path
    names: tuple[str, ...]
    tallies: tuple[Tally, ...]
    coco: CocoScores | None
    notes: tuple[str, ...] = ()

    @property
    def pooled(self) -> Tally:
        """All images as one."""
        return evaluate.pool(self.tallies)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: numbers that are not defined are None."""
        coco = self.coco and {
            "ap": self.coco.mean_ap,
            "at": [
                {"iou": threshold, "ap": ap, "recall": recall}
                for threshold, ap, recall in zip(self.coco.thresholds, self.coco.ap, self.coco.recall, strict=True)
            ],
        }
        document = {
            "format": "segserve-compare",
            "version": 1,
            "prediction": str(self.pred),
            "truth": str(self.true),
            "notes": self.notes,
            "pooled": self.pooled.as_dict(),
            "mean": evaluate.mean_of_images(self.tallies),
            "coco": coco,
            "images": [{"image": name, **one.as_dict()} for name, one in zip(self.names, self.tallies, strict=True)],
        }
        cleaned: dict[str, Any] = _without_nan(document)
        return cleaned


@dataclass(frozen=True, slots=True)
class DriftReport:
    """What became of every object, image by image, in the order of the reference."""

    now: Path
    reference: Path
    names: tuple[str, ...]
    drifts: tuple[Drift, ...]
    notes: tuple[str, ...] = ()

    @property
    def largest(self) -> float:
        """The drift of the image that changed most."""
        return max((one.value for one in self.drifts), default=0.0)

    def as_dict(self, threshold: float) -> dict[str, Any]:
        """For JSON; `objects` has only what is not the same."""
        return {
            "format": "segserve-drift",
            "version": 1,
            "now": str(self.now),
            "reference": str(self.reference),
            "notes": self.notes,
            "threshold": threshold,
            "drift": self.largest,
            "drifted": self.largest > threshold,
            "images": [
                {
                    "image": name,
                    **one.as_dict(),
                    "objects": [
                        {
                            "status": change.status,
                            "reference": change.reference,
                            "now": change.now,
                            "iou": change.iou,
                            "score_change": change.score,
                            "renamed": change.renamed,
                        }
                        for change in one.changes
                        if change.status != "same" or change.renamed or change.score
                    ],
                }
                for name, one in zip(self.names, self.drifts, strict=True)
            ],
        }


def compare(
    pred: Path,
    true: Path,
    thresholds: Sequence[float] = THRESHOLDS,
    *,
    by_label: bool = False,
    max_detections: int | None = None,
) -> Comparison:
    """Compare a prediction with the truth; both are what `sides.read` reads.

    `by_label`: only objects of the same class match, and COCO's AP is the mean over the classes. `max_detections`: as
    in `evaluate.coco_scores`.

    Raises:
        UsageError, OutputInvalid: a side cannot be read, or the images do not belong together.
    """
    pairs, notes = _paired(pred, true)
    tallies, ranked = [], []
    for pair in pairs:
        with _named(pair):
            one, two = pair.pred.load(), pair.true.load()
            table = evaluate.overlap(one, two)
        table = table.same_name(one, two) if by_label else table
        tallies.append(evaluate.tally(table, thresholds))
        ranked.append(evaluate.Ranked(table, one.scores, one.names, two.names))
    coco = evaluate.coco_scores(ranked, thresholds, max_detections=max_detections, by_name=by_label)
    return Comparison(pred, true, tuple(pair.name for pair in pairs), tuple(tallies), coco, notes)


def drift(now: Path, reference: Path) -> DriftReport:
    """What changed from a reference result to the one of now, object by object.

    Raises:
        UsageError, OutputInvalid: as `compare`.
    """
    pairs, notes = _paired(now, reference)
    drifts = []
    for pair in pairs:
        with _named(pair):
            drifts.append(evaluate.drift(pair.pred.load(), pair.true.load()))
    return DriftReport(now, reference, tuple(pair.name for pair in pairs), tuple(drifts), notes)


def pictures(pred: Path, true: Path, images: Path | None, threshold: float) -> Iterator[tuple[str, Picture | None]]:
    """(name, RGB picture) of each pair: hits, misses, false alarms at one IoU; None when an image is too large.

    Raises:
        UsageError: there is not one image per pair, or it has another shape than its objects.
    """
    pairs, _ = _paired(pred, true)
    sources = sides.read_images(images) if images is not None else [None] * len(pairs)
    if len(sources) != len(pairs):
        raise UsageError(
            f"{images} has {len(sources)} images, the comparison {len(pairs)}.",
            hint="Give the images that were segmented, all of them.",
        )
    for pair, source in zip(pairs, sources, strict=True):
        with _named(pair):
            one, two = pair.pred.load(), pair.true.load()
            image = source() if source is not None else None
            shape = one.shape or two.shape or (image.shape[:2] if image is not None else _extent(one, two))
            if math.prod(shape) > LARGEST_PICTURE:
                yield pair.name, None
            else:
                yield pair.name, evaluate.picture(image, one.mask(shape), two.mask(shape), threshold=threshold)


def save_picture(folder: Path, number: int, name: str, picture: Picture) -> Path:
    """Write one picture as `NNN-<name>.png` into `folder`, which exists."""
    import cv2

    _, data = cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]), [cv2.IMWRITE_PNG_COMPRESSION, 3])
    stem = re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII).strip("._-")[:60] or "image"
    path = folder / f"{number:03d}-{stem}.png"
    path.write_bytes(data.tobytes())
    return path


def _paired(pred: Path, true: Path) -> tuple[tuple[Pair, ...], tuple[str, ...]]:
    one, two = sides.read(pred), sides.read(true)
    pairs, notes = sides.pair(one, two)
    if not pairs:
        raise UsageError(f"{true} has no images to compare.")
    return pairs, (*one.notes, *two.notes, *notes)


class _named:  # noqa: N801 - reads as a verb
    """Errors say which image they are about, where there are several."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, SegserveError) and self.pair.name not in error.message:
            raise type(error)(f"{self.pair.name}: {error.message}", hint=error.hint, findings=error.findings) from error


def _extent(one: Objects, two: Objects) -> tuple[int, int]:
    """An image large enough for all objects."""
    rows = max((int(side.runs.row.max()) + 1 for side in (one, two) if len(side.runs.row)), default=1)
    columns = max((int(side.runs.stop.max()) for side in (one, two) if len(side.runs.row)), default=1)
    return max(rows, 1), max(columns, 1)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value
