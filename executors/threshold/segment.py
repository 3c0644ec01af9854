"""Segmentation without learning: ground removed, threshold, watershed, size limits. Arrays in, labels out."""

from typing import Dict, NamedTuple, Tuple

import cv2
import numpy as np
from thresholds import GLOBAL, METHODS, otsu
from watershed import SEEDS, height, split


class Settings(NamedTuple):
    """What a person can set; lengths in pixels, areas in square pixels.

    method: 'local' compares with the neighbourhood and with the whole image; 'otsu', 'li', 'triangle' and 'multi-otsu'
        find one threshold for the whole image (see `thresholds`).
    background: 'remove' takes the uneven ground away before that, 'keep' leaves it.
    seeds: where objects begin that touch: 'distance' from their outline, or 'log', bright middles (see `watershed`).
    diameter: of a typical object; 0 = found from the image.
    sigma: the Gaussian that takes noise and texture away; 0 = a 24th of the diameter.
    sensitivity: above 1 takes fainter pixels, below 1 only brighter ones.
    split: 0 never cuts touching objects, 1 cuts at the slightest neck.
    min_area, max_area: objects outside are dropped; 0 = a tenth of a typical object, and no upper limit.
    min_contrast: objects that stand out less from their rim (0..1) are dropped.
    invert: 'yes' for dark objects on a bright ground, 'no' for bright ones, 'auto' looks which. It takes what is rarer
        for the objects: say it where they cover more than half of the image.
    """

    method: str = "local"
    background: str = "remove"
    seeds: str = "distance"
    diameter: float = 0.0
    sigma: float = 0.0
    sensitivity: float = 1.0
    split: float = 0.88
    min_area: float = 0.0
    max_area: float = 0.0
    min_contrast: float = 0.25
    invert: str = "auto"


DEFAULTS = Settings()
CHOICES: Dict[str, Tuple[str, ...]] = {
    "method": METHODS,
    "background": ("remove", "keep"),
    "seeds": SEEDS,
    "invert": ("auto", "yes", "no"),
}


def problems(settings: Settings) -> Tuple[str, ...]:
    """What is wrong with the settings, one sentence each; empty when they can be used."""
    found = []
    for name, allowed in CHOICES.items():
        value = getattr(settings, name)
        if value not in allowed:
            found.append(f"{name} is '{value}'; it can be {', '.join(allowed)}.")
    for name in ("diameter", "sigma", "min_area", "max_area"):
        if not 0 <= getattr(settings, name) < float("inf"):
            found.append(f"{name} is {getattr(settings, name):g}; it is a number of pixels, 0 or more.")
    for name in ("split", "min_contrast"):
        if not 0 <= getattr(settings, name) <= 1:
            found.append(f"{name} is {getattr(settings, name):g}; it lies between 0 and 1.")
    if not 0 < settings.sensitivity < float("inf"):
        found.append(f"sensitivity is {settings.sensitivity:g}; it is above 0.")
    if 0 < settings.max_area < settings.min_area:
        found.append(f"max_area ({settings.max_area:g}) is less than min_area ({settings.min_area:g}).")
    return tuple(found)


def segment(image: np.ndarray, settings: Settings = DEFAULTS) -> Tuple[np.ndarray, np.ndarray]:
    """Label mask (rows, columns) int32 and one score in 0..1 per label: how well it stands out from its surroundings.

    image: (rows, columns) or (rows, columns, 3 or 4) as RGB(A), of any number type.

    Raises:
        ValueError: a setting is not what it can be.
    """
    if problems(settings):
        raise ValueError(" ".join(problems(settings)))
    grey = normalise(to_grey(image))
    if settings.invert == "yes" or (settings.invert == "auto" and objects_are_dark(grey)):
        grey = 1.0 - grey
    if settings.diameter:
        return _segment(grey, settings.diameter, settings)
    labels, score = _segment(grey, typical_diameter(grey), settings)
    if len(score) == 0:
        return labels, score
    # The objects themselves tell their size better than the first guess did.
    return _segment(grey, max(5.0, _median_diameter(labels)), settings)


