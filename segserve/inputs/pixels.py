"""From stored planes to the pixels of one image: projection, choice of a sample, opacity."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce

import numpy as np

from segserve.inputs import kinds, selection
from segserve.inputs.base import Array, Planes, Series, Unusable
from segserve.inputs.selection import Request


def changed() -> Unusable:
    """The file is not what it was when it was planned."""
    return Unusable("image-changed", "has changed since it was looked at", "Wait until it is written, then run again.")


def samples(planes: Planes, request: Request, series: Series) -> Array:
    """The pixels of one image in the values of the source, projected: (rows, columns) or (rows, columns, samples)."""
    with kinds.decoding("decoded"):
        stored = (planes.read(request.series, plane) for plane in selection.planes(request, series))
        image = _projected(stored, request.z, series) if isinstance(request.z, str) else next(stored)
        if image.shape[:2] != series.shape or image.dtype.name != series.dtype:
            raise changed()
    return image


def image(planes: Planes, request: Request, series: Series) -> Array:
    """The same without opacity, and one sample if one is chosen."""
    image = samples(planes, request, series)
    if image.ndim == 2:
        return image
    if request.sample is not None:
        return image[..., request.sample]
    if series.alpha:
        _check_opaque(image[..., -1])
        image = image[..., :-1]
    return image[..., 0] if image.shape[-1] == 1 else image


def _projected(stored: Iterator[Array], how: str, series: Series) -> Array:
    """Greatest or mean value along z, in the type of the source (means of integers are rounded)."""
    dtype = np.dtype(series.dtype)
    if how == "max":
        return reduce(np.fmax if dtype.kind == "f" else np.maximum, stored)
    mean = reduce(np.add, (plane.astype(np.float64) for plane in stored)) / series.sizes["Z"]
    return (mean if dtype.kind == "f" else np.rint(mean)).astype(dtype)


def _check_opaque(alpha: Array) -> None:
    opaque = np.iinfo(alpha.dtype).max if alpha.dtype.kind in "iu" else 1
    if not (alpha == opaque).all():
        raise Unusable(
            "image-transparent",
            "has transparent pixels, whose colour means nothing",
            "Flatten it onto a background, or choose a channel: --channel R.",
        )
