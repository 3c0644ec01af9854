"""How values become grey levels. One scale per source file: value = offset + scale * grey."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from segserve.inputs.base import Array, Unusable

_BLOCK = 2**21  # values per step, so that the float64 intermediate stays small


@dataclass(frozen=True, slots=True)
class Scale:
    """value = offset + scale * grey, grey in `dtype` ('uint8' or 'uint16')."""

    dtype: str
    offset: float = 0.0
    scale: float = 1.0


# Types whose values all fit into a PNG: nothing to measure, nothing lost.
_FIXED = {
    "bool": Scale("uint8", 0.0, 1 / 255),
    "uint8": Scale("uint8"),
    "int8": Scale("uint8", -128.0),
    "uint16": Scale("uint16"),
    "int16": Scale("uint16", -32768.0),
}


def fixed(dtype: str, depth: int | None) -> Scale | None:
    """The scale of a type, or None when it depends on the values."""
    scale = _FIXED.get(dtype)
    return None if scale is None or (depth == 8 and scale.dtype != "uint8") else scale


def value_range(planes: Iterable[Array]) -> tuple[float, float]:
    """Least and greatest finite value over some planes (integers stay Python integers)."""
    low, high = [], []
    for plane in planes:
        values = plane
        if plane.dtype.kind == "f" and not np.isfinite(plane).all():
            values = plane[np.isfinite(plane)]
        if values.size:
            low.append(values.min().item())
            high.append(values.max().item())
    if not low:
        raise Unusable("image-no-values", "holds no finite value, only NaN and infinity")
    return min(low), max(high)


def fitted(low: float, high: float, dtype: str, depth: int | None) -> Scale:
    """The scale for values between `low` and `high`: exact for integers that fit, else stretched over all levels."""
    kind = "uint8" if depth == 8 else "uint16"
    levels = 255 if depth == 8 else 65535
    if np.dtype(dtype).kind in "iu":
        if low >= 0 and high <= levels:
            return Scale(kind)
        if high - low <= levels and abs(low) < 2**53:  # a recorded offset is a double
            return Scale(kind, float(low))
    span = float(high) - float(low)
    if not np.isfinite(span):
        raise Unusable("image-no-values", "spans more than a double can hold", "Remove its outliers first.")
    # The second guard: a span so small that a 65535th of it is 0.
    return Scale(kind, float(low), span / levels or 1.0)


def apply(plane: Array, scale: Scale) -> Array:
    """Grey levels of a plane. NaN becomes 0; infinities and what lies outside become the nearest level."""
    target = np.dtype(scale.dtype)
    grey: Array
    if plane.dtype == np.bool_:
        grey = plane.view(np.uint8) * np.uint8(255)
        return grey
    if plane.dtype.kind in "iu" and scale.scale == 1.0:
        if plane.dtype.newbyteorder("=") == target:
            return plane
        # Arithmetic in the plane's own type may wrap around; it comes out right modulo the size of the target.
        native = plane.astype(plane.dtype.newbyteorder("="), copy=False)
        grey = (native - native.dtype.type(int(scale.offset))).astype(target)
        return grey
    return _stretched(plane, scale, target)


def _stretched(plane: Array, scale: Scale, target: np.dtype[Any]) -> Array:
    grey = np.empty(plane.shape, target)
    rows = max(1, _BLOCK // max(1, plane[0].size))
    for start in range(0, plane.shape[0], rows):
        block = plane[start : start + rows].astype(np.float64)
        block -= scale.offset
        block /= scale.scale
        np.nan_to_num(block, copy=False, nan=0.0, posinf=np.inf, neginf=-np.inf)
        grey[start : start + rows] = np.rint(block, out=block).clip(0, np.iinfo(grey.dtype).max)
    return grey