def _segment(grey: np.ndarray, diameter: float, settings: Settings) -> Tuple[np.ndarray, np.ndarray]:
    sigma = settings.sigma or max(0.5, diameter / 24)
    smooth = cv2.GaussianBlur(grey, (0, 0), sigma)
    flat = flatten(smooth, diameter) if settings.background == "remove" else smooth
    mask = clean(foreground(flat, diameter, sigma, settings), diameter)
    labels = split(mask, height(mask, flat, diameter, settings.seeds), settings.split)
    smallest = settings.min_area or max(9.0, 0.1 * np.pi / 4 * diameter**2)
    area, score = np.bincount(labels.ravel())[1:], contrast(flat, labels)
    keep = (area >= smallest) & (score >= settings.min_contrast)
    if settings.max_area > 0:
        keep &= area <= settings.max_area
    number = np.append(0, np.where(keep, np.cumsum(keep), 0)).astype(np.int32)
    return number[labels], score[keep]


def _median_diameter(labels: np.ndarray) -> float:
    """Of a circle with the area of the object in which the middle pixel of all objects lies."""
    area = np.sort(np.bincount(labels.ravel())[1:])
    total = np.cumsum(area)
    return float(2 * np.sqrt(area[int(np.searchsorted(total, total[-1] / 2))] / np.pi))


def to_grey(image: np.ndarray) -> np.ndarray:
    """One channel, float32: the luminance of colours (alpha is ignored)."""
    if image.ndim == 3 and image.shape[2] >= 3:
        return image[..., :3].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.ascontiguousarray(image if image.ndim == 2 else image[..., 0], np.float32)


def normalise(grey: np.ndarray) -> np.ndarray:
    """0..1 between the 0.1 and the 99.9 percentile, so that a few hot pixels do not decide."""
    low, high = np.percentile(grey, (0.1, 99.9))
    return np.clip((grey - low) / max(float(high - low), 1e-6), 0, 1).astype(np.float32)


def objects_are_dark(grey: np.ndarray) -> bool:
    """Whether what differs most from its wider surroundings is darker than them."""
    fine = cv2.GaussianBlur(grey, (0, 0), 2)
    size = tuple(max(1, round(length / 8)) for length in grey.shape[::-1])
    coarse = cv2.GaussianBlur(cv2.resize(fine, size, interpolation=cv2.INTER_AREA), (0, 0), max(1, min(size) / 6))
    apart = fine - cv2.resize(coarse, grey.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return bool(((apart - np.median(apart)) ** 3).mean() < 0)


def flatten(grey: np.ndarray, diameter: float) -> np.ndarray:
    """The image without its ground, up to 1; the very bright are held down so that they do not decide alone.

    The ground is the lowest grey in the neighbourhood, so that it follows uneven light but not the objects.
    """
    shrink = max(1.0, diameter / 8)  # at a coarse scale: the ground is smooth, and large windows are slow
    size = (max(1, round(grey.shape[1] / shrink)), max(1, round(grey.shape[0] / shrink)))
    small = cv2.GaussianBlur(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), (0, 0), 1)
    window = int(3 * diameter / shrink) | 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (window, window))
    low = cv2.GaussianBlur(cv2.erode(small, kernel, borderType=cv2.BORDER_REPLICATE), (0, 0), window / 2)
    above = grey - cv2.resize(low, grey.shape[::-1], interpolation=cv2.INTER_LINEAR)
    bent = np.arcsinh(above / max(2 * otsu(above), 1e-3))
    return (bent / max(float(bent.max()), 1e-6)).astype(np.float32)


