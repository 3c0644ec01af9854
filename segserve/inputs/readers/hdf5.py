"""HDF5: every array of numbers that has the shape of an image or a stack is a series, named by its path in the file.

Shapes follow the rule of NPY. Links into other files, and arrays that are stored in other files, are not followed: a
file must not bring along what lies beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from segserve.inputs.base import (
    MAX_PLANE_BYTES,
    Array,
    File,
    Plane,
    Series,
    Unusable,
    check_count,
    check_size,
)

_COLOURS = ("R", "G", "B", "A")
MAX_ARRAYS = 1000
_MAX_DEPTH = 8


def series(file: File) -> tuple[Series, ...]:
    """One series per array, in the order of their paths; the first of three axes is recorded as t."""
    import h5py

    with h5py.File(file.path, "r") as opened:
        found = [_described(name, dataset) for name, dataset in _arrays(opened)]
    if not found:
        raise Unusable("image-axes", "is an HDF5 file without an array of (rows, columns) or (n, rows, columns)")
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Hdf5:
    arrays: Sequence[Any]
    stacks: Sequence[bool]

    def read(self, series: int, plane: Plane) -> Array:
        array = self.arrays[series]
        return np.asarray(array[plane[0]] if self.stacks[series] else array[()])


@contextmanager
def open(path: str) -> Iterator[_Hdf5]:
    """Open the file; chunks are read when a plane is."""
    import h5py

    with h5py.File(path, "r") as opened:
        arrays = [dataset for _, dataset in _arrays(opened)]
        yield _Hdf5(arrays, [_is_stack(array) for array in arrays])


def _arrays(group: Any, prefix: str = "", depth: int = 0) -> list[tuple[str, Any]]:
    """Path and dataset of everything in a group that has the shape of an image."""
    import h5py

    found: list[tuple[str, Any]] = []
    for name in sorted(group):
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):  # soft and external links name what is elsewhere
            continue
        item = group[name]
        if isinstance(item, h5py.Group) and depth < _MAX_DEPTH:
            found += _arrays(item, f"{prefix}{name}/", depth + 1)
        elif isinstance(item, h5py.Dataset) and item.ndim in (2, 3) and item.dtype.kind in "buif":
            found.append((f"{prefix}{name}", item))
        if len(found) > MAX_ARRAYS:
            raise Unusable("image-too-large", f"holds more than {MAX_ARRAYS} arrays", "Split the file.")
    return found


def _is_stack(dataset: Any) -> bool:
    return bool(dataset.ndim == 3 and dataset.shape[-1] not in (3, 4))


def _described(name: str, dataset: Any) -> Series:
    if dataset.is_virtual or dataset.external:
        raise Unusable(
            "image-foreign", f"has an array ({name}) that is stored in other files", "Copy it into one file."
        )
    if dataset.chunks and math.prod(dataset.chunks) * dataset.dtype.itemsize > MAX_PLANE_BYTES:
        raise Unusable("image-too-large", f"has chunks of more than {MAX_PLANE_BYTES / 2**30:.0f} GiB ({name})")
    sizes, samples = {}, 1
    if _is_stack(dataset):
        sizes["T"], rows, columns = dataset.shape
    elif dataset.ndim == 3:
        rows, columns, samples = dataset.shape
    else:
        rows, columns = dataset.shape
    check_size((rows, columns), dataset.dtype.name, samples)
    check_count(sizes.get("T", 1))
    colours = _COLOURS[:samples] if samples > 1 else ()
    alpha = samples == 4 and dataset.dtype == np.uint8
    return Series((rows, columns), dataset.dtype.name, sizes, samples, alpha, name=name, channel_names=colours)
