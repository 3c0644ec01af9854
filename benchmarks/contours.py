"""Mask → polygons: the SDK's one pass beside the other ways, on one machine in one run.

    python benchmarks/contours.py [--quick]

Rows: image side and number of labels. Columns: milliseconds on the wall (best of several, so leave the machine alone;
every way uses one thread, but ours two from 8 million pixels on), then our time as a multiple of `np.bincount` (reading
every pixel once) and of one `cv2.findContours(RETR_FLOODFILL)` call (which finds the rings, but also others, no holes
that labels fill, and nothing for flat parts). "per label" is what most executors do: one `cv2.findContours` on the full
frame per label (measured on 50 labels and scaled up). scikit-image and rasterio are measured when they are installed.
"""

from __future__ import annotations

import argparse
import importlib
import os
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from segserve_sdk import contours

SIDES = (512, 2048, 4096)
COUNTS = (57, 2200, 11_000)
PER_LABEL_SAMPLE = 50

Labels = npt.NDArray[np.int32]


def make(side: int, count: int) -> Labels:
    """A label mask of about `count` ellipses on a grid, close to each other."""
    random = np.random.default_rng(0)
    labels = np.zeros((side, side), np.int32)
    across = int(np.ceil(np.sqrt(count)))
    step = side / across
    for number in range(count):
        centre = (int((number % across + 0.5) * step), int((number // across + 0.5) * step))
        axes = tuple(max(1, int(0.42 * step * factor)) for factor in random.uniform(0.7, 1.2, 2))
        cv2.ellipse(labels, centre, axes, random.uniform(0, 180), 0, 360, number + 1, -1)
    return labels


def per_label(labels: Labels) -> float:
    """Seconds that one full-frame call per label takes, from a sample."""
    values = np.unique(labels[labels > 0])
    sample = values[:: max(1, len(values) // PER_LABEL_SAMPLE)]
    start = time.perf_counter()
    for value in sample:
        cv2.findContours((labels == value).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return (time.perf_counter() - start) / len(sample) * len(values)


def skimage(labels: Labels) -> None:
    """`find_contours` on the bounding box of every label."""
    measure: Any = importlib.import_module("skimage.measure")
    for region in measure.regionprops(labels):
        measure.find_contours(np.pad(region.image, 1), 0.5)


def rasterio(labels: Labels) -> None:
    """`features.shapes` over all labels."""
    features: Any = importlib.import_module("rasterio.features")
    list(features.shapes(labels, mask=labels > 0, connectivity=8))


def best(function: Callable[[], Any], repeats: int) -> float:
    """The shortest of several runs, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def installed(name: str) -> bool:
    """Whether a package can be imported."""
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def row(labels: Labels, others: dict[str, Callable[[Labels], None]], repeats: int) -> list[float]:
    """Seconds: bincount, flood fill, ours, per label, others."""
    back = contours.mask(contours.polygons(labels), labels.shape)
    if (back != labels).any():
        raise SystemExit("the round trip is not exact")
    return [
        best(lambda: np.bincount(labels.ravel()), repeats),
        best(lambda: cv2.findContours(labels, cv2.RETR_FLOODFILL, cv2.CHAIN_APPROX_SIMPLE), repeats),
        best(lambda: contours.trace(labels), repeats),
        per_label(labels),
        *(best(lambda other=other: other(labels), 1) for other in others.values()),
    ]


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="512² and 2048² only, fewer repeats")
    quick = parser.parse_args().quick
    cv2.setNumThreads(1)
    others = {name: way for name, way in (("skimage", skimage), ("rasterio", rasterio)) if installed(name)}
    names = ["side", "labels", "bincount", "flood fill", "**segserve_sdk**", "per label", *others]
    names += ["× bincount", "× flood fill", "per label ÷ ours"]
    print(f"OpenCV {cv2.__version__}, numpy {np.__version__}; milliseconds; load {os.getloadavg()[0]:.1f}\n")
    print("| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    for side in SIDES[:2] if quick else SIDES:
        for count in COUNTS:
            labels = make(side, count)
            times = row(labels, others, 3 if quick else 9)
            cells = [f"{1000 * value:.1f}" for value in times]
            cells += [f"{times[2] / times[0]:.2f}", f"{times[2] / times[1]:.2f}", f"{times[3] / times[2]:.0f}"]
            print(f"| {side}² | {len(np.unique(labels)) - 1} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
