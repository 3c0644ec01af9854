"""Label images: TIFF (OME, ImageJ, plain), PNG, NPY. Each value above 0 is an object; parts become polygons each."""

from __future__ import annotations

import logging
import math
import struct
import tokenize
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segserve.importers.base import Broken, Target, read_head
from segserve.sheets import Sheet

Array = npt.NDArray[Any]
STACK_BYTES = 8 << 30
# What tifffile, its codecs and numpy raise over damaged files. Only calls into them stand under it.
_DECODER_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    EOFError,
    LookupError,
    MemoryError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,
    zlib.error,
)


def read(path: Path, target: Target) -> None:
    """One label image, of one plane or of a whole stack."""
    sheet, number = _belongs(path, target)
    shape = sheet.shape
    stack, axes = _pixels(path, shape)
    if number is not None:
        if math.prod(stack.shape[:-2]) != 1:
            raise Broken(f"It has {math.prod(stack.shape[:-2])} planes ({axes}); the image has one.")
        target.add_mask(number, _whole(stack.reshape(shape), path.name))
        return
    order = _order(axes, stack.shape[:-2], sheet)
    for index, image in zip(sheet.indices, sheet.planes, strict=True):
        place = dict(zip(sheet.axes, sheet.place(image), strict=True))
        at = tuple(place.get(axis, 0) for axis in order)
        if any(position >= length for position, length in zip(at, stack.shape[:-2], strict=True)):
            raise Broken(f"It has {stack.shape[:-2]} planes ({axes}); there is none for {place}.")
        target.add_mask(index, _whole(stack[at], path.name))


def _belongs(path: Path, target: Target) -> tuple[Sheet, int | None]:
    """The source image, and the number of the image where the file is one plane of it."""
    try:
        sheet = target.sheet(path.name)
    except Broken:
        number = target.plane(f"{path.stem}.png", "")
        sheet = next(sheet for sheet in target.sheets if number in sheet.indices)
        return sheet, number
    return sheet, sheet.indices[0] if len(sheet.indices) == 1 and not sheet.axes else None


def _pixels(path: Path, shape: tuple[int, int]) -> tuple[Array, str]:
    """(…, rows, columns) and the names of its axes; the size is checked before anything is decoded."""
    head = read_head(path, 32)
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _tiff(path, shape)
    if head.startswith(b"\x93NUMPY"):
        return _npy(path, shape)
    if head.startswith(b"\x89PNG"):
        return _png(path, head, shape)
    raise Broken("It is neither TIFF nor PNG nor NPY.")


def _tiff(path: Path, shape: tuple[int, int]) -> tuple[Array, str]:
    import tifffile

    logging.getLogger("tifffile").addHandler(logging.NullHandler())  # else its warnings go to stderr
    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            axes, sizes = series.axes, tuple(series.shape)
            _check(sizes, shape, str(series.dtype))
            if math.prod(sizes) * series.dtype.itemsize > STACK_BYTES:
                raise Broken(f"It unpacks to more than {STACK_BYTES >> 30} GiB; import it in parts.")
            array = series.asarray()
            if array.shape != sizes:
                raise Broken("It is damaged: pixels are missing.")
            return array, axes
    except _DECODER_ERRORS as error:
        raise Broken(f"It is damaged: {error}.") from error


def _npy(path: Path, shape: tuple[int, int]) -> tuple[Array, str]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        _check(array.shape, shape, str(array.dtype))
        return np.asarray(array), "Q" * (array.ndim - 2) + "YX"
    except _DECODER_ERRORS as error:
        hint = " Read Cellpose's files with --from cellpose." if "pickle" in str(error).lower() else ""
        raise Broken(f"It is no array of numbers: {error}.{hint}") from error


def _png(path: Path, head: bytes, shape: tuple[int, int]) -> tuple[Array, str]:
    import cv2

    size = int.from_bytes(head[20:24], "big"), int.from_bytes(head[16:20], "big")
    _check(size, shape, "uint16")
    try:
        array = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise Broken("It is damaged.") from error
    if array is None or array.ndim != 2:
        raise Broken("It is a colour image, not a label image." if array is not None else "It is damaged.")
    return array, "YX"


def _check(sizes: tuple[int, ...], shape: tuple[int, int], dtype: str) -> None:
    if len(sizes) < 2 or tuple(sizes[-2:]) != shape:
        found = " × ".join(map(str, sizes))
        raise Broken(f"It has the shape {found}; the image has {shape[0]} rows and {shape[1]} columns.")
    if np.dtype(dtype).kind not in "iubf":
        raise Broken(f"Its pixels are {dtype}; labels are whole numbers.")


def _order(axes: str, lengths: tuple[int, ...], sheet: Sheet) -> list[str]:
    """Which of the sheet's axes each leading axis of the file is; '' for those of length one that it does not have."""
    leading = list(axes[: len(lengths)])
    named = [axis if axis in sheet.axes else "" for axis in leading]
    needed = {axis for axis, length in sheet.axes.items() if length > 1 or axis in named}
    if needed == set(named) - {""} and all(name or length == 1 for name, length in zip(named, lengths, strict=True)):
        return named
    long = [place for place, length in enumerate(lengths) if length > 1]
    wanted = [axis for axis, length in sheet.axes.items() if length > 1]
    if len(long) != len(wanted):
        raise Broken(f"Its axes are {axes} with lengths {lengths}; the image has {dict(sheet.axes)}.")
    order = [""] * len(lengths)
    for place, axis in zip(long, wanted, strict=True):
        order[place] = axis
    return order


def _whole(plane: Array, name: str) -> Array:
    if plane.dtype.kind == "f":  # ImageJ keeps 32-bit labels as floats
        whole = plane.astype(np.int64) if np.isfinite(plane).all() and np.abs(plane).max(initial=0) < 2**53 else None
        if whole is None or not np.array_equal(whole, plane):
            raise Broken(f"{name} has pixels that are no whole numbers.")
        plane = whole
    if plane.dtype.kind == "i" and plane.size and plane.min() < 0:
        raise Broken(f"{name} has negative pixels; background is 0.")
    return np.ascontiguousarray(plane)
