"""What the parts of this room share: a series of planes, where it comes from, what a reader is, and the limits."""

from __future__ import annotations

import os
import struct
import tokenize
import zlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from segserve.findings import Finding, Place, Severity

Array = NDArray[Any]
Plane = tuple[int, int, int]  # 0-based (t, z, c); 0 where the axis is absent

# `cv2.imread`, which most executors use, refuses more than 2**30 pixels or 2**20 in one direction.
MAX_PIXELS = 2**30
MAX_SIDE = 2**20
MAX_PLANE_BYTES = 2**31  # one decoded plane, in its own type
MAX_IMAGES = 1_000_000  # of one call; also the most planes that we believe one file to hold

# Everything that decoders raise when they are fed broken or hostile bytes. Only calls into a decoder stand under it.
DECODER_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    EOFError,
    LookupError,
    NameError,  # nd2 uses a variable that it has not set
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,  # xml.etree's ParseError
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,  # numpy tokenizes the headers of NPY files
    zlib.error,
)


class Unusable(Exception):
    """One input cannot be used. Inside this room only: `plan` and `stage` turn all of them into one error."""

    def __init__(self, rule: str, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.rule, self.message, self.fix = rule, message, fix

    def finding(self, given: str) -> Finding:
        """The finding about the input that the user knows as `given`."""
        return Finding(self.rule, Severity.ERROR, self.message, Place(path=given), self.fix)


@dataclass(frozen=True, slots=True)
class Series:
    """One image of up to five dimensions in a file, as its metadata tells it.

    `sizes` has the axes T, Z, C that the file declares (absent axes are absent, not 1). `shape` is (rows, columns) of a
    plane in the orientation in which it is read. A plane has `samples` interleaved values per pixel; the last one is
    opacity when `alpha`. `channel_names` belong to axis C, or to the samples when these are channels; '' = no name.
    `pixel_size_um` is (x, y) in micrometres per pixel.
    """

    shape: tuple[int, int]
    dtype: str
    sizes: Mapping[str, int] = field(default_factory=dict)
    samples: int = 1
    alpha: bool = False
    name: str = ""
    channel_names: tuple[str, ...] = ()
    pixel_size_um: tuple[float, float] | None = None
    orientation: int = 1  # EXIF; has been applied to `shape` and is applied to every plane
    white: int | None = None  # grey levels are stored inverted: what is read is `white - stored`
    direct: bool = False  # a PNG that can be staged byte for byte
    planes: frozenset[Plane] | None = None  # the only ones that this file holds (None = all)

    @property
    def rgb(self) -> bool:
        """8-bit colour, which needs no choice of a channel."""
        return self.samples - self.alpha == 3 and self.dtype == "uint8"

    @property
    def channels(self) -> int:
        """How many channels there are to choose from; 1 for colour."""
        return self.sizes.get("C", 1) * (1 if self.rgb else self.samples - self.alpha)


@dataclass(frozen=True, slots=True)
class Source:
    """One file (or OME-Zarr folder): absolute `path`, the name under which the user gave it, what is in it.

    `modified`: when it was last written, in nanoseconds since the epoch.
    """

    path: str
    given: str
    kind: str
    series: tuple[Series, ...]
    bytes: int = 0
    modified: int = 0


class Planes(Protocol):
    """An open file."""

    def read(self, series: int, plane: Plane) -> Array:
        """One full-resolution plane: (rows, columns) or (rows, columns, samples), in the order R, G, B, A."""


class File(NamedTuple):
    """A file (or OME-Zarr folder) that is looked at; a folder has no head and no descriptor."""

    path: str
    size: int = 0
    head: bytes = b""
    descriptor: int = -1

    def read(self, offset: int, count: int) -> bytes:
        """Bytes of the file, fewer at its end."""
        return os.pread(self.descriptor, count, offset)


class Reader(Protocol):
    """What each module in `readers/` offers. Both functions may raise `Unusable` or one of `DECODER_ERRORS`."""

    def series(self, file: File) -> tuple[Series, ...]:
        """Structure, from headers and metadata only."""

    def open(self, path: str) -> AbstractContextManager[Planes]:
        """Open for reading planes; one thread at a time."""


def check_size(shape: tuple[int, int], dtype: str, samples: int = 1) -> None:
    """Refuse empty images and decompression bombs by what their headers declare."""
    rows, columns = shape
    if rows < 1 or columns < 1:
        raise Unusable("image-empty", f"has {columns} × {rows} pixels")
    size = rows * columns * samples * np.dtype(dtype).itemsize
    if rows * columns > MAX_PIXELS or max(rows, columns) > MAX_SIDE or size > MAX_PLANE_BYTES:
        raise Unusable(
            "image-too-large",
            f"declares {columns} × {rows} pixels ({size / 2**30:.1f} GiB per plane); the limit is "
            f"{MAX_PIXELS} pixels, {MAX_SIDE} in one direction, {MAX_PLANE_BYTES / 2**30:.0f} GiB",
            "Cut it into tiles, or reduce it, first.",
        )


def check_count(planes: int) -> None:
    """Refuse files that claim absurdly many planes, before anything is allocated for them."""
    if not 0 < planes <= MAX_IMAGES:
        raise Unusable("image-too-large", f"declares {planes} planes; the limit is {MAX_IMAGES}")


# Resolutions that programs write when they know nothing: screens and printers, not microscopes.
_PRINT_RESOLUTIONS = (1, 72, 96, 100, 120, 144, 150, 180, 200, 240, 300, 350, 360, 400, 600, 1200, 2400)


def believable(x_um: float, y_um: float) -> tuple[float, float] | None:
    """A pixel size out of a resolution field, or None for nonsense and for defaults of screens and printers."""
    if not (0 < x_um < 1e6 and 0 < y_um < 1e6):
        return None
    dots_per_inch = 25400 / x_um
    if any(abs(dots_per_inch - known) < 0.01 * known for known in _PRINT_RESOLUTIONS):
        return None
    return x_um, y_um


_MICROMETRES = {
    **dict.fromkeys(("m", "metre", "meter"), 1e6),
    **dict.fromkeys(("dm", "decimetre", "decimeter"), 1e5),
    **dict.fromkeys(("cm", "centimetre", "centimeter"), 1e4),
    **dict.fromkeys(("mm", "millimetre", "millimeter"), 1e3),
    **dict.fromkeys(("µm", "μm", "um", "\\u00b5m", "micron", "microns", "micrometre", "micrometer"), 1.0),
    **dict.fromkeys(("nm", "nanometre", "nanometer"), 1e-3),
    **dict.fromkeys(("pm", "picometre", "picometer"), 1e-6),
    **dict.fromkeys(("å", "Å", "angstrom"), 1e-4),
    **dict.fromkeys(("in", "inch", "inches"), 25400.0),
}


def micrometres(unit: str) -> float | None:
    """How many micrometres one `unit` is; None for units that are no length we know (`pixel`)."""
    unit = unit.strip()
    return _MICROMETRES.get(unit, _MICROMETRES.get(unit.lower()))


def upright(plane: Array, orientation: int) -> Array:
    """Undo an EXIF orientation (1 to 8), so that the picture stands as viewers and `cv2.imread` show it."""
    if orientation in (5, 6, 7, 8):
        plane = plane.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        plane = plane[::-1]
    if orientation in (2, 3, 6, 7):
        plane = plane[:, ::-1]
    return plane


def upright_shape(shape: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(rows, columns) after `upright`."""
    return (shape[1], shape[0]) if orientation in (5, 6, 7, 8) else shape


def exif_orientation(tiff: bytes) -> int:
    """The Orientation (tag 274) of an EXIF block that starts with `II` or `MM`; 1 when it says nothing sensible."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 14:
        return 1
    (start,) = struct.unpack_from(f"{order}I", tiff, 4)
    if start + 2 > len(tiff):
        return 1
    (count,) = struct.unpack_from(f"{order}H", tiff, start)
    for index in range(min(count, (len(tiff) - start - 2) // 12)):
        tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, start + 2 + 12 * index)
        if tag == 274 and kind == 3:
            return value if 1 <= value <= 8 else 1
    return 1
