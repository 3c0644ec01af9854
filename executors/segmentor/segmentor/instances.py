"""From what the network says of every pixel to objects."""

from typing import NamedTuple

import cv2
import numpy as np
from skimage.segmentation import watershed

from segmentor.annotation import compact


class Settings(NamedTuple):
    """threshold: a pixel is an object's when background is less probable than 1 - threshold. seed: what is deeper than
    this (0 rim … 1 innermost) is the core of one object; lower joins more. min_area: in pixels, smaller ones go."""

    threshold: float = 0.5
    seed: float = 0.4
    min_area: float = 12


DEFAULTS = Settings()


class Objects(NamedTuple):
    """`labels` (rows, columns) int32, 1 … n; `classes` (n,) int64 1 … K; `scores` (n,) float64 in 0..1."""

    labels: np.ndarray
    classes: np.ndarray
    scores: np.ndarray


def separate(probabilities: np.ndarray, distance: np.ndarray, settings: Settings = DEFAULTS) -> Objects:
    """Objects from class probabilities (1 + K, rows, columns), background first, and the distance (rows, columns).

    Cores are the parts where the distance is high; a watershed on it gives every foreground pixel to one of them.
    Foreground without a core is an object of its own. The class is the one that is most probable on the whole object,
    the score its mean probability there.
    """
    foreground = 1 - probabilities[0] > settings.threshold
    cores = _cores(foreground, distance, settings.seed)
    labels = watershed(-distance, cores, mask=foreground)
    area = np.bincount(labels.ravel())
    labels = compact(np.where(area[labels] >= settings.min_area, labels, 0), np.ones(len(area) - 1)).instances
    flat, count = labels.ravel(), int(labels.max(initial=0))
    sums = np.stack([np.bincount(flat, plane.ravel(), count + 1)[1:] for plane in probabilities[1:]])
    classes = sums.argmax(axis=0) + 1
    scores = sums.max(axis=0) / np.bincount(flat, minlength=count + 1)[1:]
    return Objects(labels, classes, np.clip(scores, 0, 1))


def _cores(foreground: np.ndarray, distance: np.ndarray, seed: float) -> np.ndarray:
    count, cores = cv2.connectedComponents((foreground & (distance > seed)).astype(np.uint8), connectivity=8)
    parts, components = cv2.connectedComponents(foreground.astype(np.uint8), connectivity=8)
    with_core = np.zeros(parts, bool)
    with_core[components[cores > 0]] = True
    alone = foreground & ~with_core[components]
    return np.where(alone, components + count, cores)
