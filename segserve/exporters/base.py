"""What all exporters share: a result beside its images, grouped as the originals were, and what an exporter is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from segserve import sheets
from segserve.exporters import outline
from segserve.findings import Finding, Place, Severity
from segserve.format import Document, geometry
from segserve.model import StagedImage
from segserve.sheets import Sheet


@dataclass(frozen=True, slots=True)
class Object:
    """One object: its number in its image (from 1, as `object_id` in objects.csv), and its pixels.

    `pixels` is True where the object is, in a box with the upper left pixel (left, top). `score` is None if unknown.
    """

    number: int
    label: str
    score: float | None
    pixels: npt.NDArray[np.bool_]
    left: int
    top: int

    def polygons(self) -> list[outline.Polygon]:
        """The outline of its pixels in corner coordinates, see `outline.polygons`."""
        corner = np.array((self.left, self.top), np.int64)
        return [[ring + corner for ring in polygon] for polygon in outline.polygons(self.pixels)]


@dataclass(frozen=True)
class Results:
    """A result and the images that it belongs to, in the same order."""

    document: Document
    images: Sequence[StagedImage]

    def __post_init__(self) -> None:
        if self.document.n_images != len(self.images):
            raise ValueError("the document has not one result per image")

    @cached_property
    def sheets(self) -> tuple[Sheet, ...]:
        """The source images in the order of their first planes."""
        return sheets.group(self.images)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """All classes, sorted."""
        return tuple(sorted(set(self.document.labels)))

    @cached_property
    def _starts(self) -> list[int]:
        return [int(start) for start in self.document.starts()]

    @cached_property
    def _boxes(self) -> npt.NDArray[np.float64]:
        return geometry.boxes(self.document.coordinates, self.document.offsets)

    def objects(self, index: int, rows: tuple[int, int] | None = None) -> Iterator[Object]:
        """The objects of an image that cover at least one of its pixels; `rows` limits them to those that may touch a
        band of rows (first, behind the last). What lies outside the image is cut off.
        """
        first, last = self._starts[index], self._starts[index + 1]
        chosen = np.arange(first, last)
        if rows is not None:
            boxes = self._boxes[first:last]
            chosen = chosen[(boxes[:, 3] >= rows[0]) & (boxes[:, 1] < rows[1])]
        for number in chosen.tolist():
            mask, left, top = outline.pixels(self.document.ring(number), self.images[index].shape)
            if mask.any():
                score = float(self.document.scores[number])
                yield Object(
                    number - first + 1,
                    self.document.labels[number],
                    None if math.isnan(score) else score,
                    mask,
                    left,
                    top,
                )

    def invisible(self) -> list[Finding]:
        """A finding for every object that covers no pixel of its image and therefore is in no export."""
        document = self.document
        whole = geometry.integral(document.coordinates, document.offsets)
        shapes = np.array([image.shape[::-1] for image in self.images], np.float64).reshape(-1, 2)[document.image_index]
        inside = (self._boxes[:, :2] >= 0).all(axis=1) & (self._boxes[:, 2:] <= shapes - 1).all(axis=1)
        found = []
        for number in np.flatnonzero(~(whole & inside)).tolist():
            image = self.images[int(document.image_index[number])]
            ring = document.ring(number)
            if not len(ring) or not outline.pixels(ring, image.shape)[0].any():
                place = Place(json_path=document.json_path(number), image=image.source)
                message = "The object covers no pixel of its image and is not exported."
                found.append(Finding("export-no-pixels", Severity.WARNING, message, place))
        return found

    def turned(self) -> list[Finding]:
        """A note for every source that is stored in another orientation than it is shown."""
        return [
            Finding(
                "export-orientation",
                Severity.NOTE,
                f"The file is stored turned (EXIF orientation {sheet.planes[0].orientation}); coordinates are those of "
                "the upright picture.",
                Place(image=sheet.source),
                "For a program that shows it as it is stored, save it upright first.",
            )
            for sheet in self.sheets
            if sheet.planes[0].orientation != 1
        ]


@dataclass(frozen=True, slots=True)
class Exported:
    """The files (or folders, for OME-Zarr) that an exporter wrote, and what did not fit into the target."""

    paths: tuple[Path, ...]
    findings: tuple[Finding, ...] = ()


class Exporter(Protocol):
    """What every module of this package offers."""

    def export(self, results: Results, folder: Path) -> Exported:
        """Write the result below `folder`, which exists. Existing files of the same names are replaced."""


def colour(label: str) -> tuple[int, int, int]:
    """A colour (red, green, blue) for a class, always the same one for the same name."""
    import colorsys
    import zlib

    hue = zlib.crc32(label.encode()) / 2**32
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)
