"""ImageJ and Fiji: a RoiSet.zip or one .roi file. Areas only: polygon, freehand, traced, rectangle, oval, composite."""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from segserve.importers.base import Broken, Target, read_bytes, score_of
from segserve.sheets import Sheet

ENTRIES = 1_000_000
ENTRY_BYTES = 64 << 20
TOTAL_BYTES = 2 << 30
_NUMBERED = re.compile(r"^\d+-(?P<label>.*[^\d-].*)$")  # 0001-Cell; ImageJ's own names are numbers only
# What roifile and numpy raise over damaged files.
_DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)
_AREAS = ("POLYGON", "FREEHAND", "TRACED", "RECT", "OVAL")


def read(path: Path, target: Target) -> None:
    """The ROIs of one image, which the file's name tells."""
    sheet = target.sheet(path.name)
    for name, data in _files(path):
        _add(data, name, sheet, target)


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    data = read_bytes(path, TOTAL_BYTES)
    if data.startswith(b"Iout"):
        yield path.name, data
        return
    total = 0
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename.lower().endswith(".roi")]
            if len(entries) > ENTRIES:
                raise Broken(f"It has more than {ENTRIES} ROIs.")
            for entry in entries:
                total += entry.file_size
                if entry.file_size > ENTRY_BYTES or total > TOTAL_BYTES:
                    raise Broken("It is too large when it is unpacked.", entry.filename[:80])
                with archive.open(entry) as stream:
                    yield entry.filename, stream.read(ENTRY_BYTES)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise Broken(f"It is no intact ZIP archive of ROIs: {error}.") from error


def _add(data: bytes, name: str, sheet: Sheet, target: Target) -> None:
    from roifile import ImagejRoi

    place = name[:80]
    try:
        roi = ImagejRoi.frombytes(data)
        kind, composite = roi.roitype.name, bool(roi.composite)
        rings = [np.asarray(ring, np.float64) for ring in roi.coordinates(multi=True)]
    except _DAMAGE as error:
        raise Broken(f"It is no intact ROI: {error}.", place) from error
    if not composite and kind not in _AREAS:
        target.note("import-no-area", f"A ROI of type {kind.lower()} encloses nothing and is left out.", place)
        return
    if any(ring.ndim != 2 or ring.shape[1] != 2 for ring in rings):
        raise Broken("It is no intact ROI.", place)
    index = target.position(sheet, _position(roi, sheet), place)
    properties = _properties(roi.props or "")
    target.add_polygons(index, [rings], _label(roi, name, properties), _score(properties, place), place)


def _position(roi: Any, sheet: Sheet) -> dict[str, int | None]:
    """From 0; None where the ROI says 0, which means all."""
    said = {"C": int(roi.c_position), "Z": int(roi.z_position), "T": int(roi.t_position)}
    if not any(said.values()) and roi.position > 0 and len(sheet.axes) == 1:
        said[next(iter(sheet.axes))] = int(roi.position)  # a stack of one axis, whatever ImageJ calls it
    return {axis: value - 1 if value > 0 and axis in sheet.axes else None for axis, value in said.items()}


def _properties(text: str) -> dict[str, str]:
    pairs = (line.partition(": ") for line in text.splitlines())
    return {key: value for key, separator, value in pairs if separator}


def _label(roi: Any, name: str, properties: dict[str, str]) -> str:
    if properties.get("label"):
        return properties["label"]
    found = _NUMBERED.match(str(roi.name or Path(name).stem))
    return found["label"] if found else ""


def _score(properties: dict[str, str], place: str) -> float | None:
    try:
        return score_of(float(properties["score"]), place) if "score" in properties else None
    except ValueError as error:
        raise Broken("The property 'score' is no number.", place) from error
