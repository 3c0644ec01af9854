"""Images of nuclei with their truth, made from a seed, and average precision by intersection over union."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt


def nuclei(
    seed: int, *, size: int = 512, count: int = 60, radius: float = 11.0, gap: float = 4.0, uneven: float = 0.3
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int32]]:
    """A 16-bit image of bright ellipses of different brightness on uneven ground with noise, and its label mask.

    `gap` is the least distance between two nuclei in pixels; negative lets them touch and overlap.
    """
    random = np.random.default_rng(seed)
    labels = np.zeros((size, size), np.int32)
    light = np.zeros((size, size), np.float32)
    number = 0
    for _ in range(count * 60):
        if number == count:
            break
        axes = radius * random.uniform(0.75, 1.3, 2)
        centre = tuple(random.integers(0, size, 2).tolist())
        ellipse = (centre, tuple((2 * axes).tolist()), float(random.uniform(0, 180)))
        wide = (centre, tuple((2 * (axes + gap)).tolist()), ellipse[2])
        if cv2.ellipse(np.zeros_like(labels, np.uint8), wide, 1, -1)[labels > 0].any():
            continue
        number += 1
        inside = cv2.ellipse(np.zeros_like(labels, np.uint8), ellipse, 1, -1) > 0
        labels[inside & (labels == 0)] = number
        light[inside] = random.uniform(0.35, 1.0)
    rows, columns = np.mgrid[0:size, 0:size] / size
    ground = 0.15 + uneven * (0.6 * rows + 0.4 * columns * rows)
    texture = 1 + 0.15 * cv2.GaussianBlur(random.normal(size=(size, size)), (0, 0), 2) * 4
    image = ground + cv2.GaussianBlur(light * texture.astype(np.float32), (0, 0), 1.2)
    image = random.poisson(np.clip(image, 0, None) * 400) / 400 + random.normal(0, 0.01, image.shape)
    return np.clip(image * 20_000, 0, 65535).astype(np.uint16), labels


def average_precision(found: npt.NDArray[np.int32], truth: npt.NDArray[np.int32], iou: float = 0.5) -> float:
    """Hits / (hits + misses + false alarms), where a hit has at least that intersection over union (> 0.5: unique)."""
    ours, truths = int(found.max()) + 1, int(truth.max()) + 1
    both = np.bincount((found.astype(np.int64) * truths + truth).ravel(), minlength=ours * truths).reshape(ours, truths)
    union = both.sum(axis=1)[:, None] + both.sum(axis=0)[None, :] - both
    overlap = np.where(union > 0, both / np.maximum(union, 1), 0)[1:, 1:]
    hits = int((overlap > iou).sum())
    present = int((both.sum(axis=1)[1:] > 0).sum()), int((both.sum(axis=0)[1:] > 0).sum())
    return hits / (sum(present) - hits)
