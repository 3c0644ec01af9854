"""Runs in an environment of its own, with one foreign reader: `python export_readers.py READER FOLDER`.

FOLDER has the exports of `test_export_readers.py` and `truth<n>.npy`, masks with the number of each object. Prints
JSON: per image, the objects (numbers) whose pixels are not exactly those of the truth.
"""

# mypy: ignore-errors
from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np


def truths(folder):
    return [np.load(path) for path in sorted(folder.glob("truth*.npy"))]


def wrong(found, truth):
    """Numbers of objects that differ; `found` has one mask per object, in order. Keeps what was found as one image."""
    painted = np.zeros(truth.shape, np.int32)
    for number, mask in enumerate(found, 1):
        painted[np.asarray(mask) > 0] = number
    folder = Path(sys.argv[2]) / "found"
    folder.mkdir(exist_ok=True)
    np.save(folder / f"found{len(list(folder.iterdir())):02d}.npy", painted)
    if len(found) != truth.max():
        return [f"{len(found)} objects for {truth.max()}"]
    return [number for number, mask in enumerate(found, 1) if not np.array_equal(mask > 0, truth == number)]


def datumaro_cvat(folder):
    """CVAT's own interchange library reads its XML."""
    from datumaro import Dataset
    from datumaro.components.annotation import AnnotationType
    from pycocotools import mask as coco

    result = []
    items = sorted(Dataset.import_from(str(folder / "cvat"), "cvat"), key=lambda item: item.id)
    for item, truth in zip(items, truths(folder), strict=True):
        masks = []
        for annotation in item.annotations:
            if annotation.type == AnnotationType.mask:
                masks.append(annotation.image)
            else:
                masks.append(coco.decode(coco.merge(coco.frPyObjects([annotation.points], *truth.shape))))
        result.append(wrong(masks, truth))
    return result


def label_studio(folder):
    """Label Studio's own converter makes COCO of the tasks, and pycocotools masks of that."""
    from label_studio_sdk.converter import Converter
    from pycocotools import mask as coco

    tasks = json.loads((folder / "label-studio" / "label-studio.json").read_text())
    for number, task in enumerate(tasks):
        task["id"] = number + 1
        task["annotations"] = [{**task["predictions"][0], "id": number + 1, "was_cancelled": False}]
    (folder / "tasks.json").write_text(json.dumps(tasks))
    setup = (folder / "label-studio" / "label-studio.config.xml").read_text()
    converter = Converter(setup, str(folder), download_resources=False)
    converter.convert_to_coco(str(folder / "tasks.json"), str(folder / "converted"), is_dir=False)
    converted = json.loads((folder / "converted" / "result.json").read_text())
    result = []
    for index, truth in enumerate(truths(folder)):
        own = [one for one in converted["annotations"] if one["image_id"] == index]
        masks = [coco.decode(coco.merge(coco.frPyObjects(one["segmentation"], *truth.shape))) for one in own]
        areas = [one["area"] for one in own]
        # Percent of a width of 7 is no finite number: the area is exact but for the rounding of floats.
        np.testing.assert_allclose(areas, np.bincount(truth.ravel())[1:], rtol=1e-12)
        result.append(wrong(masks, truth))
    return result


def napari(folder):
    """napari opens the file as a Shapes layer and makes masks of it."""
    from napari.layers import Shapes
    from napari_builtins.io import napari_get_reader

    result = []
    for index, truth in enumerate(truths(folder)):
        path = str(sorted((folder / "napari").glob("*.csv"))[index])
        data, options, kind = napari_get_reader(path)(path)[0]
        assert kind == "shapes"
        layer = Shapes(data, **options)
        result.append(wrong(list(layer.to_masks(mask_shape=truth.shape)), truth))
    return result


if __name__ == "__main__":
    print(
        json.dumps(
            {"cvat": datumaro_cvat, "label-studio": label_studio, "napari": napari}[sys.argv[1]](Path(sys.argv[2]))
        )
    )
