"""BMP: what OpenCV reads of it, as grey or colour."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segserve.inputs.base import Array, File, Plane, Series, Unusable, check_size

_UNCOMPRESSED = 0


def series(file: File) -> tuple[Series, ...]:
    """One series from the header; a palette without colours makes it grey, as `cv2.imread` does."""
    with Path(file.path).open("rb") as stream:
        head = stream.read(54 + 1024 + 128)
        size = stream.seek(0, 2)
    if len(head) < 30:
        raise Unusable("image-truncated", "is truncated: the BMP ends in its header")
    offset, header_size = struct.unpack_from("<II", head, 10)
    if header_size not in (12, 40, 52, 56, 64, 108, 124):
        raise Unusable("image-foreign", "is of no kind that is known here")
    if header_size == 12:
        columns, rows, _, bits = struct.unpack_from("<HHHH", head, 18)
        compression = _UNCOMPRESSED
    else:
        columns, rows, _, bits, compression = struct.unpack_from("<iiHHI", head, 18)
    rows = abs(rows)  # negative: stored from the top
    check_size((rows, columns), "uint8", 3)
    if compression == _UNCOMPRESSED and size < offset + rows * ((columns * bits + 31) // 32 * 4):
        raise Unusable("image-truncated", "is truncated: the BMP holds fewer pixels than it declares")
    grey = bits <= 8 and _grey_palette(head[14 + header_size : offset], 3 if header_size == 12 else 4)
    if grey:
        return (Series((rows, columns), "uint8"),)
    return (Series((rows, columns), "uint8", samples=3, channel_names=("R", "G", "B")),)


def _grey_palette(palette: bytes, width: int) -> bool:
    colours = np.frombuffer(palette[: len(palette) // width * width], np.uint8).reshape(-1, width)
    return bool((colours[:, 0] == colours[:, 1]).all() and (colours[:, 1] == colours[:, 2]).all())


@dataclass(frozen=True, slots=True)
class _Bmp:
    pixels: Array

    def read(self, series: int, plane: Plane) -> Array:
        return self.pixels


@contextmanager
def open(path: str) -> Iterator[_Bmp]:
    """Decode."""
    import cv2

    try:
        pixels = cv2.imdecode(
            np.frombuffer(Path(path).read_bytes(), np.uint8), cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH
        )
    except cv2.error:
        pixels = None
    if pixels is None:
        raise Unusable("image-unreadable", "cannot be read: OpenCV finds it damaged or of an unknown variant of BMP")
    yield _Bmp(pixels if pixels.ndim == 2 else pixels[..., ::-1])
