"""An executor repository with a localiser, a classifier and a pipeline in Python; small, and of changing moods."""

from __future__ import annotations

from pathlib import Path

from tests.repositories import make_repository

PROJECT = """\
name: moody
python_env: python_env.yaml
entry_points:
  main:
    parameters:
      input_images: path
      size: {type: float, default: 1, min: 0, max: 10000}
      mood: {type: string, default: good, options: [good, bad]}
      count: {type: int, default: 0}
      sure: {type: bool, default: "false"}
    command: python finder.py {input_images} --size {size} --mood {mood} --count {count} --sure {sure}
  kinds:
    parameters:
      input_images: path
      limit: {type: float, default: 150}
    command: python kinds.py {input_images} --limit {limit}
  chain:
    parameters:
      input_images: path
      size: {type: float, default: 1}
    command: python chain.py {input_images} --size {size}
"""

# 255 raises, 254 kills the process, 253 takes a while; everything above 100 is an object.
FINDER = """\
import os, time
import cv2
import numpy as np
from segserve_sdk import Runner, parameter

def find(image, size):
    grey = image if image.ndim == 2 else image[..., 0]
    if grey.max() == 255:
        raise ValueError("too bright")
    if grey.max() == 254:
        os._exit(3)
    if grey.max() == 253:
        time.sleep(2)
    _, labels, stats, _ = cv2.connectedComponentsWithStats((grey > 100).astype(np.uint8))
    keep = stats[:, cv2.CC_STAT_AREA] >= size
    keep[0] = False
    return np.where(keep, np.cumsum(keep), 0)[labels]

class Finder(Runner):
    "Finds what is bright."

    size: float = 1.0
    mood: str = "good"
    count: int = 0
    sure: bool = False

    def segment(self, image):
        return find(image, self.size)

if __name__ == "__main__":
    Finder.main()
"""

KINDS = """\
from segserve_sdk import Classifier

class Kinds(Classifier):
    classes = ("large", "small")
    limit: float = 150.0

    def classify(self, batch):
        areas = [image.shape[0] * image.shape[1] for image in batch]
        return [(0.9, 0.1) if area > self.limit else (0.2, 0.8) for area in areas]

if __name__ == "__main__":
    Kinds.main()
"""

CHAIN = """\
import finder, kinds
import numpy as np
from segserve_sdk.pipeline import Algorithm, Box, ClassificationError, LocalizationError, Pipeline, pipeline_stage

class Finder(Algorithm):
    key, name, task = "moody-finder", "Finder", "localization"

    def run(self, batch):
        return [self.boxes(image, 1) for image in batch]

    def boxes(self, image, size):
        labels = finder.find(image, size)
        found = []
        for value in range(1, labels.max() + 1):
            rows, columns = np.nonzero(labels == value)
            found.append(Box(columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
        return found

class Kinds(Algorithm):
    key, name, task, classes = "moody-kinds", "Large or small", "classification", ("large", "small")

    def compile(self):
        self.model = kinds.Kinds()

    def run(self, batch):
        return self.model.classify(batch)

class Moody(Pipeline):
    "Finds and names, all in Python."

    config = {"slug": "moody-python", "name": "Moody", "version": 3, "entry_point": "chain"}
    stages = [Finder(), Kinds()]
    batch_size = [2, 16]
    size: float = 1.0

    @pipeline_stage(stage_index=0, error_type=LocalizationError)
    def find(self, batch):
        return [self.stages[0].boxes(image, self.size) for image in batch]

    @pipeline_stage(stage_index=1, error_type=ClassificationError)
    def name_them(self, batch):
        return self.stages[1].run(batch)

if __name__ == "__main__":
    Moody.main()
"""

MANIFEST = """\
title = "Moody"

[algorithm]
task = "localization"

[run]
resident = true

[[pipelines]]
description = "Finds and names, all in Python."
slug = "moody-python"
name = "Moody"
version = 3
entry_point = "chain"

[[pipelines.algorithms]]
key = "moody-finder"
name = "Finder"
task = "localization"
version = 1

[[pipelines.algorithms]]
key = "moody-kinds"
name = "Large or small"
task = "classification"
version = 1
classes = ["large", "small"]
"""


def make_moody(folder: Path) -> str:
    """Create the repository and return its full commit id."""
    files = {"MLproject": PROJECT, "finder.py": FINDER, "kinds.py": KINDS, "chain.py": CHAIN}
    files["python_env.yaml"] = 'python: "3.11"\ndependencies: [numpy, opencv-python-headless, segserve-sdk]\n'
    return make_repository(folder, {**files, "segserve.toml": MANIFEST})