def typical_diameter(grey: np.ndarray) -> float:
    """Diameter (pixels) of the typical object: from how deep a first, rough mask is."""
    flat = flatten(cv2.GaussianBlur(grey, (0, 0), 1), min(grey.shape) / 10)
    mask = cv2.morphologyEx((flat > level(flat, 1.0)).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    depth = cv2.distanceTransform(fill_holes(mask, 0.25 * (min(grey.shape) / 10) ** 2), cv2.DIST_L2, 5)
    smooth = cv2.GaussianBlur(depth, (0, 0), 1)
    peaks = np.sort(depth[(smooth == cv2.dilate(smooth, np.ones((7, 7)))) & (depth > 1.5)])
    if not len(peaks):
        return 20.0
    weight = np.cumsum(peaks**2)  # by area: specks do not count
    return float(np.clip(2 * peaks[int(np.searchsorted(weight, weight[-1] / 2))], 5, min(grey.shape) / 2))


def level(flat: np.ndarray, sigma: float) -> float:
    """The least brightness of an object: most of Otsu's threshold, but well above the noise of the ground."""
    whole = otsu(flat)
    return max(0.7 * whole, floor(flat, whole, sigma))


def floor(flat: np.ndarray, threshold: float, sigma: float) -> float:
    """The brightness that the noise of the ground does not reach.

    With few or no objects any threshold lies within the noise. `sigma` is the Gaussian that `flat` went through: noise
    is what is finer than twice that.
    """
    ground = flat <= threshold
    if not ground.any():
        return threshold
    fine = (flat - cv2.GaussianBlur(flat, (0, 0), 2 * sigma))[ground]
    noise = 1.4826 * float(np.median(np.abs(fine - np.median(fine))))
    return float(np.percentile(flat[ground], 40)) + 8 * noise


def foreground(flat: np.ndarray, diameter: float, sigma: float, settings: Settings) -> np.ndarray:
    """Pixels above the threshold (bool).

    'local': brighter than their neighbourhood, and not much darker than the threshold of the whole image. The
    neighbourhood (a Gaussian, half an object wide) puts the line where the grey falls most steeply, for faint and
    for bright objects alike, and leaves a gap between neighbours. The middle of a large object, which is no brighter
    than what is around it, is filled later.
    """
    if settings.method == "local":
        local = cv2.GaussianBlur(flat, (0, 0), max(2.0, diameter / 4))
        return (flat > local) & (flat > level(flat, sigma) / settings.sensitivity)
    threshold = GLOBAL[settings.method](flat)
    return flat > max(threshold, floor(flat, threshold, sigma)) / settings.sensitivity


def clean(mask: np.ndarray, diameter: float) -> np.ndarray:
    """The mask (bool) without specks and threads, small holes filled."""
    radius = max(1, round(diameter / 16))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return fill_holes(cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, kernel), 0.25 * diameter**2) > 0


def fill_holes(mask: np.ndarray, largest: float) -> np.ndarray:
    """`mask` (0 or 1, uint8) with its holes up to an area filled."""
    _, parts, stats, _ = cv2.connectedComponentsWithStats(1 - mask, connectivity=4)
    small = stats[:, cv2.CC_STAT_AREA] <= largest
    small[0] = False
    return mask | small[parts].astype(np.uint8)


def contrast(flat: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """0..1 per label: how much brighter it is than the rim around it (the difference, by the brightness inside)."""
    count = int(labels.max()) + 1
    away, nearest = cv2.distanceTransformWithLabels(
        (labels == 0).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    owner = np.zeros(int(nearest.max()) + 1, np.int32)
    owner[nearest[labels > 0]] = labels[labels > 0]
    rim = (away > 1) & (away <= 4)
    around = owner[nearest[rim]]
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = np.bincount(labels.ravel(), flat.ravel(), count) / np.bincount(labels.ravel(), minlength=count)
        outside = np.bincount(around, flat[rim], count) / np.bincount(around, minlength=count)
        score = (inside - np.nan_to_num(outside)) / inside
    return np.clip(np.nan_to_num(score), 0, 1)[1:]
