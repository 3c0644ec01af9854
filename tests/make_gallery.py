"""Draw docs/images/gallery-*.png: one image through each export, as the reader of its proof sees it.

Run: python -m tests.make_gallery
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import cv2
import numpy as np

from segserve.exporters import EXPORTERS, Results, export_all
from tests import masks
from tests.test_export_readers import PACKAGES, read_by
from tests.test_exporters import READERS

ROOT = Path(__file__).parents[1]
SCALE = 5
COLOURS = ((60, 60, 255), (255, 200, 0), (0, 220, 255), (70, 230, 60), (255, 70, 220), (0, 140, 255), (230, 240, 30))


def scene() -> tuple[np.ndarray, Results]:
    """Some coins; what is bright is an object, so that there are holes, pieces and the border of the image."""
    grey = cv2.imread(str(ROOT / "examples" / "images" / "coins.png"), cv2.IMREAD_GRAYSCALE)[8:88, 140:270]
    smooth = cv2.GaussianBlur(grey, (0, 0), 1)
    _, labels = cv2.connectedComponents((smooth > 132).astype(np.uint8), connectivity=8)
    sizes = np.bincount(labels.ravel())
    labels[np.isin(labels, np.flatnonzero(sizes < 4))] = 0
    mask = labels.astype(np.int32)
    return grey, Results(masks.document([mask]), [masks.image(0, mask, "/data/coins.png")])


def drawn(grey: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Each object in a colour, with its border, enlarged."""
    large = cv2.cvtColor(
        cv2.resize(grey, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_NEAREST), cv2.COLOR_GRAY2BGR
    )
    big = cv2.resize(found.astype(np.int32), None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_NEAREST)
    for number in range(1, int(found.max()) + 1):
        inside = big == number
        border = inside & ~cv2.erode(inside.astype(np.uint8), np.ones((3, 3))).astype(bool)
        colour = np.array(COLOURS[number % len(COLOURS)])
        large[inside] = (0.65 * large[inside] + 0.35 * colour).astype(np.uint8)
        large[border] = colour
    return large


def seen(target: str, results: Results, folder: Path) -> np.ndarray:
    """What the target's reader makes of the export, as one label image."""
    if target in PACKAGES:
        assert read_by(target, results, folder) == [[]]
        return np.load(folder / "found" / "found00.npy")
    export_all(results, [target], folder)
    found = np.zeros(results.images[0].shape, np.int32)
    for number, (_, mask, _) in enumerate(READERS[target](folder / target, results), 1):
        found[mask] = number
    return found


def main() -> None:
    """Write all pictures."""
    grey, results = scene()
    for target in EXPORTERS:
        with tempfile.TemporaryDirectory() as name:
            found = seen(target, results, Path(name))
        assert np.array_equal(found, masks.truth(results, 0)), target
        path = ROOT / "docs" / "images" / f"gallery-{target}.png"
        cv2.imwrite(str(path), drawn(grey, found), [cv2.IMWRITE_PNG_COMPRESSION, 9])
        print(path.relative_to(ROOT), path.stat().st_size)


if __name__ == "__main__":
    main()
