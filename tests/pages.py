"""What the page is tried with: a headless Chromium, and an executor whose polygons the test says beforehand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from tests.repositories import make_repository

PROJECT = """\
name: given
python_env: python_env.yaml
entry_points:
  main:
    parameters:
      input_images: path
      threshold: {type: float, default: 0.5, min: 0, max: 1, description: "Brightness from which a pixel is an object"}
      method: {type: string, default: otsu, options: [otsu, li, triangle], description: "How the threshold is found"}
      diameter: {type: int, default: 30, description: "Typical diameter in pixels"}
      invert: {type: bool, default: "false", description: "Dark objects on bright ground"}
      classes: {type: string_list, default: "[\\"Nucleus\\"]", description: "Names of the classes"}
      mode: {type: string, default: good, adjustable: false}
      name: {type: string, default: ""}
    command: "python main.py {input_images} {threshold} {method} {diameter} {invert} {classes} {mode} {name}"
"""
MANIFEST = """\
title = "Polygons that are known"
description = "Answers for every image what its repository holds."
licence = "BSD-3-Clause"

[citation]
text = "A. Tester et al., On known polygons, 2026."
"""
MAIN = """\
import glob, json, os, sys, time
images, threshold, method, diameter, invert, classes, mode, name = sys.argv[1:]
print("method", method, "diameter", diameter, "invert", invert, "classes", classes, flush=True)
if name == "crash":
    raise RuntimeError("the model file is empty")
if name == "slow":
    for second in range(900):
        print("second", second, flush=True)
        time.sleep(1)
given = json.load(open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "polygons.json")))
names = sorted(glob.glob(os.path.join(images, "*.png")))
segmentation = [given[index % len(given)] for index in range(len(names))]
document = {"model": "given", "format_version": "0.2", "segmentation_data": segmentation}
json.dump(document, open("output.json", "w"))
"""


def polygon(points: Sequence[Sequence[float]], label: str = "Cell", score: float | None = None) -> dict[str, Any]:
    """One object of format 0.2."""
    found = {"label": label, "type": "Polygon", "contour_coordinates": [list(point) for point in points]}
    return found if score is None else {**found, "score": score}


def make_given_executor(folder: Path, polygons: list[list[dict[str, Any]]]) -> None:
    """An executor that answers `polygons`, one list per image (from the first again when there are more images).

    Its environment has nothing in it and is built without an index. `-P name=crash` fails, `name=slow` takes minutes.
    """
    make_repository(
        folder,
        {
            "MLproject": PROJECT,
            "segserve.toml": MANIFEST,
            "main.py": MAIN,
            "polygons.json": json.dumps(polygons),
            "python_env.yaml": 'python: "3.11"\ndependencies: []\n',
        },
    )


@contextmanager
def browser(width: int = 1280, height: int = 900, **options: Any) -> Iterator[Page]:
    """A page of a headless Chromium of its own. What it complains about (console, policy, scripts) is in `errors`."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    assert program, "Debian's chromium is not installed"
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        page = chromium.new_page(viewport={"width": width, "height": height}, **options)
        page.set_default_timeout(90_000)
        try:
            yield page
        finally:
            chromium.close()
