"""TIFF in all the shapes that tifffile reads: plain, multi-page, OME, ImageJ, LSM, slide scanners, BigTIFF.

Axes come from OME-XML, ImageJ's description or tifffile's series. Pages without any metadata are recorded as t.
Planes are staged as they are stored: ImageJ, QuPath and Bio-Formats do not apply TIFF's Orientation tag either.
"""

from __future__ import annotations

import logging
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from segserve.inputs.base import (
    MAX_IMAGES,
    Array,
    File,
    Plane,
    Series,
    Unusable,
    believable,
    check_count,
    check_size,
    micrometres,
)
from segserve.inputs.readers import ome

_Read = Callable[[Plane], Array]
_Index = Callable[[tuple[int | slice, ...]], Array]
_UNKNOWN_AXES = "QI"  # tifffile's letters for "other" and "sequence of images"
_AXIS_NAMES = {"E": "wavelength", "P": "position", "R": "region", "M": "mosaic", "A": "angle", "H": "lifetime"}
_JPEG = (6, 7, 33007, 34892)  # old and new JPEG and their variants
_BIG = 2**24  # bytes from which tifffile's own threads pay off


@dataclass(frozen=True, slots=True)
class _Part:
    series: Series
    read: _Read


def series(file: File) -> tuple[Series, ...]:
    """All series; levels of pyramids and thumbnails are none."""
    with _file(file.path) as tif:
        return tuple(part.series for part in _parts(tif, file.path))


@dataclass(frozen=True, slots=True)
class _Tiff:
    parts: Sequence[_Part]

    def read(self, series: int, plane: Plane) -> Array:
        return self.parts[series].read(plane)


@contextmanager
def open(path: str) -> Iterator[_Tiff]:
    """Open; pages are parsed when they are read."""
    with _file(path) as tif:
        yield _Tiff(_parts(tif, path))


@contextmanager
def _file(path: str) -> Iterator[Any]:
    import tifffile

    logging.getLogger("tifffile").addHandler(logging.NullHandler())  # else its warnings go to stderr
    # _multifile: no other file is opened because this one names it.
    with tifffile.TiffFile(path, _multifile=False) as tif:
        yield tif


def _check_chain(tif: Any) -> None:
    """Follow the chain of IFDs to its end. Where it breaks or turns in a circle, tifffile only logs and goes on."""
    handle, tiff = tif.filehandle, tif.tiff
    offset, seen = tif.pages.first.offset, set[int]()
    while offset:
        if offset in seen or len(seen) > MAX_IMAGES:
            raise Unusable("image-unreadable", "is damaged: its chain of pages turns in a circle")
        seen.add(offset)
        handle.seek(offset)
        head = handle.read(tiff.tagnosize)
        tags = struct.unpack(tiff.tagnoformat, head)[0] if len(head) == tiff.tagnosize else 0
        handle.seek(offset + tiff.tagnosize + tags * tiff.tagsize)
        after = handle.read(tiff.offsetsize)
        if not 0 < tags <= 4096 or len(after) < tiff.offsetsize:
            raise Unusable("image-truncated", f"is truncated: page {len(seen)} is missing", "Copy or export it again.")
        offset = struct.unpack(tiff.offsetformat, after)[0]


def _parts(tif: Any, path: str) -> list[_Part]:
    if not tif.is_ndpi:  # which abuses the offsets for files beyond 4 GB
        _check_chain(tif)
    if tif.is_ome and tif.ome_metadata:
        images = ome.parse(tif.ome_metadata, Path(path).name, len(tif.pages))
        if images:
            return [_ome_part(tif, image) for image in images]
    everything = [one for one in tif.series if one.keyframe is not None]
    if (tif.is_imagej or tif.is_shaped) and all(one.kind in ("generic", "uniform") for one in everything):
        raise Unusable(
            "image-truncated",
            "is truncated or damaged: it holds fewer planes than its description says",
            "Copy or export it again.",
        )
    full = [one for one in everything if not one.keyframe.is_reduced]
    return [_plain_part(tif, one) for one in full or everything]


# --- pages ---------------------------------------------------------------------------------------------------------


def _page(tif: Any, page: Any) -> Array:
    """Decode one page; short files are refused, not filled up with zeros."""
    _check_extent(tif, page)
    pixels: Array = page.asarray(maxworkers=None if page.nbytes >= _BIG else 1)
    return pixels


def _check_extent(tif: Any, page: Any) -> None:
    size = tif.filehandle.size
    end = max((start + count for start, count in zip(page.dataoffsets, page.databytecounts, strict=True)), default=0)
    if end > size or (not end and page.nbytes):
        raise Unusable(
            "image-truncated",
            f"is truncated: page {page.index} should end at byte {end}, the file has {size}",
            "Copy or export it again.",
        )


