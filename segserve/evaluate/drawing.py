"""Hits, misses and false alarms on the image: for looking at."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from segserve.errors import UsageError
from segserve.evaluate.contingency import overlap
from segserve.evaluate.matching import match
from segserve.evaluate.objects import Labels, Objects, ranks

# Okabe and Ito's colours, told apart with any kind of colour vision; (R, G, B).
HIT = (0, 158, 115)  # bluish green
MISS = (86, 180, 233)  # sky blue: true, not found
FALSE_ALARM = (230, 159, 0)  # orange: found, not true
LARGEST = 2048  # px; larger images are shown by every second, third … pixel
FILL = 0.3  # of the colour within objects; outlines are opaque

Picture = npt.NDArray[np.uint8]


def picture(
    image: npt.NDArray[Any] | None, pred: Labels, true: Labels, *, threshold: float = 0.5, largest: int = LARGEST
) -> Picture:
    """(rows, columns, 3) RGB: an image (rows, columns[, channels]; None: black) under the objects of two label images.

    Hits are outlined as they are true, misses and false alarms also filled. Grey values are stretched from the 1 % to
    the 99.8 % quantile. At most `largest` pixels long.

    Raises:
        UsageError: the three have different shapes.
    """
    one, two = Objects.from_labels(pred), Objects.from_labels(true)
    if image is not None and image.shape[:2] != pred.shape:
        raise UsageError(f"The image is {image.shape[:2]} pixels (rows, columns), its objects lie in {pred.shape}.")
    matches = match(overlap(one, two), threshold)
    step = max(-(-max(pred.shape) // largest), 1)
    every = (slice(None, None, step),) * 2
    pred_ranks, true_ranks = (
        ranks(side[every], own.ids) for side, own in ((np.asarray(pred), one), (np.asarray(true), two))
    )
    hit_pred, hit_true = np.zeros(len(one) + 1, bool), np.zeros(len(two) + 1, bool)
    hit_pred[matches.pred + 1] = hit_true[matches.true + 1] = True
    hit_pred[0] = hit_true[0] = True  # background is neither missed nor a false alarm
    canvas = _grey(None if image is None else image[every], true_ranks.shape)
    for found, right, colour in ((true_ranks, hit_true, MISS), (pred_ranks, hit_pred, FALSE_ALARM)):
        wrong = np.where(right[found], 0, found)
        _tint(canvas, wrong > 0, colour, FILL)
    for found, right, colour in ((true_ranks, hit_true, MISS), (pred_ranks, hit_pred, FALSE_ALARM)):
        _tint(canvas, _edges(np.where(right[found], 0, found)), colour, 1.0)
    _tint(canvas, _edges(np.where(hit_true[true_ranks], true_ranks, 0)), HIT, 1.0)
    return np.rint(canvas).astype(np.uint8)


def _grey(image: npt.NDArray[Any] | None, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    if image is None or not image.size:
        return np.zeros((*shape, 3), np.float32)
    values = image.astype(np.float32)
    if values.ndim == 3:
        values = values[..., :3] if values.shape[2] >= 3 else values[..., 0]
    low, high = np.quantile(values, (0.01, 0.998))
    stretched = np.clip((values - low) / max(float(high - low), 1e-6), 0, 1) * 215
    return np.repeat(stretched[..., None], 3, axis=2) if stretched.ndim == 2 else np.ascontiguousarray(stretched)


def _tint(
    canvas: npt.NDArray[np.float32], where: npt.NDArray[np.bool_], colour: tuple[int, int, int], share: float
) -> None:
    canvas[where] = canvas[where] * (1 - share) + np.array(colour, np.float32) * share


def _edges(labels: Labels) -> npt.NDArray[np.bool_]:
    """Pixels of an object that have another value, or the end of the image, beside them."""
    padded = np.pad(labels, 1)
    middle = padded[1:-1, 1:-1]
    others = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    edge = np.zeros(labels.shape, bool)
    for other in others:
        edge |= middle != other
    return edge & (middle > 0)
