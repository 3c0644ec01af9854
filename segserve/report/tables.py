"""objects.csv and results.json: every object with its measures."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from segserve.format import Document
from segserve.format.v0_2 import plain_rings
from segserve.model import StagedImage
from segserve.report.intensities import Intensities
from segserve.report.measures import Measures

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
    "perimeter_px",
    "circularity",
    "centroid_x",
    "centroid_y",
    "bbox_x",
    "bbox_y",
    "bbox_width",
    "bbox_height",
    "area_um2",
    "perimeter_um",
    "centroid_x_um",
    "centroid_y_um",
    "bbox_x_um",
    "bbox_y_um",
    "bbox_width_um",
    "bbox_height_um",
)
CONVENTIONS = {
    "coordinates": "x to the right, y down, in pixels; integers are pixel centres, the image's corner is (-0.5, -0.5)",
    "area_px": "number of pixels whose centre lies in the closed ring (integral rings), else the ring's own area",
    "perimeter_px": "length of the outline of the object's pixels in the image, holes included, by Crofton's formula",
    "circularity": "4 pi n / perimeter_px^2, n the number of these pixels; near 1 for discs, above 1 for a few pixels",
    "centroid": "x, y of the centre of area, as coordinates",
    "bbox": "x, y, width, height in whole pixels: first column and row (from 0), number of columns and rows",
    "id": "from 1, in the order of output.json, per image; objects.csv calls it object_id",
    "series, t, z, c": "from 0; null where the file has no such axis",
    "sizes": "lengths of the axes T, Z, C that the file has",
    "orientation": "EXIF, how the file is stored; width, height and coordinates are those of the upright picture",
    "intensities": "per channel of the original: mean and sum of the values of the object's pixels in the image",
}
EXACT = 2.0**53  # whole numbers below it are exact
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


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


def _rounded(value: float) -> float | int | None:
    """To a thousandth; None for what is not known."""
    if math.isnan(value):
        return None
    return int(value) if value == int(value) else round(value, 3)


def _significant(value: float) -> float | int | None:
    """Values of images may be of any size: nine digits, sums of whole numbers exactly."""
    if math.isnan(value):
        return None
    return int(value) if value.is_integer() and abs(value) < EXACT else float(f"{value:.9g}")


def write_csv(
    path: Path, document: Document, images: Sequence[StagedImage], measures: Measures, intensities: Intensities
) -> None:
    """One row per object (`COLUMNS`, then mean and sum per channel), UTF-8, comma-separated."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        channels = [f"{what}_{channel}" for channel in intensities.channels for what in ("mean", "integrated")]
        writer.writerow([*COLUMNS, *channels])
        for _, image, objects in per_image(document, images):
            writer.writerows(_rows(document, image, objects, measures, intensities))


def _rows(
    document: Document, image: StagedImage | None, objects: slice, measures: Measures, intensities: Intensities
) -> Iterator[tuple[object, ...]]:
    head: tuple[object, ...] = ("", "", "", "", "", "")
    if image is not None:
        axes = (_blank(image.series), _blank(image.t), _blank(image.z), _blank(image.c))
        head = (text_cell(image.source), *axes, image.name)
    bright = np.stack([intensities.means[objects], intensities.sums[objects]], axis=2)
    numbers = zip(
        measures.areas[objects].tolist(),
        measures.perimeters[objects].tolist(),
        measures.circularities[objects].tolist(),
        *measures.centroids[objects].T.tolist(),
        *measures.boxes[objects].T.tolist(),
        *_micrometres(image, objects, measures),
        strict=True,
    )
    for number, label, score, values, brightness in zip(
        measures.ids[objects].tolist(),
        document.labels[objects],
        document.scores[objects].tolist(),
        numbers,
        bright.reshape(len(bright), 2 * len(intensities.channels)).tolist(),
        strict=True,
    ):
        shown = "" if math.isnan(score) else score
        yield (*head, number, text_cell(label), shown, *map(_rounded, values), *map(_significant, brightness))


def _micrometres(image: StagedImage | None, objects: slice, measures: Measures) -> list[list[float]]:
    """The columns in micrometres, from the upper left corner of the image."""
    width, height = (image.pixel_size_um if image is not None else None) or (math.nan, math.nan)
    x, y = measures.centroids[objects].T
    box = measures.boxes[objects] * np.array((width, height, width, height))
    columns = (
        measures.areas[objects] * width * height,
        measures.perimeters_um[objects],
        (x + 0.5) * width,
        (y + 0.5) * height,
        *box.T,
    )
    return [column.tolist() for column in columns]


def write_results(
    path: Path,
    document: Document,
    images: Sequence[StagedImage],
    measures: Measures,
    intensities: Intensities,
    facts: Mapping[str, Any],
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
                + msgspec.json.encode(_image(document.image(index), image, objects, measures, intensities))
            )
        stream.write(b"\n]}\n")


def _image(
    document: Document, image: StagedImage | None, objects: slice, measures: Measures, intensities: Intensities
) -> dict[str, Any]:
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
            "sizes": image.sizes,
            "orientation": image.orientation,
        }
    return {**described, "objects": _objects(document, objects, measures, intensities)}


def _objects(document: Document, objects: slice, measures: Measures, intensities: Intensities) -> list[dict[str, Any]]:
    """The objects of the one image that `document` holds; `objects` are their places in `measures`."""
    return [
        {
            "id": number,
            "label": label,
            "score": None if math.isnan(score) else score,
            "area_px": _rounded(area),
            "perimeter_px": _rounded(perimeter),
            "circularity": _rounded(circularity),
            "centroid": None if math.isnan(centre[0]) else [round(value, 3) for value in centre],
            "bbox": box,
            "intensities": bright,
            "contour": ring,
        }
        for number, label, score, area, perimeter, circularity, centre, box, bright, ring in zip(
            measures.ids[objects].tolist(),
            document.labels,
            document.scores.tolist(),
            measures.areas[objects].tolist(),
            measures.perimeters[objects].tolist(),
            measures.circularities[objects].tolist(),
            measures.centroids[objects].tolist(),
            measures.boxes[objects].tolist(),
            _brightness(objects, intensities),
            plain_rings(document),
            strict=True,
        )
    ]


def _brightness(objects: slice, intensities: Intensities) -> list[dict[str, Any]]:
    """Per object: channel → mean and integrated intensity, for the channels that its image has."""
    return [
        {
            channel: {"mean": _significant(mean), "integrated": _significant(total)}
            for channel, mean, total in zip(intensities.channels, means, sums, strict=True)
            if not math.isnan(mean)
        }
        for means, sums in zip(intensities.means[objects].tolist(), intensities.sums[objects].tolist(), strict=True)
    ]
