"""Leica LIF through `liffile`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from segserve.inputs.base import Array, File, Plane, Series, Unusable, check_count, check_size, micrometres
from segserve.inputs.readers.extra import library


def series(file: File) -> tuple[Series, ...]:
    """All images of the file."""
    with library("liffile", "LIF").LifFile(file.path) as lif:
        return tuple(_series(image) for image in lif.images)


@dataclass(frozen=True, slots=True)
class _Lif:
    images: Sequence[Any]
    described: Sequence[Series]

    def read(self, series: int, plane: Plane) -> Array:
        sizes = self.described[series].sizes
        index = {axis: place for axis, place in zip("TZC", plane, strict=True) if sizes.get(axis, 1) > 1}
        return np.asarray(self.images[series].frame(**index))


@contextmanager
def open(path: str) -> Iterator[_Lif]:
    """Open; frames are read one by one."""
    with library("liffile", "LIF").LifFile(path) as lif:
        images = list(lif.images)
        yield _Lif(images, [_series(image) for image in images])


def _series(image: Any) -> Series:
    sizes = dict(image.sizes)
    strange = {axis: length for axis, length in sizes.items() if axis not in "TZCYXS" and length > 1}
    if strange or not {"Y", "X"} <= set(sizes):
        raise Unusable(
            "image-axes",
            f"has an image {image.path!r} with axes other than T, Z, C, Y, X: {sizes}",
            "Export it as OME-TIFF with T, Z and C.",
        )
    shape, samples = (sizes["Y"], sizes["X"]), sizes.get("S", 1)
    check_size(shape, image.dtype.name, samples)
    kept = {axis: sizes[axis] for axis in "TZC" if axis in sizes}
    check_count(math.prod(kept.values()))
    return Series(
        shape=shape,
        dtype=image.dtype.name,
        sizes=kept,
        samples=samples,
        name=image.path,
        channel_names=("R", "G", "B") if samples == 3 else _channel_names(image, kept.get("C", 1)),
        pixel_size_um=_pixel_size(image),
    )


def _channel_names(image: Any, count: int) -> tuple[str, ...]:
    """The names of the look-up tables (`Green`): the only names that every LIF has."""
    described = image.xml_element.findall("./Data/Image/ImageDescription/Channels/ChannelDescription")
    names = tuple(channel.get("LUTName", "") for channel in described)
    return names if len(names) == count else ()


def _pixel_size(image: Any) -> tuple[float, float] | None:
    sizes = {}
    for dimension in image.xml_element.findall("./Data/Image/ImageDescription/Dimensions/DimensionDescription"):
        count, unit = int(dimension.get("NumberOfElements", 0)), micrometres(dimension.get("Unit", ""))
        if unit and count > 1:  # the length goes from the first centre to the last
            sizes[dimension.get("DimID")] = abs(float(dimension.get("Length", 0))) * unit / (count - 1)
    x, y = sizes.get("1", 0.0), sizes.get("2", 0.0)
    return (x, y) if x > 0 and y > 0 else None
