"""Comparing 10,000 with 10,000 objects, beside stardist.matching in the same run: `python benchmarks/compare.py`.

stardist.matching runs in an environment of its own, which is made for it (--python names one that exists); its first
call, in which numba compiles, is not counted, nor are imports. Both take the same two label images and the same
thresholds. Rounds alternate, so that a busy machine hits both alike; the table has medians. Polygons (the same objects,
traced) are compared by runs of pixels, as segserve does it, and by shapely's STRtree with intersections.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import shapely
import uv
from segserve_sdk import contours

from segserve import evaluate
from segserve.environments.indexes import host_settings
from segserve.evaluate import Objects
from segserve.format.document import Document

NEEDED = ("numpy", "scipy", "numba", "tqdm", "scikit-image", "six", "matplotlib")
SERVER = """
import importlib.util, json, sys, time, types
module = types.ModuleType("stardist")  # the package's __init__ would import TensorFlow
module.__path__ = list(importlib.util.find_spec("stardist").submodule_search_locations)
sys.modules["stardist"] = module
import numpy as np
from stardist import matching
small = np.eye(4, dtype=np.int32)
matching.matching(small, small)
for line in sys.stdin:
    path, thresholds = json.loads(line)
    data = np.load(path)
    pred, true = data["pred"], data["true"]
    start = time.perf_counter()
    found = matching.matching(true, pred, thresh=thresholds)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "tp": [int(one.tp) for one in found],
                      "pq": [float(one.panoptic_quality) for one in found]}), flush=True)
"""


def reference_python(folder: Path) -> Path:
    """An interpreter that has stardist.matching."""
    variables = host_settings().environment()
    python = folder / "bin" / "python"
    install = [uv.find_uv_bin(), "pip", "install", "-q", "--python", str(python)]
    for command in (
        [uv.find_uv_bin(), "venv", "-q", "--python", "3.11", str(folder)],
        [*install, *NEEDED],
        [*install, "--no-deps", "stardist>=0.9", "csbdeep>=0.8"],
    ):
        subprocess.run(command, env=variables, check=True)
    return python


def cells(per_side: int, pitch: int, shift: int, seed: int) -> np.ndarray[Any, Any]:
    """per_side² cells, each an ellipse within its square of pitch² pixels, moved by up to `shift` pixels."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:pitch, :pitch] - (pitch - 1) / 2
    image = np.zeros((per_side * pitch, per_side * pitch), np.int32)
    for number in range(per_side**2):
        row, column = divmod(number, per_side)
        dy, dx = random.integers(-shift, shift + 1, 2) if shift else (0, 0)
        a, b = random.uniform(0.35, 0.5, 2) * pitch
        tile = image[row * pitch : (row + 1) * pitch, column * pitch : (column + 1) * pitch]
        tile[((y - dy) / a) ** 2 + ((x - dx) / b) ** 2 <= 1] = number + 1
    return image


def traced(labels: np.ndarray[Any, Any]) -> Document:
    """The same objects as polygons."""
    found = contours.trace(labels)
    count = len(found.labels)
    names, scores = ("Cell",) * count, np.full(count, np.nan)
    return Document("", "0.2", found.coordinates, found.offsets, names, scores, np.zeros(count, np.int64), 1)


def by_labels(pred: np.ndarray[Any, Any], true: np.ndarray[Any, Any], thresholds: list[float]) -> evaluate.Tally:
    """What `segserve compare` does with two label images."""
    table = evaluate.overlap(Objects.from_labels(pred), Objects.from_labels(true))
    return evaluate.tally(table, thresholds)


def by_runs(pred: Document, true: Document) -> float:
    """Shared pixels of two documents."""
    return float(evaluate.overlap(Objects.from_document(pred), Objects.from_document(true)).shared.sum())


def by_tree(pred: Document, true: Document) -> float:
    """Shared area of two documents, as shapes of the plane."""
    polygons = []
    for side in (pred, true):
        owner = np.repeat(np.arange(len(side)), np.diff(side.offsets))
        polygons.append(shapely.polygons(shapely.linearrings(side.coordinates, indices=owner)))
    tree = shapely.STRtree(polygons[0])
    second, first = tree.query(polygons[1], predicate="intersects")
    return float(shapely.area(shapely.intersection(polygons[0][first], polygons[1][second])).sum())


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and the result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def main() -> int:
    """Print one JSON document with medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--per-side", type=int, default=100, help="objects per row and column")
    parser.add_argument("--pitch", type=int, default=40, help="pixels from one to the next")
    parser.add_argument("--shift", type=int, default=6, help="pixels by which predicted objects are off, at most")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--python", type=Path, help="an interpreter that has stardist")
    arguments = parser.parse_args()
    true = cells(arguments.per_side, arguments.pitch, 0, 1)
    pred = cells(arguments.per_side, arguments.pitch, arguments.shift, 2)
    pred[pred > 0] = arguments.per_side**2 + 1 - pred[pred > 0]  # the order of labels tells nothing
    one, two = traced(pred), traced(true)
    by_labels(pred[:100, :100], true[:100, :100], [0.1])  # imports scipy
    result: dict[str, Any] = {"objects": [len(one), len(two)], "pixels": list(true.shape), "label_images": []}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        np.savez(work / "pair.npz", pred=pred, true=true)
        python = arguments.python or reference_python(work / "venv")
        with subprocess.Popen(
            [str(python), "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as server:
            for thresholds in ([0.5], [round(0.5 + 0.05 * step, 2) for step in range(10)], [0.1, 0.3]):
                ours, theirs = [], []
                for _ in range(arguments.rounds):
                    ours.append(timed(lambda at=thresholds: by_labels(pred, true, at)))
                    server.stdin.write(json.dumps([str(work / "pair.npz"), thresholds]) + "\n")
                    server.stdin.flush()
                    theirs.append(json.loads(server.stdout.readline()))
                own, other = ours[-1][1], theirs[-1]
                qualities = [own.at(index)["panoptic_quality"] for index in range(len(thresholds))]
                seconds = statistics.median(one[0] for one in ours), statistics.median(one["seconds"] for one in theirs)
                result["label_images"].append(
                    {
                        "thresholds": [round(threshold, 4) for threshold in thresholds],
                        "segserve_s": round(seconds[0], 3),
                        "stardist_s": round(seconds[1], 3),
                        "times_faster": round(seconds[1] / seconds[0], 1),
                        "same_hits": own.hits.tolist() == other["tp"],
                        "largest_difference_of_pq": float(np.abs(np.subtract(qualities, other["pq"])).max()),
                    }
                )
            server.stdin.close()
    pairs = [(timed(lambda: by_runs(one, two)), timed(lambda: by_tree(one, two))) for _ in range(arguments.rounds)]
    runs, tree = (statistics.median(pair[side][0] for pair in pairs) for side in (0, 1))
    result["polygons"] = {
        "runs_s": round(runs, 3),
        "strtree_s": round(tree, 3),
        "times_faster": round(tree / runs, 1),
        "shared_pixels": pairs[0][0][1],
        "shared_area_of_shapes": round(pairs[0][1][1], 1),
    }
    json.dump(result, sys.stdout, indent=2)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
