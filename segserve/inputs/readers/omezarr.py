"""OME-Zarr (NGFF 0.4 and 0.5): the full-resolution level of multiscale images; bioformats2raw collections."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
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
    micrometres,
)

# Codecs that turn bytes into bytes. numcodecs also has 'pickle', which would run code out of the image.
_CODECS = {
    *("blosc", "bytes", "bz2", "crc32c", "delta", "endian", "fixedscaleoffset", "gzip", "lz4", "lzma", "packbits"),
    *("quantize", "sharding_indexed", "shuffle", "transpose", "zlib", "zstd"),
}


@dataclass(frozen=True, slots=True)
class _Image:
    folder: Path  # of the full-resolution array
    axes: tuple[str, ...]
    series: Series


def series(file: File) -> tuple[Series, ...]:
    """All images of the folder, from its JSON files alone."""
    return tuple(image.series for image in _images(Path(file.path)))


@dataclass(frozen=True, slots=True)
class _OmeZarr:
    images: Sequence[_Image]
    arrays: Sequence[Any]

    def read(self, series: int, plane: Plane) -> Array:
        position = dict(zip("tzc", plane, strict=True))
        index = tuple(slice(None) if axis in "yx" else position[axis] for axis in self.images[series].axes)
        pixels = np.asarray(self.arrays[series][index])
        axes = [axis for axis in self.images[series].axes if axis in "yx"]
        return pixels if axes == ["y", "x"] else pixels.T


@contextmanager
def open(path: str) -> Iterator[_OmeZarr]:
    """Open the arrays; chunks are read when a plane is."""
    import zarr

    images = _images(Path(path))
    yield _OmeZarr(images, [zarr.open_array(str(image.folder), mode="r") for image in images])


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    if path.stat().st_size > 2**26:
        raise Unusable("image-too-large", f"has {path.name} of more than 64 MiB")
    value = json.loads(path.read_text(encoding="utf-8"))
    return value if isinstance(value, dict) else {}


def _attributes(folder: Path) -> dict[str, Any]:
    """OME's metadata of a group: below `ome` in Zarr 3 (NGFF 0.5), plain in Zarr 2 (0.4)."""
    attributes = _json(folder / "zarr.json").get("attributes")
    if isinstance(attributes, dict):
        own = attributes.get("ome", attributes)
        return own if isinstance(own, dict) else {}
    return _json(folder / ".zattrs")


def _images(path: Path) -> list[_Image]:
    attributes = _attributes(path)
    if "multiscales" in attributes:
        return [_image(path, multiscale, attributes) for multiscale in attributes["multiscales"]]
    if "bioformats2raw.layout" in attributes:
        listed = _attributes(path / "OME").get("series")
        names = listed or [str(number) for number in range(_consecutive(path))]
        return [image for name in names for image in _images(_inside(path, str(name)))]
    if "plate" in attributes or "well" in attributes:
        raise Unusable(
            "image-series", "is a plate or well of many images", "Give the folder of one field: PLATE.zarr/A/1/0."
        )
    raise Unusable("image-axes", "is a Zarr folder without OME-Zarr metadata (multiscales); its axes are not known")


def _consecutive(path: Path) -> int:
    number = 0
    while (path / str(number)).is_dir():
        number += 1
    return number


def _inside(folder: Path, name: str) -> Path:
    """A path out of the metadata, which must not lead out of the folder."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise Unusable("image-unreadable", f"names a folder outside itself: {name!r}")
    return folder / name


def _image(path: Path, multiscale: Mapping[str, Any], attributes: Mapping[str, Any]) -> _Image:
    axes, units = _axes(multiscale)
    dataset = multiscale["datasets"][0]
    folder = _inside(path, str(dataset["path"]))
    shape, dtype = _array(folder)
    if len(shape) != len(axes):
        raise Unusable("image-axes", f"contradicts itself: axes {''.join(axes)} for an array of shape {shape}")
    lengths = dict(zip(axes, shape, strict=True))
    sizes = {axis.upper(): lengths[axis] for axis in "tzc" if axis in lengths}
    check_size((lengths["y"], lengths["x"]), dtype)
    check_count(math.prod(sizes.values()))
    channels = (attributes.get("omero") or {}).get("channels") or []
    labels = tuple(str(channel.get("label") or "") for channel in channels)
    return _Image(
        folder,
        axes,
        Series(
            shape=(lengths["y"], lengths["x"]),
            dtype=dtype,
            sizes=sizes,
            name=str(multiscale.get("name") or ""),
            channel_names=labels if len(labels) == sizes.get("C", 1) else (),
            pixel_size_um=_pixel_size(axes, units, dataset, multiscale),
        ),
    )


def _axes(multiscale: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and units; 0.3 has bare names, before that the order was fixed."""
    listed = multiscale.get("axes") or ["t", "c", "z", "y", "x"]
    names = tuple(axis["name"] if isinstance(axis, dict) else axis for axis in listed)
    units = tuple(str(axis.get("unit") or "") if isinstance(axis, dict) else "" for axis in listed)
    if len(set(names)) != len(names) or not {"y", "x"} <= set(names) <= set("tczyx"):
        raise Unusable("image-axes", f"has axes other than t, c, z, y, x: {', '.join(map(str, names))}")
    return names, units


def _array(folder: Path) -> tuple[tuple[int, ...], str]:
    """(shape, dtype) of an array whose codecs are harmless and whose chunks are not huge."""
    old = _json(folder / ".zarray")
    meta = old or _json(folder / "zarr.json")
    if not meta or "shape" not in meta:
        raise Unusable("image-unreadable", f"lacks its full-resolution level {folder.name!r}")
    dtype = np.dtype(meta["dtype"] if old else meta["data_type"])
    if dtype.kind not in "buif":
        raise Unusable("image-unreadable", f"holds values of type {dtype}")
    codecs = [*(meta.get("filters") or []), meta.get("compressor")] if old else list(_nested(meta["codecs"]))
    names = {str(codec.get("id") or codec.get("name")).removeprefix("numcodecs.") for codec in codecs if codec}
    if names - _CODECS:
        raise Unusable("image-unreadable", f"uses codecs that are not accepted: {', '.join(sorted(names - _CODECS))}")
    chunks = meta["chunks"] if old else meta["chunk_grid"]["configuration"]["chunk_shape"]
    if math.prod(chunks) * dtype.itemsize > MAX_PLANE_BYTES:
        raise Unusable("image-too-large", f"has chunks of {math.prod(chunks) * dtype.itemsize / 2**30:.1f} GiB")
    return tuple(int(length) for length in meta["shape"]), dtype.name


def _nested(codecs: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for codec in codecs:
        yield codec
        configuration = codec.get("configuration") or {}
        for key in ("codecs", "index_codecs"):
            yield from _nested(configuration.get(key) or [])


def _pixel_size(
    axes: Sequence[str], units: Sequence[str], dataset: Mapping[str, Any], multiscale: Mapping[str, Any]
) -> tuple[float, float] | None:
    transforms = [
        *(dataset.get("coordinateTransformations") or []),
        *(multiscale.get("coordinateTransformations") or []),
    ]
    scales = [one["scale"] for one in transforms if one.get("type") == "scale" and len(one["scale"]) == len(axes)]
    if not scales:
        return None
    sizes = []
    for axis in "xy":
        at = axes.index(axis)
        sizes.append((micrometres(units[at]) or 0.0) * math.prod(float(scale[at]) for scale in scales))
    return (sizes[0], sizes[1]) if min(sizes) > 0 else None