def _colour(page: Any) -> tuple[int, bool, tuple[str, ...]]:
    """(samples per pixel, the last is opacity, names of the samples)."""
    import tifffile

    samples = int(page.samplesperpixel)
    # JPEG-compressed YCbCr comes out of the decoder as RGB.
    decoded = page.photometric == tifffile.PHOTOMETRIC.YCBCR and page.compression in _JPEG
    letters = "RGB" if decoded or page.photometric == tifffile.PHOTOMETRIC.RGB else ""
    letters = "CMYK" if page.photometric == tifffile.PHOTOMETRIC.SEPARATED else letters
    extra = samples - (len(letters) or 1)
    alpha = extra == 1 and bool(page.extrasamples) and int(page.extrasamples[-1]) in (1, 2)
    alpha = alpha or (letters == "RGB" and samples == 4)
    names = (*letters, "A") if alpha and letters else tuple(letters)
    return samples, alpha, names if len(names) == samples else ()


def _white(page: Any) -> int | None:
    import tifffile

    if page.photometric != tifffile.PHOTOMETRIC.MINISWHITE or page.dtype is None or page.dtype.kind not in "bu":
        return None
    return int(2**page.bitspersample - 1)


def _inverted(plane: Array, white: int | None) -> Array:
    if white is None:
        return plane
    return ~plane if plane.dtype == np.bool_ else plane.dtype.type(white) - plane


def _samples_last(plane: Array, axes: str) -> Array:
    return np.moveaxis(plane, axes.index("S"), -1) if "S" in axes else plane


# --- OME -----------------------------------------------------------------------------------------------------------


def _ome_part(tif: Any, image: ome.OmeImage) -> _Part:
    last = max(image.ifds.values())
    count = len(tif.pages)
    if last >= count:
        raise Unusable(
            "image-truncated",
            f"is truncated or still being written: its metadata speaks of {last + 1} pages, the file has {count}",
        )
    page = tif.pages[min(image.ifds.values())]
    _check_extent(tif, tif.pages[last])
    samples, alpha, names = _colour(page)
    if page.dtype is None or (page.imagelength, page.imagewidth) != image.shape or page.imagedepth != 1:
        raise Unusable(
            "image-axes",
            f"contradicts itself: OME-XML says {image.shape[1]} × {image.shape[0]} pixels, "
            f"the pages {page.imagewidth} × {page.imagelength}",
        )
    check_size(image.shape, page.dtype.name, samples)
    channel_names = image.channel_names
    if samples > 1 and image.sizes["C"] == 1 and len(channel_names) != samples:
        channel_names = names
    described = Series(
        shape=image.shape,
        dtype=page.dtype.name,
        sizes=image.sizes,
        samples=samples,
        alpha=alpha,
        name=image.name,
        channel_names=channel_names,
        pixel_size_um=image.pixel_size_um,
        white=_white(page),
        planes=None if image.complete else frozenset(image.ifds),
    )
    return _Part(described, partial(_ome_plane, tif, image, described))


def _ome_plane(tif: Any, image: ome.OmeImage, described: Series, plane: Plane) -> Array:
    page = tif.pages[image.ifds[plane]]
    if (page.imagelength, page.imagewidth) != described.shape or page.dtype != np.dtype(described.dtype):
        raise Unusable("image-axes", f"contradicts itself: page {page.index} is of another size or type")
    return _inverted(_samples_last(_page(tif, page), page.axes), described.white)


# --- everything else -----------------------------------------------------------------------------------------------


def _plain_part(tif: Any, one: Any) -> _Part:
    shape, axes = tuple(one.get_shape(squeeze=False)), one.get_axes(squeeze=False)
    page = one.keyframe
    sizes = _sizes(shape, axes)
    check_count(math.prod(sizes.values()))
    if one.dtype is None or page.dtype is None:
        raise Unusable("image-unreadable", f"has a pixel type that is not supported ({page.bitspersample} bits)")
    _, alpha, names = _colour(page)
    samples = shape[axes.index("S")] if "S" in axes else 1
    alpha = alpha and samples > 1
    rows, columns = shape[axes.index("Y")], shape[axes.index("X")]
    check_size((rows, columns), one.dtype.name, samples)
    described = Series(
        shape=(rows, columns),
        dtype=one.dtype.name,
        sizes=sizes,
        samples=samples,
        alpha=alpha,
        name=one.name,
        channel_names=names if samples > 1 else (),
        pixel_size_um=_pixel_size(tif, page),
        white=_white(page),
    )
    read = _contiguous(tif, one, shape) if one.is_truncated else partial(_from_pages, tif, one, shape, axes)
    if not one.is_truncated:
        _check_extent(tif, one[len(one) - 1])
    return _Part(described, partial(_plain_plane, read, axes, shape, described.white))


