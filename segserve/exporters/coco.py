"""COCO: one `coco.json` with all images, and `coco-results.json` (the results form) when every object has a score.

Corner coordinates; `[[x1, y1, …], …]` for objects without holes, uncompressed RLE for the others. Every plane of a
stack is an image of its own; `source`, `series`, `t`, `z`, `c` say which.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from segserve.exporters.base import Exported, Object, Results


def export(results: Results, folder: Path) -> Exported:
    """The instances, and the results form where there are scores."""
    categories = {label: number for number, label in enumerate(results.labels, 1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for sheet in results.sheets:
        for index in sheet.indices:
            image = results.images[index]
            described = {
                "id": index + 1,
                "file_name": sheet.flat_name(results.images[index]),
                "width": image.shape[1],
                "height": image.shape[0],
            }
            origin = {
                "source": image.source,
                "series": image.series,
                "t": image.t,
                "z": image.z,
                "c": image.c,
            }
            images.append({**described, **{key: value for key, value in origin.items() if value is not None}})
            annotations += list(_annotations(results, index, categories, len(annotations) + 1))
    instances = {
        "info": {"description": results.document.model},
        "licenses": [],
        "images": images,
        "categories": [{"id": number, "name": label} for label, number in categories.items()],
        "annotations": annotations,
    }
    paths = [folder / "coco.json"]
    paths[0].write_bytes(msgspec.json.encode(instances))
    if annotations and all("score" in annotation for annotation in annotations):
        paths.append(folder / "coco-results.json")
        kept = ("image_id", "category_id", "segmentation", "bbox", "score")
        paths[1].write_bytes(msgspec.json.encode([{key: found[key] for key in kept} for found in annotations]))
    return Exported(tuple(paths))


def _annotations(results: Results, index: int, categories: dict[str, int], first: int) -> Iterator[dict[str, Any]]:
    for number, item in enumerate(results.objects(index), first):
        box, area = _box(item)
        annotation = {
            "id": number,
            "image_id": index + 1,
            "category_id": categories[item.label],
            "segmentation": _segmentation(item, results.images[index].shape),
            "area": area,
            "bbox": box,
            "iscrowd": 0,
        }
        yield annotation if item.score is None else {**annotation, "score": item.score}


def _box(item: Object) -> tuple[list[int], int]:
    """(x, y, width, height) of the pixels, and how many there are."""
    rows, columns = np.flatnonzero(item.pixels.any(axis=1)), np.flatnonzero(item.pixels.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    size = [int(columns[-1]) - x + 1, int(rows[-1]) - y + 1]
    return [item.left + x, item.top + y, *size], int(item.pixels.sum())


def _segmentation(item: Object, shape: tuple[int, int]) -> list[list[int]] | dict[str, Any]:
    parts = item.polygons()
    if all(len(polygon) == 1 for polygon in parts):
        return [polygon[0].ravel().tolist() for polygon in parts]
    return {"size": list(shape), "counts": _run_lengths(item, shape)}


def _run_lengths(item: Object, shape: tuple[int, int]) -> list[int]:
    """Lengths of runs, column by column over the whole image, beginning with background."""
    columns, rows = np.nonzero(item.pixels.T)
    places = (columns + item.left) * shape[0] + rows + item.top
    breaks = np.flatnonzero(np.diff(places) > 1)
    starts, ends = places[np.append(0, breaks + 1)], places[np.append(breaks, len(places) - 1)] + 1
    edges = np.stack([starts, ends], axis=1).ravel()
    return [int(length) for length in np.diff(np.concatenate([[0], edges, [shape[0] * shape[1]]]))]
