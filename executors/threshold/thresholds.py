"""Thresholds: the grey value that parts objects from ground, found in the histogram of values in 0..1."""

from typing import Callable, Dict, Tuple

import numpy as np

BINS = 1024


def otsu(values: np.ndarray) -> float:
    """Parts two classes so that they differ most (Otsu 1979): for objects that cover a fair share of the image."""
    counts, centres = _histogram(values)
    below, weighted = np.cumsum(counts), np.cumsum(counts * centres)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (weighted / below - (weighted[-1] - weighted) / above) ** 2
    return float(centres[int(np.nanargmax(between))]) if np.isfinite(between).any() else 0.5


def li(values: np.ndarray) -> float:
    """Least cross entropy (Li and Tam 1998, iterated): lower than Otsu's where objects differ much in brightness."""
    counts, centres = _histogram(values)
    level = float((counts * centres).sum() / max(counts.sum(), 1))
    for _ in range(1000):
        high = centres > level
        if not counts[high].any() or not counts[~high].any():
            break
        above = float(np.average(centres[high], weights=counts[high]))
        below = float(np.average(centres[~high], weights=counts[~high]))
        following = (above - below) / (np.log(above) - np.log(below))
        if abs(following - level) < 0.5 / BINS:
            return following
        level = following
    return level


def triangle(values: np.ndarray) -> float:
    """Farthest below the line from the histogram's peak to its end (Zack 1977): for few objects on much ground."""
    counts, centres = _histogram(values)
    peak, last = int(np.argmax(counts)), int(np.flatnonzero(counts)[-1])
    if last <= peak:
        return float(centres[peak])
    along = np.arange(peak, last + 1)
    line = counts[peak] + (counts[last] - counts[peak]) * (along - peak) / (last - peak)
    return float(centres[peak + int(np.argmax(line - counts[peak : last + 1]))])


def multi_otsu(values: np.ndarray) -> float:
    """The lower of two thresholds between three classes (Liao 2001): ground, faint objects, bright objects."""
    counts, centres = _histogram(values, 256)
    weight = np.append(0.0, np.cumsum(counts))
    moment = np.append(0.0, np.cumsum(counts * centres))

    def part(first: np.ndarray, last: np.ndarray) -> np.ndarray:
        """weight * mean² of the bins first … last - 1, 0 where there is nothing."""
        share = weight[last] - weight[first]
        return np.where(share > 0, (moment[last] - moment[first]) ** 2 / np.maximum(share, 1e-12), 0.0)

    bins = len(counts)
    low, high = np.triu_indices(bins, 1)
    between = part(np.zeros_like(low), low) + part(low, high) + part(high, np.full_like(high, bins))
    return float(centres[max(int(low[int(np.argmax(between))]) - 1, 0)])


def _histogram(values: np.ndarray, bins: int = BINS) -> Tuple[np.ndarray, np.ndarray]:
    counts, edges = np.histogram(np.clip(values, 0, 1), bins, (0, 1))
    return counts.astype(np.float64), (edges[:-1] + edges[1:]) / 2


GLOBAL: Dict[str, Callable[[np.ndarray], float]] = {
    "otsu": otsu,
    "li": li,
    "triangle": triangle,
    "multi-otsu": multi_otsu,
}
METHODS = ("local", *GLOBAL)
