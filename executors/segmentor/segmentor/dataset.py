"""A prepared data set: `train`, `val`, `test` with images, `trainannot`, `valannot`, `testannot` with their objects.

An annotation is a PNG of the same name, 16 bit: 0 = background, 1 … n = objects. `dataset.json` beside them has the
names of the classes and, for every image, the class (1 … K) of each object, the source it was cut from, and the digest.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segmentor import pixels
from segmentor.annotation import Annotation
from segmentor.split import SPLITS

FILE = "dataset.json"
MOST_OBJECTS = 2**16 - 1


class DatasetError(ValueError):
    """The folder is no data set that `prepare` made, or not any more; the message names file and reason."""


@dataclass(frozen=True)
class Sample:
    """One image of a data set; `classes[i]` is the class of object `i + 1`."""

    name: str
    image: Path
    annotation: Path
    classes: np.ndarray

    def read_image(self) -> np.ndarray:
        """See `pixels.read`."""
        return _read(self.image)

    def read_annotation(self) -> Annotation:
        """The objects."""
        return Annotation(_read(self.annotation).astype(np.int32), self.classes)


class Dataset(NamedTuple):
    """Names of classes 1 … K, and the samples of each part, sorted by name."""

    classes: list[str]
    parts: dict[str, list[Sample]]


def load(folder: Path) -> Dataset:
    """What `prepare` wrote.

    Raises:
        DatasetError: the folder has no dataset.json, or a file is missing.
    """
    try:
        document = json.loads((folder / FILE).read_text("utf-8"))
        entries = sorted(document["images"].items())
        parts: dict[str, list[Sample]] = {part: [] for part in SPLITS}
        for name, entry in entries:
            part = parts[entry["split"]]
            paths = (folder / f"{entry['split']}{kind}" / f"{name}.png" for kind in ("", "annot"))
            part.append(Sample(name, *paths, np.array(entry["classes"], np.int64)))
        classes = [str(name) for name in document["classes"]]
    except OSError:
        raise DatasetError(f"{folder / FILE} is not there: give the folder that `prepare` wrote") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DatasetError(f"{folder / FILE} is not as `prepare` writes it: {error!r}") from None
    for sample in (sample for part in parts.values() for sample in part):
        for path in (sample.image, sample.annotation):
            if not path.is_file():
                raise DatasetError(f"{path} is missing; {FILE} names it")
    return Dataset(classes, parts)


def metric_name(label: str) -> str:
    """A class as part of the name of a metric: MLflow takes only some characters there."""
    return re.sub(r"[^A-Za-z0-9_. -]", "_", label)


def write_sample(folder: Path, part: str, name: str, image: np.ndarray, annotation: Annotation) -> None:
    """Write one image and its objects; the entry in dataset.json is the caller's to write at the end."""
    for kind, array in (("", image), ("annot", annotation.instances.astype(np.uint16))):
        path = folder / f"{part}{kind}" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels.write_png(path, array)


def write_document(folder: Path, document: dict[str, Any]) -> None:
    """Write dataset.json."""
    (folder / FILE).write_text(json.dumps(document) + "\n", "utf-8")


def _read(path: Path) -> np.ndarray:
    try:
        return pixels.read(path)
    except ValueError as error:
        raise DatasetError(f"{path} {error}") from None
