"""The two models of the chain in one Python process: `python antenna_peer.py EXECUTORS FOLDER REPEAT`.

Each image file is read, segmented; the boxes of its objects are cut and classified in batches of 16. Prints the images
per second of every pass after the first, and how many objects there were.
"""

import importlib.util
import sys
import time
from pathlib import Path

import numpy as np
from segserve_sdk import images

BATCH = 16


def load(folder: Path) -> object:
    """The module main of an executor, with what it imports from its own folder."""
    sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location(f"main_{folder.name}", folder / "main.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(folder))
    return module


def boxes(labels: np.ndarray) -> list:
    """(top, bottom, left, right) of every label, half open."""
    rows, columns = np.nonzero(labels)
    values = labels[rows, columns]
    count = int(labels.max()) + 1
    first, last = np.full((count, 2), 1 << 30), np.zeros((count, 2), np.int64)
    places = np.stack([rows, columns], axis=1)
    np.minimum.at(first, values, places)
    np.maximum.at(last, values, places + 1)
    return [(a[0], b[0], a[1], b[1]) for a, b in zip(first[1:], last[1:], strict=True)]


def main() -> None:
    executors, folder, repeat = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    finder = load(executors / "threshold").Threshold(invert="no", split=0.5)
    kinds = load(executors / "shapes").Shapes()
    finder.load()
    kinds.load()
    files = sorted(folder.glob("*.png"))
    for number in range(repeat + 1):
        start, objects = time.perf_counter(), 0
        for file in files:
            image = images.read(file)
            labels, _ = finder.segment(image)
            crops = [image[top:bottom, left:right] for top, bottom, left, right in boxes(labels)]
            for at in range(0, len(crops), BATCH):
                objects += len(kinds.classify(crops[at : at + BATCH]))
        if number:
            print(len(files) / (time.perf_counter() - start), objects, flush=True)


if __name__ == "__main__":
    main()