def _sizes(shape: Sequence[int], axes: str) -> dict[str, int]:
    """Sizes of T, Z, C. Axes without a meaning are t when there is no T; others must have length 1."""
    sizes = {axis: length for axis, length in zip(axes, shape, strict=True) if axis in "TZC"}
    unknown = [length for axis, length in zip(axes, shape, strict=True) if axis in _UNKNOWN_AXES and length > 1]
    if unknown and sizes.get("T", 1) == 1:
        sizes["T"] = math.prod(unknown)
        unknown = []
    strange = {a: n for a, n in zip(axes, shape, strict=True) if a not in "TZCYXS" + _UNKNOWN_AXES and n > 1}
    if strange or unknown or len(set(axes) - set(_UNKNOWN_AXES)) != len([a for a in axes if a not in _UNKNOWN_AXES]):
        named = ", ".join(f"{_AXIS_NAMES.get(axis, axis)} ({length})" for axis, length in strange.items())
        raise Unusable(
            "image-axes",
            f"has axes other than T, Z and C: {named or axes} in {axes} {tuple(shape)}",
            "Export it as OME-TIFF with T, Z and C.",
        )
    # ImageJ and OME series declare all axes; an axis that tifffile only fills in with 1 says nothing.
    return {axis: length for axis, length in sizes.items() if length > 1}


def _index(axes: str, shape: Sequence[int], plane: Plane) -> tuple[int | slice, ...]:
    """The index of a plane in the whole array; Y, X and S stay."""
    position = dict(zip("TZC", plane, strict=True))
    unknown = [length for axis, length in zip(axes, shape, strict=True) if axis in _UNKNOWN_AXES]
    pages = iter([0] * len(unknown))
    if math.prod(unknown) > 1:  # they are t
        pages = iter([int(place) for place in np.unravel_index(position.pop("T"), unknown)])
    index: list[int | slice] = []
    for axis in axes:
        if axis in "YXS":
            index.append(slice(None))
        else:
            index.append(next(pages) if axis in _UNKNOWN_AXES else position.get(axis, 0))
    return tuple(index)


def _plain_plane(read: _Index, axes: str, shape: Sequence[int], white: int | None, plane: Plane) -> Array:
    pixels = read(_index(axes, shape, plane))
    kept = [axis for axis in axes if axis in "YXS"]
    wanted = [axis for axis in "YXS" if axis in kept]
    pixels = pixels.transpose([kept.index(axis) for axis in wanted])
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    return _inverted(pixels, white)


def _contiguous(tif: Any, one: Any, shape: Sequence[int]) -> _Index:
    """ImageJ writes one IFD for stacks beyond 4 GB: all planes follow each other in the file."""
    offset, dtype = one.dataoffset, one.dtype.newbyteorder(tif.byteorder)
    if offset is None or offset + math.prod(shape) * dtype.itemsize > tif.filehandle.size:
        raise Unusable("image-truncated", "is truncated: it holds fewer planes than its description says")
    mapped: Array = np.memmap(tif.filehandle.path, dtype, "r", offset, tuple(shape))
    return mapped.__getitem__


def _from_pages(tif: Any, one: Any, shape: Sequence[int], axes: str, index: tuple[int | slice, ...]) -> Array:
    """Find the page: it holds the last axes, the others count pages."""
    page_size = math.prod(one.keyframe.shape)
    split = next(k for k in range(len(shape) + 1) if math.prod(shape[k:]) == page_size)
    outer = [position if isinstance(position, int) else 0 for position in index[:split]]
    number = int(np.ravel_multi_index(outer, shape[:split])) if split else 0
    page = one[number]
    if page is None:
        raise Unusable("image-truncated", "is truncated: a page is missing")
    pixels = _page(tif, page).reshape(shape[split:])[index[split:]]
    missing = sum(axis in "YXS" for axis in axes[:split])  # a sample axis of length 1 before the page
    return pixels.reshape((1,) * missing + pixels.shape)


# --- pixel size ----------------------------------------------------------------------------------------------------


def _pixel_size(tif: Any, page: Any) -> tuple[float, float] | None:
    if tif.is_lsm and (lsm := tif.lsm_metadata):
        return lsm["VoxelSizeX"] * 1e6, lsm["VoxelSizeY"] * 1e6
    x, y = (_rational(page.tags.get(name)) for name in ("XResolution", "YResolution"))
    if not x or not y:
        return None
    if tif.is_imagej:
        return _imagej_size(tif.imagej_metadata or {}, x, y)
    unit = page.tags.get("ResolutionUnit")
    per = {2: 25400.0, 3: 10000.0}.get(int(unit.value) if unit is not None else 2)
    return believable(per / x, per / y) if per else None


def _imagej_size(described: Mapping[str, Any], x: float, y: float) -> tuple[float, float] | None:
    unit = micrometres(str(described.get("unit", "")))
    return (unit / x, unit / y) if unit else None


def _rational(tag: Any) -> float:
    if tag is None:
        return 0.0
    value = tag.value
    return value[0] / value[1] if isinstance(value, tuple) and len(value) == 2 and value[1] else 0.0
