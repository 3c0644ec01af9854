"""Annotations that are documents: COCO (polygons, RLE) and format 0.2."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from segserve_sdk import contours

from segmentor.annotation import Annotation, compact
from segmentor.sources.base import Item, Source, SourceError, image_files


def read_coco(source: Path, names: Sequence[str]) -> Source:
    """A COCO file of objects and its images, which lie beside it or in `images/`.

    `iscrowd` makes no difference: CVAT marks every mask so that was painted. Coordinates are pixel corners there: the
    pixel in column 3 reaches from 3.0 to 4.0.
    """
    path = coco_file(source)
    if path is None:
        raise SourceError(source, "has no COCO file (*.json with 'images', 'annotations' and 'categories')")
    document = _load(path)
    try:
        listed = {int(entry["id"]): str(entry["name"]) for entry in document["categories"]}
        images = {int(entry["id"]): str(entry["file_name"]) for entry in document["images"]}
        sizes = {int(entry["id"]): (int(entry["height"]), int(entry["width"])) for entry in document["images"]}
        objects: dict[int, list[Mapping[str, Any]]] = {number: [] for number in images}
        for entry in document["annotations"]:
            objects.setdefault(int(entry["image_id"]), []).append(entry)
        used = {int(entry["category_id"]) for entry in document["annotations"]}
    except (KeyError, TypeError, ValueError) as error:
        raise SourceError(path, f"is no COCO file of objects: {error!r}") from None
    for what, missing in (("image", objects.keys() - images.keys()), ("category", used - listed.keys())):
        if missing:
            raise SourceError(path, f"annotations name the {what} {min(missing)}, which the file does not list")
    classes = list(names) or list(dict.fromkeys(listed.values()))
    values = {number: classes.index(name) + 1 for number, name in listed.items() if name in classes}
    files = image_files(source)
    by_name = {file.relative_to(source).as_posix(): (name, file) for name, file in files.items()}
    items, problems = [], []
    for number, file_name in images.items():
        found = by_name.get(file_name) or by_name.get(f"images/{file_name}")
        if found is None:
            problems.append(SourceError(path, f"names the image {file_name}, which is not there"))
            continue
        load = partial(_paint_coco, path, file_name, objects[number], values, sizes[number])
        items.append(Item(found[0].removeprefix("images__"), found[1], load))
    return Source(classes, sorted(items), problems)


def read_format_0_2(source: Path, names: Sequence[str]) -> Source:
    """`output.json` and `images/`, whose sorted names are the order of the results. Labels are the classes."""
    path = source / "output.json"
    document = _load(path)
    per_image = document.get("segmentation_data") if document.get("format_version") == "0.2" else None
    if not isinstance(per_image, list):
        raise SourceError(path, "is no document of format 0.2")
    files = image_files(source / "images")
    if len(files) != len(per_image):
        raise SourceError(path, f"has {len(per_image)} results for the {len(files)} images in images/")
    try:
        found = {str(entry["label"]) for objects in per_image for entry in objects}
    except (KeyError, TypeError) as error:
        raise SourceError(path, f"an object is not as format 0.2 has it: {error!r}") from None
    classes = list(names) or sorted(found)
    items = [
        Item(name, file, partial(_paint_format_0_2, path, objects, classes))
        for (name, file), objects in zip(sorted(files.items(), key=lambda item: item[1]), per_image, strict=True)
    ]
    return Source(classes, items, [])


def coco_file(source: Path) -> Path | None:
    """The first JSON file in the folder or in `annotations/` that has the three lists of COCO."""
    for path in [*sorted(source.glob("*.json")), *sorted(source.glob("annotations/*.json"))]:
        document = _load(path)
        if all(isinstance(document.get(key), list) for key in ("images", "annotations", "categories")):
            return path
    return None


def decode_rle(counts: str | Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """The mask (rows, columns) bool of COCO's run lengths: columns first, beginning with background.

    A text is the compressed form: numbers in groups of five bits, from the fourth on as difference to the one two
    before (https://github.com/cocodataset/cocoapi, common/maskApi.c).

    Raises:
        ValueError: the runs do not fill the mask.
    """
    runs = _decompress(counts) if isinstance(counts, str) else [int(run) for run in counts]
    if any(run < 0 for run in runs) or sum(runs) != size[0] * size[1]:
        raise ValueError(f"its runs do not fill {size[1]} × {size[0]} pixels")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(size, order="F")


def _decompress(text: str) -> list[int]:
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs


def _paint_coco(
    path: Path,
    file_name: str,
    entries: Iterable[Mapping[str, Any]],
    values: Mapping[int, int],
    size: tuple[int, int],
    shape: tuple[int, int],
) -> Annotation:
    if size != tuple(shape):
        raise SourceError(path, f"says {size[1]} × {size[0]} pixels for {file_name}, which has {shape[1]} × {shape[0]}")
    labels, classes = np.zeros(shape, np.int32), []
    for entry in entries:
        if int(entry["category_id"]) not in values:
            continue
        try:
            inside = _coco_mask(entry["segmentation"], size)
        except (KeyError, TypeError, ValueError) as error:
            raise SourceError(path, f"annotation {entry.get('id')} of {file_name}: {error}") from None
        classes.append(values[int(entry["category_id"])])
        labels[inside] = len(classes)
    return compact(labels, np.array(classes, np.int64))


def _coco_mask(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    if isinstance(segmentation, Mapping):
        return decode_rle(segmentation["counts"], size)
    rings = [np.asarray(ring, np.float64).reshape(-1, 2) - 0.5 for ring in segmentation]
    return contours.mask([(1, ring) for ring in rings], size) > 0


def _paint_format_0_2(
    path: Path, objects: Sequence[Mapping[str, Any]], names: Sequence[str], shape: tuple[int, int]
) -> Annotation:
    kept = [entry for entry in objects if entry["label"] in names]
    try:
        rings = [(number, entry["contour_coordinates"]) for number, entry in enumerate(kept, 1)]
        labels = contours.mask(rings, shape)
    except (KeyError, TypeError, ValueError) as error:
        raise SourceError(path, f"an object is not as format 0.2 has it: {error}") from None
    return compact(labels, np.array([names.index(entry["label"]) + 1 for entry in kept], np.int64))


def _load(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SourceError(path, f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise SourceError(path, f"is no JSON: {error}") from None
    return document if isinstance(document, dict) else {}
