"""PNG. Most are staged byte for byte and never decoded here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from segserve.inputs.base import (
    Array,
    Plane,
    Series,
    Unusable,
    check_size,
    read_bytes,
    upright,
    upright_shape,
)
from segserve.inputs.png import defect, header

_NAMES = {1: (), 2: (), 3: ("R", "G", "B"), 4: ("R", "G", "B", "A")}


def series(path: str) -> tuple[Series, ...]:
    """One series from the chunks before the pixels."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        head = header(lambda offset, count: os.pread(descriptor, count, offset), os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)
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
def open(path: str) -> Iterator[_Png]:  # noqa: A001 - the Protocol's word
    """Decode, checksums verified, upright."""
    import imagecodecs

    data = read_bytes(path)
    problem = defect(data)
    if problem:
        raise Unusable("image-truncated", problem)
    orientation = header(lambda offset, count: data[offset : offset + count], len(data)).orientation
    yield _Png(upright(imagecodecs.png_decode(data), orientation))
