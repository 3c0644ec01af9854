"""Numbers per object: measured once, written as objects.csv and results.json."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from segserve.format import Document, geometry, rules
from segserve.format.document import Floats, Integers
from segserve.format.v0_2 import plain_rings
from segserve.model import StagedImage

COLUMNS = (
    "file",
    "series",
    "t",
    "z",
    "c",
    "image",
    "object_id",
    "label",
    "score",
    "area_px",
    "centroid_x",
    "centroid_y",
    "bbox_x",
    "bbox_y",
    "bbox_width",
    "bbox_height",
)
CONVENTIONS = {
    "coordinates": "x to the right, y down, in pixels; integers are pixel centres, the image's corner is (-0.5, -0.5)",
    "area_px": "number of pixels whose centre lies in the closed ring (integral rings), else the ring's own area",
    "centroid": "x, y of the centre of area, as coordinates",
    "bbox": "x, y, width, height in whole pixels: first column and row (from 0), number of columns and rows",
    "id": "from 1, in the order of output.json, per image; objects.csv calls it object_id",
    "series, t, z, c": "from 0; null where the file has no such axis",
}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True, slots=True)
class Measures:
    """Per object: `ids` (m,) from 1 within its image, `areas` (m,) in pixels, `centroids` (m, 2), `boxes` (m, 4)."""

    ids: Integers
    areas: Floats
    centroids: Floats
    boxes: Integers


def measure(document: Document) -> Measures:
    """Measure every object. Conventions: `CONVENTIONS`."""
    coordinates, offsets = document.coordinates, document.offsets
    odd = rules.odd_rings(coordinates, offsets)
    starts = document.starts()
    return Measures(
        ids=np.arange(len(document), dtype=np.int64) - starts[document.image_index] + 1,
        areas=geometry.pixel_areas(coordinates, offsets, odd=odd),
        centroids=geometry.centroids(coordinates, offsets),
        boxes=geometry.pixel_boxes(coordinates, offsets),
    )


def per_image(document: Document, images: Sequence[StagedImage]) -> Iterator[tuple[int, StagedImage | None, slice]]:
    """(index, image, slice of its objects) of every image, in input order; image None when none were staged."""
    starts = document.starts()
    for index in range(document.n_images):
        yield index, images[index] if images else None, slice(int(starts[index]), int(starts[index + 1]))


def text_cell(value: str) -> str:
    """A text that a spreadsheet does not take for a formula: such texts get an apostrophe in front.

    https://owasp.org/www-community/attacks/CSV_Injection
    """
    return f"'{value}" if value.startswith(_FORMULA) else value


def _blank(value: object) -> object:
    return "" if value is None else value


def _rounded(value: float) -> float | int:
    return int(value) if value.is_integer() else round(value, 3)


def write_csv(path: Path, document: Document, images: Sequence[StagedImage], measures: Measures) -> None:
    """One row per object (`COLUMNS`), UTF-8, comma-separated."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for _, image, objects in per_image(document, images):
            writer.writerows(_rows(document, image, objects, measures))


def _rows(
    document: Document, image: StagedImage | None, objects: slice, measures: Measures
) -> Iterator[tuple[object, ...]]:
    head: tuple[object, ...] = ("", "", "", "", "", "")
    if image is not None:
        axes = (_blank(image.series), _blank(image.t), _blank(image.z), _blank(image.c))
        head = (text_cell(image.source), *axes, image.name)
    for number, label, score, area, centre, box in zip(
        measures.ids[objects].tolist(),
        document.labels[objects],
        document.scores[objects].tolist(),
        measures.areas[objects].tolist(),
        measures.centroids[objects].tolist(),
        measures.boxes[objects].tolist(),
        strict=True,
    ):
        shown = "" if math.isnan(score) else score
        x, y = ("" if math.isnan(value) else round(value, 3) for value in centre)
        yield (*head, number, text_cell(label), shown, _rounded(area), x, y, *box)


def write_results(
    path: Path, document: Document, images: Sequence[StagedImage], measures: Measures, facts: Mapping[str, Any]
) -> None:
    """results.json, written image by image. Its schema stands in `docs/format.md`."""
    head = {
        "format": "segserve-results",
        "version": 1,
        "executor": {key: facts.get(key, "") for key in ("executor", "repository", "commit", "subdir", "entry")},
        "model": document.model,
        "conventions": CONVENTIONS,
    }
    with path.open("wb") as stream:
        stream.write(msgspec.json.encode(head)[:-1] + b',"images":[')
        for index, image, objects in per_image(document, images):
            stream.write(
                (b",\n" if index else b"\n")
                + msgspec.json.encode(_image(document.image(index), image, objects, measures))
            )
        stream.write(b"\n]}\n")


def _image(document: Document, image: StagedImage | None, objects: slice, measures: Measures) -> dict[str, Any]:
    described: dict[str, Any] = {}
    if image is not None:
        described = {
            "file": image.source,
            "series": image.series,
            "t": image.t,
            "z": image.z,
            "c": image.c,
            "channel": image.channel_name,
            "staged": image.name,
            "sha256": image.sha256,
            "width": image.shape[1],
            "height": image.shape[0],
            "pixel_size_um": image.pixel_size_um,
        }
    return {**described, "objects": _objects(document, objects, measures)}


def _objects(document: Document, objects: slice, measures: Measures) -> list[dict[str, Any]]:
    """The objects of the one image that `document` holds; `objects` are their places in `measures`."""
    return [
        {
            "id": number,
            "label": label,
            "score": None if math.isnan(score) else score,
            "area_px": _rounded(area),
            "centroid": None if math.isnan(centre[0]) else [round(value, 3) for value in centre],
            "bbox": box,
            "contour": ring,
        }
        for number, label, score, area, centre, box, ring in zip(
            measures.ids[objects].tolist(),
            document.labels,
            document.scores.tolist(),
            measures.areas[objects].tolist(),
            measures.centroids[objects].tolist(),
            measures.boxes[objects].tolist(),
            plain_rings(document),
            strict=True,
        )
    ]
