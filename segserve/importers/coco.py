"""COCO instances: polygons and RLE (plain or compressed), corner coordinates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segserve.importers.base import Broken, Target, flat_points, member, read_json, score_of, typed


def read(path: Path, target: Target) -> None:
    """Annotations of all images that the file has; every one must be among ours."""
    found = read_json(path)
    images: dict[int, int] = {}
    for number, image in enumerate(member(found, "images", list, "$")):
        place = f"$.images[{number}]"
        shape = member(image, "height", int, place), member(image, "width", int, place)
        name = member(image, "file_name", str, place)
        images[member(image, "id", int, place)] = target.plane(name, place, shape)
    categories: dict[int, str] = {}
    for number, category in enumerate(typed(found.get("categories", []), list, "$.categories")):
        place = f"$.categories[{number}]"
        categories[member(category, "id", int, place)] = member(category, "name", str, place)
    for number, annotation in enumerate(member(found, "annotations", list, "$")):
        _add(annotation, f"$.annotations[{number}]", images, categories, target)


def _add(annotation: Any, place: str, images: dict[int, int], categories: dict[int, str], target: Target) -> None:
    image, category = member(annotation, "image_id", int, place), member(annotation, "category_id", int, place)
    if image not in images:
        raise Broken(f"There is no image {image}.", f"{place}.image_id")
    if category not in categories:
        raise Broken(f"There is no category {category}.", f"{place}.category_id")
    index, label = images[image], categories[category]
    score = score_of(annotation.get("score"), f"{place}.score")
    shape = member(annotation, "segmentation", (list, dict), place)
    inside = f"{place}.segmentation"
    if isinstance(shape, list):
        rings = [flat_points(ring, f"{inside}[{number}]") for number, ring in enumerate(shape)]
        target.add_polygons(index, [[ring] for ring in rings], label, score, place)
        return
    size = target.images[index].shape
    if member(shape, "size", list, inside) != list(size):
        raise Broken(f"The size must be {list(size)} (rows, columns).", f"{inside}.size")
    counts = member(shape, "counts", (list, str), inside)
    runs = _decompress(counts, inside) if isinstance(counts, str) else counts
    mask, corner = _unrun(runs, size, inside)
    if not target.add_mask(index, mask, corner, label, score):
        target.note("import-no-pixels", "The object covers no pixel of its image and is left out.", place)


def _unrun(runs: list[Any], shape: tuple[int, int], place: str) -> tuple[npt.NDArray[np.bool_], tuple[int, int]]:
    """The mask of run lengths down the columns, cut to what it covers, and its corner (x, y)."""
    if not all(isinstance(run, int) and not isinstance(run, bool) and run >= 0 for run in runs):
        raise Broken("Run lengths are whole numbers from 0 on.", f"{place}.counts")
    if sum(runs) != shape[0] * shape[1]:
        raise Broken("The run lengths do not add up to the size of the image.", f"{place}.counts")
    ends = np.cumsum(np.array(runs, np.int64))
    starts, ends = ends[:-1:2], ends[1::2]
    starts, ends = starts[ends > starts], ends[ends > starts]
    if not len(starts):
        return np.zeros((0, 0), bool), (0, 0)
    left, right = int(starts[0]) // shape[0], (int(ends[-1]) - 1) // shape[0] + 1
    flat = np.zeros(((right - left) * shape[0]) + 1, np.int8)
    flat[starts - left * shape[0]] += 1
    flat[ends - left * shape[0]] -= 1
    columns = np.cumsum(flat[:-1], dtype=np.int8).astype(bool).reshape(right - left, shape[0])
    rows = np.flatnonzero(columns.any(axis=0))
    return columns[:, rows[0] : rows[-1] + 1].T, (left, int(rows[0]))


def _decompress(text: str, place: str) -> list[int]:
    """COCO's compressed counts: five bits and a continuation bit per character; from the fourth number on, what is
    written is the difference to the last number but one.

    https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c (rleFrString)
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise Broken("The compressed counts are damaged.", f"{place}.counts")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise Broken("The compressed counts end too early.", f"{place}.counts")
    return runs
