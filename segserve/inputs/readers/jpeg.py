"""JPEG: 8-bit grey or colour, turned upright as its EXIF orientation says."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from segserve.inputs.base import (
    Array,
    File,
    Plane,
    Series,
    Unusable,
    check_size,
    exif_orientation,
    upright,
    upright_shape,
)

_FRAME = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # SOF0 … SOF15, without DHT, JPG, DAC
_END = b"\xff\xd9"


@dataclass(frozen=True, slots=True)
class _Head:
    shape: tuple[int, int]
    bits: int
    samples: int
    orientation: int
    scan: int  # offset of the compressed pixels


def _head(stream: BinaryIO) -> _Head:
    """Walk over the markers up to the first scan."""
    position, orientation, frame = 2, 1, None
    while True:
        stream.seek(position)
        start = stream.read(4)
        if len(start) < 4:
            raise Unusable("image-truncated", "is truncated: the JPEG ends in its header", "Copy or export it again.")
        mark, marker, length = struct.unpack(">BBH", start)
        if mark != 0xFF or (length < 2 and marker != 0xFF):
            raise Unusable("image-unreadable", "is a damaged JPEG")
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker in _FRAME:
            frame = struct.unpack(">BHHB", stream.read(6))
        elif marker == 0xE1:
            body = stream.read(length - 2)
            if body.startswith(b"Exif\0\0"):
                orientation = exif_orientation(body[6:])
        elif marker == 0xDA:
            break
        position += 2 + length
    if frame is None:
        raise Unusable("image-unreadable", "is a damaged JPEG: its size comes after its pixels")
    bits, rows, columns, samples = frame
    return _Head((rows, columns), bits, samples, orientation, position)


def series(file: File) -> tuple[Series, ...]:
    """One series from the markers; makes sure that the end of the file is there."""
    with Path(file.path).open("rb") as stream:
        head = _head(stream)
        stream.seek(max(head.scan, stream.seek(0, 2) - 65536))
        if _END not in stream.read():
            raise Unusable("image-truncated", "is truncated: the JPEG ends in the middle", "Copy or export it again.")
    if head.bits != 8 or head.samples not in (1, 3):
        kind = "CMYK" if head.samples == 4 else f"{head.bits}-bit, {head.samples} components"
        raise Unusable("image-unreadable", f"is a JPEG of a kind that is not supported ({kind})", "Convert it to TIFF.")
    check_size(head.shape, "uint8", head.samples)
    return (
        Series(
            shape=upright_shape(head.shape, head.orientation),
            dtype="uint8",
            samples=head.samples,
            channel_names=("R", "G", "B") if head.samples == 3 else (),
            orientation=head.orientation,
        ),
    )


@dataclass(frozen=True, slots=True)
class _Jpeg:
    pixels: Array

    def read(self, series: int, plane: Plane) -> Array:
        return self.pixels


@contextmanager
def open(path: str) -> Iterator[_Jpeg]:
    """Decode, upright."""
    import imagecodecs

    with Path(path).open("rb") as stream:
        orientation = _head(stream).orientation
    yield _Jpeg(upright(imagecodecs.jpeg8_decode(Path(path).read_bytes()), orientation))
