"""ImageJ and Fiji: one `<name>-RoiSet.zip` per source image, for the ROI Manager.

Corner coordinates. An object in one piece is a traced ROI with integer coordinates; one with holes or several pieces
is a composite ROI. Layout of the files: ij/io/RoiDecoder.java and RoiEncoder.java of ImageJ.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from segserve.exporters.base import Exported, Object, Results
from segserve.exporters.outline import Polygon
from segserve.sheets import Sheet, safe_name

_VERSION = 228
_TRACED, _RECTANGLE = 8, 1
_MOVE, _LINE, _CLOSE = 0.0, 1.0, 4.0
_LARGEST = 2**15 - 1  # coordinates and counts are signed 16-bit numbers
_HEADER = struct.Struct(">4shBxhhhhh16xhi4s4shhBBhii")
_HEADER_2 = struct.Struct(">4xiiiii4shBBifiii12x")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same result gives the same bytes


def export(results: Results, folder: Path) -> Exported:
    """One zip per source image."""
    return Exported(tuple(_write(results, sheet, folder / f"{sheet.name}-RoiSet.zip") for sheet in results.sheets))


def _write(results: Results, sheet: Sheet, path: Path) -> Path:
    total = int(results.document.counts()[list(sheet.indices)].sum())
    width = max(4, len(str(total)))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, (index, item) in enumerate(_objects(results, sheet), 1):
            name = f"{number:0{width}d}-{safe_name(item.label, 40)}"
            entry = zipfile.ZipInfo(f"{name}.roi", _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, encode(item, name, _position(results, index)))
    return path


def _objects(results: Results, sheet: Sheet) -> Iterator[tuple[int, Object]]:
    return ((index, item) for index in sheet.indices for item in results.objects(index))


def _position(results: Results, index: int) -> tuple[int, int, int]:
    """Channel, slice, frame from 1; 0 = all."""
    image = results.images[index]
    c, z, t = (value + 1 if isinstance(value, int) else 0 for value in (image.c, image.z, image.t))
    return c, z, t


def encode(item: Object, name: str, position: tuple[int, int, int]) -> bytes:
    """One .roi file. `position` is channel, slice, frame from 1; 0 = all."""
    parts = item.polygons()
    height, width = item.pixels.shape
    box = (item.top, item.left, item.top + height, item.left + width)
    simple = len(parts) == 1 and len(parts[0]) == 1 and max(*box, len(parts[0][0])) <= _LARGEST
    body = _traced(parts[0], item) if simple else _composite(parts)
    edges = [edge if edge <= _LARGEST else edge % 65536 - 65536 * (edge % 65536 > _LARGEST) for edge in box]
    header = _HEADER.pack(
        b"Iout",
        _VERSION,
        _TRACED if simple else _RECTANGLE,
        *edges,
        len(parts[0][0]) if simple else 0,
        0,  # stroke width
        0 if simple else len(body) // 4,
        bytes(4),
        bytes(4),
        0,  # subtype
        0,  # options
        0,
        0,
        0,
        0,  # position in a simple stack: said by channel, slice and frame
        _HEADER.size + len(body),
    )
    return header + body + _second_header(item, name, position, _HEADER.size + len(body))


def _traced(polygon: Polygon, item: Object) -> bytes:
    local = polygon[0] - (item.left, item.top)
    return local.T.astype(">i2").tobytes()


def _composite(parts: list[Polygon]) -> bytes:
    segments: list[float] = []
    for polygon in parts:
        for ring in polygon:
            segments += (_MOVE, *ring[0].tolist())
            for point in ring[1:].tolist():
                segments += (_LINE, *point)
            segments.append(_CLOSE)
    return np.array(segments, ">f4").tobytes()


def _second_header(item: Object, name: str, position: tuple[int, int, int], begin: int) -> bytes:
    properties = [f"label: {' '.join(item.label.split())}", f"object_id: {item.number}"]
    if item.score is not None:
        properties.append(f"score: {item.score!r}")
    text = "".join(f"{line}\n" for line in properties)
    names, texts = name.encode("utf-16-be"), text.encode("utf-16-be")
    name_at = begin + _HEADER_2.size
    fields = (*position, name_at, len(names) // 2, bytes(4), 0, 0, 0, 0, 0.0, name_at + len(names), len(texts) // 2, 0)
    return _HEADER_2.pack(*fields) + names + texts
