"""The programs' own readers, too heavy for our environment: each runs in one of its own, which uv makes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from segserve.exporters import Results, export_all
from tests import masks, nuclei

PACKAGES = {
    "cvat": ["datumaro>=1.10"],
    "label-studio": ["label-studio-sdk>=1.0", "pycocotools"],
    "napari": ["napari>=0.5.6"],
}


def hard_results() -> Results:
    """Hand-made masks, nuclei, and random ones in which labels interleave."""
    rng = np.random.default_rng(3)
    shapes = [masks.hard_mask(), masks.hard_mask().T, nuclei.nuclei(1, size=128, count=15, gap=-2)[1]]
    shapes += [
        rng.integers(0, 4, (int(rows), int(columns)), np.int32) for rows, columns in rng.integers(3, 14, (12, 2))
    ]
    images = [masks.image(number, mask, f"/data/cells{number:02d}.png") for number, mask in enumerate(shapes)]
    return Results(masks.document(shapes), images)


@pytest.mark.network
@pytest.mark.parametrize("reader", list(PACKAGES))
def test_the_programs_own_readers_see_the_same_pixels(reader: str, tmp_path: Path) -> None:
    results = hard_results()
    assert read_by(reader, results, tmp_path) == [[]] * len(results.images)


def read_by(reader: str, results: Results, folder: Path) -> list[list[object]]:
    """Export and read in an environment of its own: per image the objects that differ. Leaves `found/found<n>.npy`."""
    export_all(results, [reader], folder)
    for index, image in enumerate(results.images):
        np.save(folder / f"truth{index:02d}.npy", masks.truth(results, index))
        blank = folder / reader / "images" / Path(image.source).name  # datumaro wants the images beside the XML
        blank.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(blank), np.zeros(image.shape, np.uint8))
    uv = Path(sys.executable).parent / "uv"
    packages = [word for package in PACKAGES[reader] for word in ("--with", package)]
    script = Path(__file__).parent / "export_readers.py"
    words = [
        uv,
        "run",
        "--quiet",
        "--no-project",
        "--isolated",
        "--python",
        sys.executable,
        *packages,
        "python",
        script,
    ]
    done = subprocess.run(
        [str(word) for word in (*words, reader, folder)], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return list(json.loads(done.stdout.splitlines()[-1]))
