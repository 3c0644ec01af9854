"""Segmentation without learning: local threshold, then a watershed on the distance transform. Arrays in, labels out."""

from typing import NamedTuple, Tuple

import cv2
import numpy as np
from scipy import ndimage


class Settings(NamedTuple):
    """What a person can set. Lengths are pixels, areas pixels.

    diameter: typical object diameter, 0 = found from the image. sigma: radius of the Gaussian that takes noise away.
    sensitivity: above 1 takes fainter pixels, below 1 only brighter ones. split: 0 never cuts touching objects, 1 cuts
    at the slightest neck. min_area, max_area: objects outside are dropped (max_area 0 = no limit).
    invert: 'auto', 'yes' (dark objects on a bright ground) or 'no'.
    """

    diameter: float = 0.0
    sigma: float = 0.0
    sensitivity: float = 1.0
    split: float = 0.88
    min_area: float = 0.0
    max_area: float = 0.0
    min_contrast: float = 0.15
    invert: str = "auto"


def segment(image: np.ndarray, settings: Settings = Settings()) -> Tuple[np.ndarray, np.ndarray]:
    """Label mask (rows, columns) int32 and one score in 0..1 per label: how well it stands out from its surroundings.

    image: (rows, columns) or (rows, columns, 3 or 4) of any number type.
    """
    grey = normalise(to_grey(image))
    if settings.invert == "yes" or (settings.invert == "auto" and objects_are_dark(grey)):
        grey = 1.0 - grey
    diameter = settings.diameter or typical_diameter(cv2.GaussianBlur(grey, (0, 0), 1))
    flat = flatten(cv2.GaussianBlur(grey, (0, 0), settings.sigma or max(0.5, diameter / 20)), diameter)
    mask = clean(foreground(flat, diameter, settings.sensitivity), diameter)
    depth = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
    labels = split(mask, cv2.GaussianBlur(depth, (0, 0), max(0.7, diameter / 16)), settings.split)
    smallest = settings.min_area or max(9.0, 0.1 * np.pi / 4 * diameter**2)
    labels = keep_sizes(labels, smallest, settings.max_area)
    score = contrast(flat, labels)
    number = np.append(0, np.where(score >= settings.min_contrast, np.cumsum(score >= settings.min_contrast), 0))
    return number[labels].astype(np.int32), score[score >= settings.min_contrast]


def to_grey(image: np.ndarray) -> np.ndarray:
    """One channel, float32: the luminance of colours (alpha is ignored)."""
    if image.ndim == 3 and image.shape[2] >= 3:
        return image[..., :3].astype(np.float32) @ np.array([0.114, 0.587, 0.299], np.float32)  # cv2 reads BGR
    return np.ascontiguousarray(image if image.ndim == 2 else image[..., 0], np.float32)


def normalise(grey: np.ndarray) -> np.ndarray:
    """0..1 between the 0.1 and the 99.9 percentile, so that a few hot pixels do not decide."""
    low, high = np.percentile(grey, (0.1, 99.9))
    return np.clip((grey - low) / max(float(high - low), 1e-6), 0, 1).astype(np.float32)


def objects_are_dark(grey: np.ndarray) -> bool:
    """Whether what differs from the ground is darker than it. The ground is the most frequent grey."""
    values = cv2.GaussianBlur(grey, (0, 0), 2)
    counts, edges = np.histogram(values, 64, (0, 1))
    mode = edges[int(ndimage.gaussian_filter1d(counts.astype(float), 1.5).argmax())] + 1 / 128
    low, high = np.percentile(values, (2, 98))
    return bool(mode - low > high - mode)


def otsu(values: np.ndarray) -> float:
    """Otsu's threshold of values in 0..1, at 1/1024."""
    counts, edges = np.histogram(values, 1024, (0, 1))
    centres = (edges[:-1] + edges[1:]) / 2
    below, weighted = np.cumsum(counts), np.cumsum(counts * centres)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (weighted / below - (weighted[-1] - weighted) / above) ** 2
    return float(centres[int(np.nanargmax(between))]) if np.isfinite(between).any() else 0.5


def flatten(grey: np.ndarray, diameter: float) -> np.ndarray:
    """The image without its ground, 0..1; the very bright are held down so that they do not decide alone.

    The ground is the lowest grey in the neighbourhood, so that it follows uneven light but not the objects.
    """
    shrink = max(1.0, diameter / 8)  # at a coarse scale: the ground is smooth, and large windows are slow
    size = (max(1, round(grey.shape[1] / shrink)), max(1, round(grey.shape[0] / shrink)))
    small = cv2.GaussianBlur(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), (0, 0), 1)
    window = int(3 * diameter / shrink) | 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (window, window))
    low = cv2.GaussianBlur(cv2.erode(small, kernel, borderType=cv2.BORDER_REPLICATE), (0, 0), window / 2)
    above = np.maximum(grey - cv2.resize(low, grey.shape[::-1], interpolation=cv2.INTER_LINEAR), 0)
    bent = np.arcsinh(above / max(2 * otsu(above), 1e-3))
    return (bent / max(float(bent.max()), 1e-6)).astype(np.float32)


