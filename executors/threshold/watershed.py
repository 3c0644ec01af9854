"""Touching objects apart: heights, and the catchments of their peaks."""

import cv2
import numpy as np

SEEDS = ("distance", "log")


def height(mask: np.ndarray, flat: np.ndarray, diameter: float, seeds: str) -> np.ndarray:
    """What the watershed climbs, (rows, columns) float32, at least 0 within the mask; its peaks are the seeds.

    distance: how far from the ground, smoothed. For objects with a neck between them.
    log: how much like a bright blob of that diameter (Laplacian of Gaussian). For objects whose outlines have merged
        but that are brightest in their middles.
    """
    if seeds == "distance":
        depth = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
        return cv2.GaussianBlur(depth, (0, 0), max(0.7, diameter / 16))
    # A disc answers most strongly to a Gaussian of a third of its diameter; a little less keeps neighbours apart.
    smooth = cv2.GaussianBlur(flat, (0, 0), max(1.0, diameter / 4))
    response = -cv2.Laplacian(smooth, cv2.CV_32F, ksize=3)
    lowest = float(response[mask].min()) if mask.any() else 0.0
    return response - lowest


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
    _, labels = np.unique(target[mask.ravel()], return_inverse=True)
    result = np.zeros(mask.shape, np.int32)
    result[mask] = labels.ravel() + 1
    return join(result, order, willingness)


def join(labels: np.ndarray, depth: np.ndarray, neck: float) -> np.ndarray:
    """Join neighbours whose neck is at least `neck` times as deep as the shallower of the two."""
    count = int(labels.max()) + 1
    peak = np.zeros(count, np.float32)
    np.maximum.at(peak, labels.ravel(), depth.ravel())
    first, second, saddle = [], [], []
    for a, b in (
        (np.s_[:, :-1], np.s_[:, 1:]),
        (np.s_[:-1], np.s_[1:]),
        (np.s_[:-1, :-1], np.s_[1:, 1:]),
        (np.s_[1:, :-1], np.s_[:-1, 1:]),
    ):
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
