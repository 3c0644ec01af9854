"""Cellpose: `<image>_seg.npy`. The file is a pickle, which can run any program when it is opened as usual.

Here the unpickler gets stand-ins for the few functions that a dictionary of arrays and numbers needs, and refuses every
other name. The stand-ins only keep what they are given; arrays are made from their bytes after that.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segserve.importers.base import Broken, Target, read_bytes

_MAGIC = b"\x93NUMPY"
_HEADER_LIMIT = 1 << 16
# What the unpickler raises over damaged programs.
_DAMAGE = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)
_PLAIN = re.compile(r"[iub][1248]")


class _Type:
    """What stands for numpy.dtype: keeps the name and the byte order."""

    def __init__(self, name: object = "", *_: object) -> None:
        self.name, self.order = name, "<"

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|", "="):
            self.order = str(state[1])

    def plain(self) -> np.dtype[Any]:
        """The type, if it is one of whole numbers."""
        if not isinstance(self.name, str) or not _PLAIN.fullmatch(self.name):
            raise Broken(f"The masks are of type {str(self.name)[:20]}, not whole numbers.", "masks")
        return np.dtype(self.name).newbyteorder(">" if self.order == ">" else "<")


class _Array:
    """What stands for an array: keeps shape, type and bytes."""

    def __init__(self, *_: object) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: object) -> None:
        self.state = state if isinstance(state, tuple) else ()

    def array(self) -> npt.NDArray[Any]:
        """The array, made from its bytes."""
        shape, kind, fortran, data = self.state[1:5] if len(self.state) == 5 else (None,) * 4
        sizes = shape if isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in shape) else None
        if sizes is None or not isinstance(kind, _Type) or not isinstance(data, bytes | bytearray):
            raise Broken("The masks are no array.", "masks")
        dtype = kind.plain()
        if math.prod(sizes) * dtype.itemsize != len(data):
            raise Broken("The masks are shorter or longer than they should be.", "masks")
        return np.frombuffer(data, dtype).reshape(sizes, order="F" if fortran else "C")


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _from_buffer(data: object = b"", kind: object = None, shape: object = (), order: object = "C") -> _Array:
    """What numpy ≥ 2 writes with pickle protocol 5."""
    array = _Array()
    kept = bytes(data) if isinstance(data, bytes | bytearray | memoryview | pickle.PickleBuffer) else data
    array.state = (1, shape, kind, order == "F", kept)
    return array


def _scalar(*_: object) -> None:
    return None  # diameters and the like, which are not read


def _encode(text: object = "", coding: object = "latin1") -> bytes:
    """What Python 3 writes for bytes with old pickle protocols."""
    if not isinstance(text, str) or coding != "latin1":
        raise Broken("It is no intact file of Cellpose.")
    return text.encode("latin1")


class _Nothing:
    """What stands for a class that is named but never called."""


_ALLOWED: dict[tuple[str, str], Any] = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    ("numpy", "ndarray"): _Nothing,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) not in _ALLOWED:
            raise Broken(f"It asks for {module[:60]}.{name[:60]}, which no file of Cellpose needs; it is not opened.")
        return _ALLOWED[module, name]


def read(path: Path, target: Target) -> None:
    """The masks of one image; the file's name tells which, or the name of the image that stands in it."""
    found = _contents(read_bytes(path))
    named = found.get("filename")
    sheet = target.sheet(path.name, *([named] if isinstance(named, str) else []))
    masks = found.get("masks")
    if not isinstance(masks, _Array):
        raise Broken("It has no masks.", "masks")
    array = masks.array()
    if array.shape[-2:] != sheet.shape or array.ndim not in (2, 3):
        rows, columns = sheet.shape
        sizes = " × ".join(map(str, array.shape))
        raise Broken(f"The masks have the shape {sizes}, the image has {rows} rows and {columns} columns.", "masks")
    planes = array.reshape(-1, *sheet.shape)
    if len(planes) != len(sheet.indices):
        raise Broken(f"The masks have {len(planes)} planes, of the image there are {len(sheet.indices)}.", "masks")
    for index, plane in zip(sheet.indices, planes, strict=True):
        if plane.dtype.kind == "i" and plane.min() < 0:
            raise Broken("The masks have negative values.", "masks")
        target.add_mask(index, plane.astype(plane.dtype.newbyteorder("=")))


def _contents(data: bytes) -> dict[Any, Any]:
    """The dictionary in the file; its arrays are stand-ins."""
    begin = _pickle_start(data)
    try:
        found = _Unpickler(io.BytesIO(data[begin:])).load()
    except _DAMAGE as error:
        raise Broken(f"It is no intact file of Cellpose: {type(error).__name__}.") from error
    if isinstance(found, _Array):  # the outer array of one object: its "bytes" are a list with the dictionary
        content = found.state[4] if len(found.state) == 5 else None
        found = content[0] if isinstance(content, list) and len(content) == 1 else None
    if not isinstance(found, dict):
        raise Broken("It holds no dictionary, as Cellpose's files do.")
    return found


def _pickle_start(data: bytes) -> int:
    if not data.startswith(_MAGIC) or len(data) < 12:
        raise Broken("It is no NPY file.")
    wide = data[6] > 1
    length = int.from_bytes(data[8 : 12 if wide else 10], "little")
    begin = (12 if wide else 10) + length
    header = data[12 if wide else 10 : begin]
    if length > _HEADER_LIMIT or b"'|O'" not in header:
        raise Broken("It holds a plain array; read label images with --from labels.")
    return begin
