"""How good a model is on the test images: overlap of every image, pooled, per class, and pictures of it."""

import argparse
import csv
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np

from segmentor import dataset, pixels
from segmentor.annotation import Annotation
from segmentor.dataset import metric_name
from segmentor.instances import Settings
from segmentor.pixels import Normalisation
from segmentor.predict import Model
from segmentor.samples import outlined, to_rgb
from segmentor.split import SPLITS

POOLED = "(all)"
_TRUTH, _FOUND, _BOTH = (0, 158, 115), (213, 94, 0), (255, 255, 255)


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate, print the pooled rows, log to MLflow."""
    options = parse(arguments)
    model = Model(options.model, options.device)
    rows = evaluate(model, dataset.load(options.data), options.part, options.output, options.settings)
    for row in rows:
        if row["image"] == POOLED:
            print("{class:16} dice {dice:.4f}  iou {iou:.4f}  objects {objects} of {truth}".format(**row))
            place = "" if row["class"] == POOLED else f"/{metric_name(row['class'])}"
            mlflow.log_metrics({f"{options.part}/{name}{place}": row[name] for name in ("dice", "iou")})
    mlflow.log_artifacts(str(options.output), "evaluation")


def evaluate(model: Model, data: dataset.Dataset, part: str, folder: Path, settings: Settings) -> list[dict[str, Any]]:
    """Write `folder`/evaluation.csv and an overlay per image; returns the rows: each image, then all pooled.

    Pooled means that intersections and unions are added up over the images, so that large objects count for more.

    Raises:
        DatasetError: there are no images in this part, or the model knows other classes.
    """
    if list(model.metadata.classes) != data.classes:
        raise dataset.DatasetError(f"the model has the classes {model.metadata.classes}, the data {data.classes}")
    if not data.parts[part]:
        raise dataset.DatasetError(f"the part '{part}' of the data set has no images")
    (folder / "overlays").mkdir(parents=True, exist_ok=True)
    rows, pooled = [], np.zeros((len(data.classes), 5), np.int64)
    for sample in data.parts[part]:
        image, truth = sample.read_image(), sample.read_annotation()
        objects = model.segment(image, settings)
        found = Annotation(objects.labels, objects.classes)
        counts = count(found, truth, len(data.classes))
        pooled += counts
        rows += list(_rows(sample.name, data.classes, counts))
        pixels.write_png(folder / "overlays" / f"{sample.name}.png", overlay(image, found, truth))
    rows += list(_rows(POOLED, data.classes, pooled))
    with (folder / "evaluation.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return rows


def count(found: Annotation, truth: Annotation, classes: int) -> np.ndarray:
    """(classes, 5) for each class: pixels in both, found, true; objects found, true."""
    ours, wanted = found.class_map(), truth.class_map()
    counts = []
    for number in range(1, classes + 1):
        inside, true = ours == number, wanted == number
        pixels_of = [int((inside & true).sum()), int(inside.sum()), int(true.sum())]
        counts.append([*pixels_of, int((found.classes == number).sum()), int((truth.classes == number).sum())])
    return np.array(counts, np.int64)


def overlay(image: np.ndarray, found: Annotation, truth: Annotation) -> np.ndarray:
    """(rows, columns, 3) uint8: rims of true objects green, of found ones orange, where both agree white."""
    picture = to_rgb(Normalisation(channels=3)(image))
    true, ours = _rims(truth.instances), _rims(found.instances)
    for rim, colour in ((true, _TRUTH), (ours, _FOUND), (true & ours, _BOTH)):
        picture[rim] = colour
    return picture


def _rims(labels: np.ndarray) -> np.ndarray:
    """(rows, columns) bool: the outermost pixels of every object."""
    masks = [(labels == label, _BOTH) for label in range(1, int(labels.max(initial=0)) + 1)]
    return outlined(np.zeros((*labels.shape, 3), np.uint8), masks)[..., 0] > 0


def _rows(image: str, classes: Sequence[str], counts: np.ndarray) -> Iterable[dict[str, Any]]:
    """A row per class, and one for all classes together where there are several. Nothing there and found: 1."""
    listed = list(zip(classes, counts, strict=True))
    if len(classes) > 1:
        listed.append((POOLED, counts.sum(axis=0)))
    for name, (both, ours, true, objects, wanted) in listed:
        union = ours + true - both
        yield {
            "image": image,
            "class": name,
            "dice": round(float(2 * both / (ours + true)), 6) if union else 1.0,
            "iou": round(float(both / union), 6) if union else 1.0,
            "objects": int(objects),
            "truth": int(wanted),
        }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    default = Settings()
    parser = argparse.ArgumentParser(prog="evaluate", description=__doc__)
    parser.add_argument("data", type=Path, help="the folder that `prepare` wrote")
    parser.add_argument("model", type=Path, help="ONNX file, or folder with model.onnx")
    parser.add_argument("--part", choices=SPLITS, default="test")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--threshold", type=float, default=default.threshold)
    parser.add_argument("--seed", type=float, default=default.seed)
    parser.add_argument("--min-area", type=float, default=default.min_area)
    parser.add_argument("--output", type=Path, default=Path("evaluation"))
    options = parser.parse_args(arguments)
    options.settings = Settings(options.threshold, options.seed, options.min_area)
    return options


if __name__ == "__main__":
    try:
        main()
    except ValueError as problem:
        sys.exit(f"{type(problem).__name__}: {problem}")