def typical_diameter(grey: np.ndarray) -> float:
    """Diameter (pixels) of the typical object: from how deep a first, rough mask is."""
    mask = grey > otsu(grey)
    mask = ndimage.binary_opening(mask, iterations=1)
    depth = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
    smooth = cv2.GaussianBlur(depth, (0, 0), 1)
    peaks = depth[(smooth == cv2.dilate(smooth, np.ones((7, 7)))) & (depth > 1.5)]
    if not len(peaks):
        return 20.0
    order = np.sort(peaks)
    weight = np.cumsum(order**2)  # by area: specks do not count
    return float(np.clip(2.0 * order[int(np.searchsorted(weight, weight[-1] / 2))], 5, min(grey.shape) / 2))


def foreground(flat: np.ndarray, diameter: float, sensitivity: float) -> np.ndarray:
    """Pixels brighter than their neighbourhood, and not much darker than the threshold of the whole image.

    The neighbourhood (a Gaussian, half an object wide) puts the line where the grey falls most steeply, for faint and
    for bright objects alike, and leaves a gap between neighbours. The middle of a large object, which is no brighter
    than what is around it, is filled later.
    """
    local = cv2.GaussianBlur(flat, (0, 0), max(2.0, diameter / 4))
    return (flat > local) & (flat > 0.7 * otsu(flat) / sensitivity)


def clean(mask: np.ndarray, diameter: float) -> np.ndarray:
    """The mask without specks and threads, small holes filled."""
    radius = max(1, round(diameter / 16))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    mask = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, kernel)
    count, parts, stats, _ = cv2.connectedComponentsWithStats(1 - mask, connectivity=4)
    small = stats[:, cv2.CC_STAT_AREA] < 0.25 * diameter**2
    small[0] = False
    return (mask > 0) | small[parts]


def split(mask: np.ndarray, height: np.ndarray, willingness: float) -> np.ndarray:
    """Label mask: `mask` cut into the catchments of the peaks of `height`, too slight cuts undone.

    Every pixel climbs to its highest neighbour until it stands on a peak. Neighbours whose common neck is nearly as
    high as the lesser of the two peaks are one object: `willingness` 0 never cuts, 1 leaves every cut.
    """
    rows, columns = mask.shape
    order = np.where(mask, height, -1).astype(np.float32)
    padded = np.pad(order, 1, constant_values=-2)
    index = np.arange(rows * columns).reshape(rows, columns)
    best, target = order.copy(), index.copy()
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            there = padded[1 + down : 1 + down + rows, 1 + right : 1 + right + columns]
            # On equal height the larger index wins, so that no two pixels point at each other.
            better = (there > best) | ((there == best) & (index + down * columns + right > target))
            best[better] = there[better]
            target[better] = (index + down * columns + right)[better]
    target = target.ravel()
    while True:
        further = target[target]
        if (further == target).all():
            break
        target = further
    peaks, labels = np.unique(target[mask.ravel()], return_inverse=True)
    result = np.zeros(mask.shape, np.int32)
    result[mask] = labels.ravel() + 1
    return join(result, order, willingness)


def join(labels: np.ndarray, depth: np.ndarray, neck: float) -> np.ndarray:
    """Join neighbours whose neck is at least `neck` times as deep as the shallower of the two."""
    count = int(labels.max()) + 1
    peak = np.zeros(count, np.float32)
    np.maximum.at(peak, labels.ravel(), depth.ravel())
    first, second, saddle = [], [], []
    for a, b in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:]), (np.s_[:-1, :-1], np.s_[1:, 1:]), (np.s_[1:, :-1], np.s_[:-1, 1:])):
        here, there = labels[a], labels[b]
        border = (here != there) & (here > 0) & (there > 0)
        first.append(np.minimum(here, there)[border])
        second.append(np.maximum(here, there)[border])
        saddle.append(np.minimum(depth[a], depth[b])[border])
    pair = np.concatenate(first).astype(np.int64) * count + np.concatenate(second)
    pairs, where = np.unique(pair, return_inverse=True)
    necks = np.zeros(len(pairs), np.float32)
    np.maximum.at(necks, where, np.concatenate(saddle))
    root = np.arange(count)

    def find(label: int) -> int:
        while root[label] != label:
            root[label] = label = root[root[label]]
        return label

    for index in np.argsort(-necks):
        one, other = find(int(pairs[index] // count)), find(int(pairs[index] % count))
        if one != other and necks[index] >= neck * min(peak[one], peak[other]):
            root[other] = one
            peak[one] = max(peak[one], peak[other])
    return np.array([find(label) for label in range(count)], np.int32)[labels]


def keep_sizes(labels: np.ndarray, smallest: float, largest: float) -> np.ndarray:
    """Labels within the limits of area, counted through from 1."""
    area = np.bincount(labels.ravel())
    keep = (area >= smallest) & ((area <= largest) if largest > 0 else True)
    keep[0] = False
    number = np.where(keep, np.cumsum(keep), 0).astype(np.int32)
    return number[labels]


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
