"""What all importers share: where foreign objects go, how they become pixels and polygons, and what an importer is.

A foreign object is read as the set of pixels whose centres lie in it, and traced again: what a polygon of format 0.2
means is its pixels. So a hole becomes a keyhole ring, and an object in several parts several polygons.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from segserve import sheets
from segserve.errors import UsageError, did_you_mean
from segserve.findings import Finding, Place, Severity
from segserve.format import Document
from segserve.format.document import COORDINATE_LIMIT, Builder
from segserve.model import StagedImage
from segserve.sheets import Sheet

LABEL = "Cell"
SIZE_LIMIT = 4 << 30
SHOWN = 40
# What programs and people put behind the name of an image when they save its objects.
_ENDINGS = re.compile(
    r"([-_. ](rois?et|rois|masks?|cp|seg|labels?|lbl|objects|annotations?|shapes|qupath|ome|geojson|cellpose))+$",
    re.IGNORECASE,
)
_UPLOAD = re.compile(r"^[0-9a-f]{8}-")  # what Label Studio puts in front of an uploaded file's name


class Broken(Exception):
    """A file is not what it should be. `place` is a JSON path, an element, an entry of an archive, or empty."""

    def __init__(self, message: str, place: str = "") -> None:
        super().__init__(message)
        self.message, self.place = message, place


@dataclass(frozen=True, slots=True)
class Imported:
    """The document, one list of objects per image, and what could not be taken over."""

    document: Document
    findings: tuple[Finding, ...]


class Importer(Protocol):
    """What every module of this package offers."""

    def read(self, path: Path, target: Target) -> None:
        """Add what one file holds to the target.

        Raises:
            Broken: the file is not of this kind, damaged, or belongs to no image.
        """


@dataclass
class Target:
    """Gathers objects for images. `label` is the class of objects that have none."""

    images: Sequence[StagedImage]
    label: str = LABEL
    findings: list[Finding] = field(default_factory=list)
    path: Path = Path()  # of the file that is read now

    def __post_init__(self) -> None:
        self.sheets = sheets.group(self.images)
        self._objects: list[list[tuple[npt.NDArray[np.float64], str, float]]] = [[] for _ in self.images]
        self._planes = _plane_names(self.images, self.sheets)

    # --- which image is meant

    def sheet(self, *names: str) -> Sheet:
        """The source image that a file belongs to, by its name or one that stands in it."""
        for name in names:
            found = [sheet for sheet in self.sheets if _sheet_names(sheet) & _spellings(name)]
            if len(found) == 1:
                return found[0]
        if len(self.sheets) == 1:
            return self.sheets[0]
        known = did_you_mean(names[0] if names else "", [sheet.name for sheet in self.sheets])
        raise Broken(f"It cannot be told which image it belongs to. Name it like the image. {known}")

    def plane(self, name: str, place: str, shape: tuple[int, int] | None = None) -> int:
        """The number of the image with that file name; `shape` is (rows, columns) as the file has them."""
        found = self._planes.get(PurePath(name.replace("\\", "/")).name.casefold(), [])
        if not found:
            found = self._planes.get(_UPLOAD.sub("", PurePath(name).name.casefold()), [])
        if len(found) != 1:
            which = "several images have" if found else "no image has"
            known = did_you_mean(PurePath(name).name, list(self._planes)[:1000])
            raise Broken(f"{which[0].upper()}{which[1:]} the name '{name[:80]}'. {known}", place)
        if shape is not None and shape != self.images[found[0]].shape:
            rows, columns = self.images[found[0]].shape
            raise Broken(
                f"'{name[:80]}' is {shape[1]} × {shape[0]} pixels there, the image is {columns} × {rows}.", place
            )
        return found[0]

    def position(self, sheet: Sheet, at: Mapping[str, int | None], place: str) -> int:
        """The number of the image of a sheet at an axis position (T, Z, C from 0; None or absent: not said)."""
        fitting = [
            index
            for index, image in zip(sheet.indices, sheet.planes, strict=True)
            if all(at.get(axis) in (None, own) for axis, own in zip(sheet.axes, sheet.place(image), strict=True))
        ]
        if len(fitting) != 1:
            said = ", ".join(f"{axis} {value}" for axis, value in at.items() if value is not None) or "no position"
            which = "Several planes fit" if fitting else "No plane of the images fits"
            raise Broken(f"{which} ({said}, counted from 0).", place)
        return fitting[0]

    # --- objects

    def add_mask(
        self,
        index: int,
        mask: npt.NDArray[Any],
        corner: tuple[int, int] = (0, 0),
        label: str = "",
        score: float | None = None,
    ) -> int:
        """Add what a mask of an image holds: one polygon per part of each label; `corner` is the mask's (x, y).

        Returns:
            How many polygons that are.
        """
        from segserve_sdk import contours

        found = contours.polygons(mask)
        value = math.nan if score is None else score
        own = self._objects[index]
        own.extend((ring + corner, label or self.label, value) for _, ring in found)
        return len(found)

    def add_polygons(
        self,
        index: int,
        polygons: Iterable[Sequence[npt.NDArray[np.float64]]],
        label: str = "",
        score: float | None = None,
        place: str = "",
    ) -> None:
        """Add an object given as polygons in corner coordinates, each of rings (n, 2) that are filled even-odd."""
        rings = [[ring - 0.5 for ring in polygon] for polygon in polygons]
        points = np.concatenate([ring for polygon in rings for ring in polygon] or [np.empty((0, 2))])
        if not np.isfinite(points).all() or (np.abs(points) > COORDINATE_LIMIT).any():
            raise Broken("A coordinate is no finite number, or out of range.", place)
        mask, corner = self._fill(index, rings, points)
        if not mask.any():
            self.note("import-no-pixels", "The object covers no pixel of its image and is left out.", place)
            return
        self.add_mask(index, mask, corner, label, score)

    def _fill(
        self, index: int, polygons: list[list[npt.NDArray[np.float64]]], points: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.bool_], tuple[int, int]]:
        from segserve_sdk import contours

        rows, columns = self.images[index].shape
        empty = np.zeros((0, 0), bool), (0, 0)
        if not len(points):
            return empty
        low = np.maximum(np.ceil(points.min(axis=0)), 0)
        high = np.minimum(np.floor(points.max(axis=0)), (columns - 1, rows - 1))
        width, height = (int(size) for size in np.maximum(high - low + 1, 0))
        if not width or not height:
            return empty
        result = np.zeros((height, width), bool)
        for polygon in polygons:
            filled = np.zeros((height, width), bool)
            for ring in polygon:
                filled ^= contours.mask([(1, ring - low)], (height, width)) > 0
            result |= filled
        return result, (int(low[0]), int(low[1]))

    def note(self, rule: str, message: str, place: str = "", *, fix: str = "") -> None:
        """Say that something is not taken over."""
        where = Place(path=str(self.path), json_path=place)
        self.findings.append(Finding(rule, Severity.WARNING, message, where, fix))

    def build(self, model: str) -> Document:
        """The document of everything added."""
        builder = Builder()
        for objects in self._objects:
            rings = [ring.tolist() for ring, _, _ in objects]
            builder.add_image(rings, [label for _, label, _ in objects], [score for _, _, score in objects])
        return builder.build(model, "0.2")


# ------------------------------------------------------------------------------------------------------- helpers


def read_bytes(path: Path, limit: int = SIZE_LIMIT) -> bytes:
    """A file of bounded size."""
    try:
        size = path.stat().st_size
        if size > limit:
            raise Broken(f"It has {size / 1e9:.1f} GB; more than {limit / 1e9:.1f} GB are not read.")
        return path.read_bytes()
    except OSError as error:
        raise Broken(f"It cannot be read: {error.strerror}.") from error


def read_head(path: Path, count: int) -> bytes:
    """The first bytes of a file."""
    try:
        with path.open("rb") as stream:
            return stream.read(count)
    except OSError as error:
        raise Broken(f"It cannot be read: {error.strerror}.") from error


def read_json(path: Path) -> Any:
    """Strict JSON: no NaN, no repeated keys."""
    try:
        return json.loads(read_bytes(path), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Broken(f"It is not JSON: {error}.") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key '{twice[:SHOWN]}' stands twice in one object")
    return found


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


def typed(value: Any, kind: type | tuple[type, ...], place: str) -> Any:
    """The value, if it has the type."""
    if not isinstance(value, kind) or (isinstance(value, bool) and bool not in _kinds(kind)):
        names = "a number" if kind == NUMBER else " or ".join(_NAMES[one] for one in _kinds(kind))
        raise Broken(f"{names[0].upper()}{names[1:]} is expected.", place)
    return value


_NAMES = {dict: "an object", list: "an array", str: "a string", int: "a whole number", float: "a number"}
NUMBER = (int, float)


def _kinds(kind: type | tuple[type, ...]) -> tuple[type, ...]:
    return kind if isinstance(kind, tuple) else (kind,)


def member(value: Any, key: str, kind: type | tuple[type, ...], place: str) -> Any:
    """A required member of an object."""
    if key not in typed(value, dict, place):
        raise Broken(f"'{key}' is missing.", place)
    return typed(value[key], kind, f"{place}.{key}")


def points(value: Any, place: str) -> npt.NDArray[np.float64]:
    """(n, 2) of a list of pairs of numbers (a third number is left out)."""
    for index, point in enumerate(typed(value, list, place)):
        if len(typed(point, list, f"{place}[{index}]")) < 2:
            raise Broken("A point [x, y] is expected.", f"{place}[{index}]")
        for number in point[:2]:
            typed(number, NUMBER, f"{place}[{index}]")
    return _floats([point[:2] for point in value], place).reshape(-1, 2)


def flat_points(value: Any, place: str) -> npt.NDArray[np.float64]:
    """(n, 2) of a flat list x1, y1, x2, y2 …"""
    for index, number in enumerate(typed(value, list, place)):
        typed(number, NUMBER, f"{place}[{index}]")
    if len(value) % 2:
        raise Broken("An even number of coordinates is expected.", place)
    return _floats(value, place).reshape(-1, 2)


def _floats(value: list[Any], place: str) -> npt.NDArray[np.float64]:
    try:
        return np.array(value, np.float64)
    except OverflowError as error:
        raise Broken("A coordinate is out of range.", place) from error


def score_of(value: Any, place: str) -> float | None:
    """A score, if there is one."""
    if value is None:
        return None
    number = _floats([typed(value, NUMBER, place)], place)
    if not np.isfinite(number).all():
        raise Broken("A score is a finite number.", place)
    return float(number[0])


def _sheet_names(sheet: Sheet) -> set[str]:
    names = {sheet.name.casefold()}
    if sheet.alone:
        source = PurePath(sheet.source)
        names |= {source.name.casefold(), sheets.stem(source.name).casefold(), source.stem.casefold()}
    return names


def _spellings(name: str) -> set[str]:
    """The names that an image may have whose objects are in a file of that name."""
    found = set()
    short = PurePath(name.replace("\\", "/")).name.casefold()
    while True:
        found |= {short, _ENDINGS.sub("", short)}
        if "." not in short:
            return found
        short = short.rpartition(".")[0]


def _plane_names(images: Sequence[StagedImage], groups: Sequence[Sheet]) -> dict[str, list[int]]:
    names: dict[str, list[int]] = {}
    for sheet in groups:
        for index, image in zip(sheet.indices, sheet.planes, strict=True):
            own = {sheet.flat_name(image), f"{sheet.plane_name(image)}.png", image.name}
            if len(sheet.indices) == 1:
                own.add(PurePath(sheet.source).name)
            for name in {one.casefold() for one in own}:
                names.setdefault(name, []).append(index)
    return names


def failed(broken: Sequence[tuple[Path, Broken]], kind: str) -> UsageError:
    """The error for files that cannot be imported, all of them at once."""
    findings = [
        Finding("import-unreadable", Severity.ERROR, one.message, Place(path=str(path), json_path=one.place))
        for path, one in broken
    ]
    which = broken[0][0].name if len(broken) == 1 else f"{len(broken)} files"
    return UsageError(
        f"{which} cannot be imported as {kind}.", hint="docs/export.md says what is read.", findings=findings
    )
