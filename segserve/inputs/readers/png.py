"""PNG. Most are staged byte for byte and never decoded here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from segserve.inputs.base import (
    Array,
    File,
    Plane,
    Series,
    Unusable,
    check_size,
    upright,
    upright_shape,
)
from segserve.inputs.png import Chunks, Header, chunks_before_pixels, header
from segserve.inputs.pngcopy import defect

_NAMES = {1: (), 2: (), 3: ("R", "G", "B"), 4: ("R", "G", "B", "A")}


def series(file: File) -> tuple[Series, ...]:
    """One series from the chunks before the pixels."""
    return _series(chunks_before_pixels(file.head, file.read, file.size))


@lru_cache(maxsize=64)
def _series(chunks: Chunks) -> tuple[Series, ...]:
    """The same object for the same header: of ten thousand frames, all but one are like another."""
    head = header(chunks)
    if head.frames > 1:
        raise Unusable(
            "image-unreadable", f"is an animation (APNG) of {head.frames} frames", "Export its frames as single images."
        )
    dtype = "uint16" if head.bits == 16 else "uint8"
    check_size(head.shape, dtype, head.samples)
    colours = head.samples - head.alpha
    return (
        Series(
            shape=upright_shape(head.shape, head.orientation),
            dtype=dtype,
            samples=head.samples,
            alpha=head.alpha,
            channel_names=_NAMES[head.samples],
            pixel_size_um=head.pixel_size_um,
            orientation=head.orientation,
            # Some readers see alpha and orientation, others do not: those files are made unambiguous.
            direct=not head.alpha and head.orientation == 1 and (colours == 1 or dtype == "uint8"),
        ),
    )


@dataclass(frozen=True, slots=True)
class _Png:
    pixels: Array

    def read(self, series: int, plane: Plane) -> Array:
        return self.pixels


@contextmanager
def open(path: str) -> Iterator[_Png]:
    """Decode, checksums verified, upright."""
    import imagecodecs

    data = Path(path).read_bytes()
    problem = defect(data)
    if problem:
        raise Unusable("image-truncated", problem)
    orientation = _header(data).orientation
    yield _Png(upright(imagecodecs.png_decode(data), orientation))


def _header(data: bytes) -> Header:
    return header(chunks_before_pixels(data, lambda offset, count: data[offset : offset + count], len(data)))
