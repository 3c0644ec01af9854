"""NPY by the rule of shapes: (rows, columns), (n, rows, columns), (rows, columns, 3 or 4). Nothing is unpickled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segserve.inputs.base import Array, File, Plane, Series, Unusable, check_count, check_size

_COLOURS = ("R", "G", "B", "A")


def _header(path: str) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    with Path(path).open("rb") as stream:
        major, _ = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
        here, size = stream.tell(), stream.seek(0, 2)
    if dtype.hasobject:
        raise Unusable("image-foreign", "holds pickled Python objects, which are never opened")
    if dtype.kind not in "buif":
        raise Unusable("image-unreadable", f"holds values of type {dtype}", "Save numbers: integers or floats.")
    count = 1
    for length in shape:
        count *= length
    if size < here + count * dtype.itemsize:
        raise Unusable("image-truncated", "is truncated: the NPY holds fewer values than it declares")
    return shape, dtype


def series(file: File) -> tuple[Series, ...]:
    """One series; the first of three axes is recorded as t."""
    shape, dtype = _header(file.path)
    sizes: dict[str, int] = {}
    if len(shape) == 2:
        rows, columns, samples = *shape, 1
    elif len(shape) == 3 and shape[-1] in (3, 4):
        rows, columns, samples = shape
    elif len(shape) == 3:
        sizes["T"], rows, columns, samples = *shape, 1
    else:
        raise Unusable(
            "image-axes",
            f"has the shape {shape}, and nothing says what its axes mean",
            "NPY may be (rows, columns), (n, rows, columns) or (rows, columns, 3 or 4); "
            "save other stacks as OME-TIFF, with axes.",
        )
    check_size((rows, columns), dtype.name, samples)
    check_count(sizes.get("T", 1))
    colours = _COLOURS[:samples] if samples > 1 else ()
    alpha = samples == 4 and dtype == np.uint8
    return (Series((rows, columns), dtype.name, sizes, samples, alpha, channel_names=colours),)


@dataclass(frozen=True, slots=True)
class _Npy:
    array: Array
    stack: bool

    def read(self, series: int, plane: Plane) -> Array:
        return np.asarray(self.array[plane[0]] if self.stack else self.array)


@contextmanager
def open(path: str) -> Iterator[_Npy]:
    """Map the array into memory; planes are read when they are touched."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    yield _Npy(array, stack="T" in series(File(path))[0].sizes)
