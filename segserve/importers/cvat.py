"""CVAT: "CVAT for images 1.1" XML: polygons, masks and boxes, corner coordinates."""

from __future__ import annotations

import io
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import numpy.typing as npt

from segserve.importers.base import Broken, Target, read_bytes

_SHAPES = ("polygon", "mask", "box")
_OTHER = ("polyline", "points", "ellipse", "cuboid", "skeleton")


def read(path: Path, target: Target) -> None:
    """Shapes of all images that the file has; every one must be among ours."""
    data = read_bytes(path)
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data or b"\0" in data:  # (NUL bytes: UTF-16, which could hide them)
        raise Broken("It declares a document type, or is not UTF-8; that is not read.")
    try:
        for _, element in ET.iterparse(io.BytesIO(data)):  # noqa: S314 - without a document type, see above
            if element.tag == "track":
                raise Broken("It is 'CVAT for video'; export it as 'CVAT for images 1.1'.", "annotations/track")
            if element.tag == "image":
                _image(element, target)
                element.clear()
    except (ET.ParseError, RecursionError, LookupError, ValueError) as error:
        raise Broken(f"It is no intact XML: {error}.") from error


def _image(image: ET.Element, target: Target) -> None:
    place = f"image '{image.get('name', '')[:80]}'"
    shape = _whole(image, "height", place), _whole(image, "width", place)
    index = target.plane(image.get("name", ""), place, shape)
    for number, element in enumerate(image):
        where = f"{place}, {element.tag} {number + 1}"
        if element.tag in _OTHER:
            target.note("import-no-area", f"A {element.tag} is left out; polygons, masks and boxes are read.", where)
        elif element.tag in _SHAPES:
            _shape(element, where, index, target)


def _shape(element: ET.Element, place: str, index: int, target: Target) -> None:
    label = element.get("label", "")
    if element.tag == "mask":
        left, top = _whole(element, "left", place), _whole(element, "top", place)
        mask = _unrun(element, place)
        rows, columns = target.images[index].shape
        if left < 0 or top < 0 or top + mask.shape[0] > rows or left + mask.shape[1] > columns:
            raise Broken("The mask reaches out of the image.", place)
        if not target.add_mask(index, mask, (left, top), label):
            target.note("import-no-pixels", "The object covers no pixel of its image and is left out.", place)
    elif element.tag == "box":
        x0, y0, x1, y1 = (_number(element.get(key), place) for key in ("xtl", "ytl", "xbr", "ybr"))
        target.add_polygons(index, [[np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])]], label, None, place)
    else:
        target.add_polygons(index, [[_points(element.get("points", ""), place)]], label, None, place)


def _points(text: str, place: str) -> npt.NDArray[np.float64]:
    pairs = [pair.split(",") for pair in text.split(";") if pair.strip()]
    if any(len(pair) != 2 for pair in pairs):
        raise Broken("Points have the form x,y;x,y;….", place)
    return np.array([[_number(value, place) for value in pair] for pair in pairs], np.float64).reshape(-1, 2)


def _unrun(element: ET.Element, place: str) -> npt.NDArray[np.bool_]:
    """The mask of run lengths along the rows of its box, beginning with background."""
    width, height = _whole(element, "width", place), _whole(element, "height", place)
    runs = [_count(run, place) for run in element.get("rle", "").split(",")]
    if width < 1 or height < 1 or min(runs) < 0 or sum(runs) != width * height or width * height > 2**30:
        raise Broken("The run lengths do not add up to the size of the mask.", place)
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)


def _whole(element: ET.Element, key: str, place: str) -> int:
    text = element.get(key)
    if text is None:
        raise Broken(f"'{key}' is missing.", place)
    return _count(text, place)


def _count(text: str, place: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise Broken(f"'{text[:40]}' is no whole number.", place) from error


def _number(text: str | None, place: str) -> float:
    try:
        return float(text or "")
    except ValueError as error:
        raise Broken(f"'{(text or '')[:40]}' is no number.", place) from error
