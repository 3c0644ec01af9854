"""What all exporters share: a result beside its images, grouped as the originals were, and what an exporter is."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePath
from typing import Protocol

import numpy as np
import numpy.typing as npt

from segserve.errors import TooLarge
from segserve.exporters import outline
from segserve.findings import Finding, Place, Severity
from segserve.format import Document, geometry
from segserve.model import StagedImage

MAX_STACK_PLANES = 1_000_000
_UNSAFE = re.compile(r"[^\w.+-]+")


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


@dataclass(frozen=True, slots=True)
class Sheet:
    """One source image (one series of one file) and its planes that were segmented.

    `name` is unique and safe as the beginning of a file name. `indices` number the images of the result. `axes` are the
    axes of the planes with their lengths, in the order T, Z, C: those that the source has and that were told apart.
    `shape` is (rows, columns).
    """

    name: str
    source: str
    series: int | None
    indices: tuple[int, ...]
    shape: tuple[int, int]
    axes: Mapping[str, int]
    pixel_size_um: tuple[float, float] | None


@dataclass(frozen=True)
class Results:
    """A result and the images that it belongs to, in the same order.

    `sizes` has the lengths of the axes T, Z, C of a source, by (source, series), where the caller knows them. Without
    it a stack ends with its last segmented plane.
    """

    document: Document
    images: Sequence[StagedImage]
    sizes: Mapping[tuple[str, int | None], Mapping[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.document.n_images != len(self.images):
            raise ValueError("the document has not one result per image")

    @cached_property
    def sheets(self) -> tuple[Sheet, ...]:
        """The source images in the order of their first planes."""
        groups: dict[tuple[str, int | None], list[int]] = {}
        for index, image in enumerate(self.images):
            groups.setdefault((image.source, image.series), []).append(index)
        return tuple(
            self._sheet(key, indices, name)
            for (key, indices), name in zip(groups.items(), _unique_names(list(groups)), strict=True)
        )

    def _sheet(self, key: tuple[str, int | None], indices: list[int], name: str) -> Sheet:
        images = [self.images[index] for index in indices]
        if len({image.shape for image in images}) > 1:
            raise ValueError(f"the planes of {key[0]} differ in size")
        known = self.sizes.get(key, {})
        axes = {}
        for axis, places in (
            ("T", {image.t for image in images}),
            ("Z", {image.z for image in images}),
            ("C", {image.c for image in images}),
        ):
            numbers = [place for place in places if isinstance(place, int)]
            # One channel of several was segmented: its labels are an image of one channel.
            if numbers and (axis != "C" or len(numbers) > 1):
                axes[axis] = max(max(numbers) + 1, known.get(axis, 0))
        if math.prod(axes.values()) > MAX_STACK_PLANES:
            raise TooLarge(f"{key[0]} would become a stack of more than {MAX_STACK_PLANES} planes.")
        return Sheet(name, *key, tuple(indices), images[0].shape, axes, images[0].pixel_size_um)

    def place(self, sheet: Sheet, index: int) -> tuple[int, ...]:
        """The position of an image in the stack of its sheet, one number from 0 per axis of `sheet.axes`."""
        image = self.images[index]
        at = {"T": image.t, "Z": image.z, "C": image.c}
        return tuple(value if isinstance(value := at[axis], int) else 0 for axis in sheet.axes)

    def plane_name(self, sheet: Sheet, index: int) -> str:
        """A name for one plane, for programs that know two-dimensional images only: `cells_t004_z01`."""
        if len(sheet.indices) == 1:
            return sheet.name
        widths = [len(str(length - 1)) for length in sheet.axes.values()]
        places = zip(sheet.axes, self.place(sheet, index), widths, strict=True)
        return sheet.name + "".join(f"_{axis.lower()}{place:0{width}d}" for axis, place, width in places)

    def flat_name(self, sheet: Sheet, index: int) -> str:
        """A file name for one plane: the original's own name where that is one plane, else `plane_name` as PNG."""
        name = PurePath(sheet.source).name
        if len(sheet.indices) == 1 and not sheet.axes and self._name_counts[name.casefold()] == 1:
            return name
        return f"{self.plane_name(sheet, index)}.png"

    @cached_property
    def _name_counts(self) -> Counter[str]:
        return Counter(PurePath(sheet.source).name.casefold() for sheet in self.sheets)

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


@dataclass(frozen=True, slots=True)
class Exported:
    """The files (or folders, for OME-Zarr) that an exporter wrote, and what did not fit into the target."""

    paths: tuple[Path, ...]
    findings: tuple[Finding, ...] = ()


class Exporter(Protocol):
    """What every module of this package offers."""

    def export(self, results: Results, folder: Path) -> Exported:
        """Write the result below `folder`, which exists. Existing files of the same names are replaced."""


def safe_name(text: str, most: int = 80) -> str:
    """A text as part of a file name: letters, digits, `_ . + -`; never hidden, never empty."""
    return _UNSAFE.sub("_", text)[:most].strip("._ ") or "image"


def colour(label: str) -> tuple[int, int, int]:
    """A colour (red, green, blue) for a class, always the same one for the same name."""
    import colorsys
    import zlib

    hue = zlib.crc32(label.encode()) / 2**32
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def _unique_names(keys: Sequence[tuple[str, int | None]]) -> list[str]:
    """A name per source and series: its stem; with folder and suffix where two would be the same."""
    forms = [_forms(PurePath(source), series) for source, series in keys]
    names = [form[0] for form in forms]
    for level in range(1, len(forms[0]) if forms else 0):
        counts = Counter(name.casefold() for name in names)
        names = [form[level] if counts[name.casefold()] > 1 else name for name, form in zip(names, forms, strict=True)]
    taken: set[str] = set()
    for position, name in enumerate(names):
        unique, number = name, 1
        while unique.casefold() in taken:
            number += 1
            unique = f"{name}-{number}"
        taken.add(unique.casefold())
        names[position] = unique
    return names


def _forms(source: PurePath, series: int | None) -> tuple[str, ...]:
    end = "" if series is None else f"_s{series}"
    stem = re.sub(r"\.ome$", "", source.stem, flags=re.IGNORECASE)
    parents = "_".join(part for part in source.parts[-3:-1] if part != source.anchor)
    return tuple(
        safe_name(name)[-100:] + end
        for name in (stem, source.name, f"{source.parent.name}_{stem}", f"{parents}_{source.name}")
    )
