"""Zeiss CZI through `czifile`. Scenes are series; tiles of a mosaic are put together; pyramid levels are left out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np

from segserve.inputs.base import Array, File, Plane, Series, Unusable, check_count, check_size
from segserve.inputs.readers.extra import library

_ZSTD0, _ZSTD1 = 5, 6  # compressions that are younger than czifile
_IGNORED = "MSB"  # tile, scene, acquisition block


@dataclass(frozen=True, slots=True)
class _Scene:
    origin: Mapping[str, int]
    lengths: Mapping[str, int]
    tiles: Sequence[Any]  # czifile.DirectoryEntryDV, in the order in which they are drawn
    samples: int
    dtype: np.dtype[Any]


def series(file: File) -> tuple[Series, ...]:
    """One series per scene."""
    with _file(file.path) as czi:
        names, size = _metadata(czi)
        return tuple(_series(scene, names, size) for scene in _scenes(czi))


@dataclass(frozen=True, slots=True)
class _Czi:
    scenes: Sequence[_Scene]

    def read(self, series: int, plane: Plane) -> Array:
        with _segments():
            return _assembled(self.scenes[series], plane)


def _assembled(scene: _Scene, plane: Plane) -> Array:
    rows, columns = scene.lengths["Y"], scene.lengths["X"]
    canvas = np.zeros((rows, columns, scene.samples), scene.dtype)
    wanted = {axis: place + scene.origin.get(axis, 0) for axis, place in zip("TZC", plane, strict=True)}
    found = False
    for tile in scene.tiles:
        extent = {one.dimension: one for one in tile.dimension_entries}
        inside = {axis: wanted[axis] - extent[axis].start for axis in "TZC" if axis in extent}
        if any(not 0 <= place < extent[axis].size for axis, place in inside.items()):
            continue
        axes = tile.axes[:-1]  # the last one counts samples
        pixels = _pixels(tile)[tuple(slice(None) if axis in "YX" else inside.get(axis, 0) for axis in axes)]
        if axes.index("Y") > axes.index("X"):
            pixels = pixels.swapaxes(0, 1)
        y, x = (extent[axis].start - scene.origin[axis] for axis in "YX")
        canvas[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
        found = True
    if not found:
        raise Unusable("image-truncated", f"lacks the plane t={plane[0]}, z={plane[1]}, c={plane[2]}")
    return canvas[..., 0] if scene.samples == 1 else canvas


@contextmanager
def open(path: str) -> Iterator[_Czi]:
    """Open; tiles are read one by one."""
    with _file(path) as czi:
        yield _Czi(_scenes(czi))


@contextmanager
def _file(path: str) -> Iterator[Any]:
    with _segments(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with library("czifile", "CZI").CziFile(path, multifile=False) as czi:
            yield czi


@contextmanager
def _segments() -> Iterator[None]:
    """czifile's own error, which is none of Python's."""
    missing = library("czifile", "CZI").czifile.SegmentNotFoundError
    try:
        yield
    except missing as error:
        raise Unusable("image-truncated", f"is truncated or damaged: {error}") from error


def _scenes(czi: Any) -> list[_Scene]:
    full = [entry for entry in czi.subblock_directory if entry.stored_shape == entry.shape]
    grouped: dict[int, list[Any]] = {}
    for entry in full:
        number = next((one.start for one in entry.dimension_entries if one.dimension == "S"), 0)
        grouped.setdefault(number, []).append(entry)
    return [_scene(grouped[number]) for number in sorted(grouped)]


def _scene(tiles: Sequence[Any]) -> _Scene:
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for tile in tiles:
        for one in tile.dimension_entries:
            first[one.dimension] = min(first.get(one.dimension, one.start), one.start)
            last[one.dimension] = max(last.get(one.dimension, 0), one.start + one.size)
    lengths = {axis: last[axis] - first[axis] for axis in first}
    strange = {axis: n for axis, n in lengths.items() if axis not in "TZCYX" + _IGNORED and n > 1}
    types = {tile.dtype for tile in tiles}
    if strange or len(types) > 1:
        what = f"axes other than T, Z, C: {strange}" if strange else f"channels of different types: {sorted(types)}"
        raise Unusable("image-axes", f"has {what}", "Export it as OME-TIFF with T, Z and C.")
    dtype = np.dtype(types.pop())
    ordered = sorted(tiles, key=lambda tile: tile.mosaic_index or 0)
    return _Scene(first, lengths, ordered, dtype.shape[0] if dtype.shape else 1, dtype.base)


def _series(scene: _Scene, names: Sequence[str], size: tuple[float, float] | None) -> Series:
    shape = (scene.lengths["Y"], scene.lengths["X"])
    check_size(shape, scene.dtype.name, scene.samples)
    sizes = {axis: scene.lengths[axis] for axis in "TZC" if axis in scene.lengths}
    check_count(math.prod(sizes.values()))
    colours = ("R", "G", "B", "A")[: scene.samples]
    return Series(
        shape=shape,
        dtype=scene.dtype.name,
        sizes=sizes,
        samples=scene.samples,
        alpha=scene.samples == 4,
        channel_names=colours if scene.samples > 1 else tuple(names) if len(names) == sizes.get("C", 1) else (),
        pixel_size_um=size,
    )


def _pixels(tile: Any) -> Array:
    """The pixels of a tile in the shape of its axes, samples as R, G, B."""
    segment = tile.data_segment()
    if tile.compression not in (_ZSTD0, _ZSTD1):
        return np.asarray(segment.data(resize=False))
    data = _unpacked(segment.data(raw=True), tile.compression)
    pixels = np.frombuffer(data, np.dtype(tile.dtype).base).reshape(tile.stored_shape)
    return pixels[..., [2, 1, 0, *range(3, pixels.shape[-1])]] if pixels.shape[-1] in (3, 4) else pixels


def _unpacked(data: bytes, compression: int) -> bytes:
    """Zstd0 is a bare frame; Zstd1 has a small header that may say that low and high bytes are stored apart."""
    import imagecodecs

    if compression == _ZSTD0:
        return bytes(imagecodecs.zstd_decode(data))
    apart = data[0] == 3 and data[1] == 1 and bool(data[2] & 1)
    plain = imagecodecs.zstd_decode(data[data[0] :])
    if not apart:
        return bytes(plain)
    halves = np.frombuffer(plain, np.uint8).reshape(2, -1)
    return np.ascontiguousarray(halves.T).tobytes()


def _metadata(czi: Any) -> tuple[tuple[str, ...], tuple[float, float] | None]:
    """(names of the channels, pixel size): CZI gives lengths in metres."""
    root = ET.fromstring(czi.metadata() or "<none/>")  # noqa: S314 - expat limits entity expansion since 2.4.1
    channels = root.findall(".//Information/Image/Dimensions/Channels/Channel")
    names = tuple(channel.get("Name", "") for channel in channels)
    sizes = {}
    for distance in root.findall(".//Scaling/Items/Distance"):
        sizes[distance.get("Id")] = float(distance.findtext("Value") or 0) * 1e6
    x, y = sizes.get("X", 0.0), sizes.get("Y", 0.0)
    return names, (x, y) if x > 0 and y > 0 else None
