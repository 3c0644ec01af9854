"""Label images: per source image `<name>-labels.ome.tif` with the source's axes and pixel size, and one `labels.csv`.

The value of a pixel is the object's number in its image (`object_id` of objects.csv), 0 is background; where objects
overlap, the later one has the pixel. Images larger than `LARGE` pixels become an OME-Zarr folder (NGFF 0.4) with a
pyramid instead: `<name>-labels.ome.zarr`, in which `labels/objects` is the label image.
"""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segserve.exporters.base import Exported, Results
from segserve.findings import Finding, Place, Severity
from segserve.sheets import Sheet

LARGE = 1 << 28  # pixels of one plane from which a pyramid is written
CHUNK = 1024
BAND = 4 * CHUNK  # rows that are painted at once into a pyramid
SMALL = 1024  # a pyramid ends with a level that is no larger than this
_UNITS = {"T": "time", "C": "channel"}

Labels = npt.NDArray[Any]


def export(results: Results, folder: Path) -> Exported:
    """One label image per source image, and the table of what the values are."""
    paths, findings = [], []
    for sheet in results.sheets:
        write = _write_zarr if math.prod(sheet.shape) > LARGE else _write_tiff
        lost: dict[int, int] = {}
        paths.append(write(results, sheet, folder, lost))
        findings += [
            Finding(
                "export-overlap",
                Severity.WARNING,
                f"{count} pixels belong to several objects; in the label image each has one only.",
                Place(image=results.images[index].source),
                "Use a target that has polygons.",
            )
            for index, count in lost.items()
            if count
        ]
    return Exported((*paths, _write_table(results, folder / "labels.csv")), tuple(findings))


def _dtype(results: Results, sheet: Sheet) -> np.dtype[Any]:
    most = int(results.document.counts()[list(sheet.indices)].max())
    return np.dtype(np.uint16 if most < 2**16 else np.uint32)


def _paint(
    results: Results, sheet: Sheet, index: int, rows: tuple[int, int], dtype: np.dtype[Any], lost: dict[int, int]
) -> Labels:
    """A band of rows of one plane. Pixels that were painted over are counted in `lost`."""
    canvas = np.zeros((rows[1] - rows[0], sheet.shape[1]), dtype)
    painted = 0
    for item in results.objects(index, rows):
        skip, top = max(rows[0] - item.top, 0), max(item.top - rows[0], 0)
        mask = item.pixels[skip : max(rows[1] - item.top, 0)]
        view = canvas[top : top + mask.shape[0], item.left : item.left + mask.shape[1]]
        view[mask] = item.number
        painted += int(np.count_nonzero(mask))
    lost[index] = lost.get(index, 0) + painted - int(np.count_nonzero(canvas))
    return canvas


def _by_place(results: Results, sheet: Sheet) -> dict[tuple[int, ...], int]:
    return {sheet.place(results.images[index]): index for index in sheet.indices}


def _write_tiff(results: Results, sheet: Sheet, folder: Path, lost: dict[int, int]) -> Path:
    import tifffile

    path = folder / f"{sheet.name}-labels.ome.tif"
    dtype = _dtype(results, sheet)
    lengths = tuple(sheet.axes.values())
    images = _by_place(results, sheet)
    everything = (0, sheet.shape[0])

    def planes() -> Iterator[Labels]:
        for place in np.ndindex(lengths):
            index = images.get(place)
            if index is None:
                yield np.zeros(sheet.shape, dtype)
            else:
                yield _paint(results, sheet, index, everything, dtype, lost)

    metadata: dict[str, Any] = {"axes": "".join(sheet.axes) + "YX", "Name": sheet.name}
    if sheet.pixel_size_um is not None:
        for axis, size in zip("XY", sheet.pixel_size_um, strict=True):
            metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "µm"}
    shape = (*lengths, *sheet.shape)
    large = math.prod(shape) * dtype.itemsize > 2**31
    with tifffile.TiffWriter(path, ome=True, bigtiff=large) as writer:
        writer.write(
            planes() if lengths else next(planes()),
            shape=shape,
            dtype=dtype,
            photometric="minisblack",
            compression="zlib",
            metadata=metadata,
        )
    return path


def _write_zarr(results: Results, sheet: Sheet, folder: Path, lost: dict[int, int]) -> Path:
    import zarr

    path = folder / f"{sheet.name}-labels.ome.zarr"
    if path.exists():
        shutil.rmtree(path)
    dtype = _dtype(results, sheet)
    root = zarr.open_group(path, mode="w", zarr_format=2)
    root.create_group("labels").attrs["labels"] = ["objects"]
    group = root.create_group("labels/objects")
    lengths, shapes = tuple(sheet.axes.values()), _levels(sheet.shape)
    arrays = [
        group.create_array(
            str(level),
            shape=(*lengths, *shape),
            chunks=(*(1 for _ in lengths), min(CHUNK, shape[0]), min(CHUNK, shape[1])),
            dtype=dtype,
            chunk_key_encoding={"name": "v2", "separator": "/"},
        )
        for level, shape in enumerate(shapes)
    ]
    group.attrs.update(_attributes(sheet, len(shapes)))
    for place, index in _by_place(results, sheet).items():
        for first in range(0, sheet.shape[0], BAND):
            rows = (first, min(first + BAND, sheet.shape[0]))
            band = _paint(results, sheet, index, rows, dtype, lost)
            for level, array in enumerate(arrays):
                step = 2**level
                # Rows 0, step, 2 * step … of the whole image.
                part = band[-first % step :: step, ::step][:, : array.shape[-1]]
                begin = -(-first // step)
                part = part[: array.shape[-2] - begin]
                array[(*place, slice(begin, begin + part.shape[0]))] = part
    return path


def _levels(shape: tuple[int, int]) -> list[tuple[int, int]]:
    shapes = [shape]
    while max(shapes[-1]) > SMALL and min(shapes[-1]) > 1:
        shapes.append((shapes[-1][0] // 2, shapes[-1][1] // 2))
    return shapes


def _attributes(sheet: Sheet, levels: int) -> dict[str, Any]:
    """NGFF 0.4: https://ngff.openmicroscopy.org/0.4/#image-layout"""
    x, y = sheet.pixel_size_um or (1.0, 1.0)
    unit = {} if sheet.pixel_size_um is None else {"unit": "micrometer"}
    axes = [{"name": axis.lower(), "type": _UNITS.get(axis, "space")} for axis in sheet.axes]
    return {
        "multiscales": [
            {
                "version": "0.4",
                "name": sheet.name,
                "axes": [*axes, {"name": "y", "type": "space", **unit}, {"name": "x", "type": "space", **unit}],
                "datasets": [
                    {
                        "path": str(level),
                        "coordinateTransformations": [
                            {"type": "scale", "scale": [*(1.0 for _ in axes), y * 2**level, x * 2**level]}
                        ],
                    }
                    for level in range(levels)
                ],
            }
        ],
        "image-label": {"version": "0.4"},
    }


def _write_table(results: Results, path: Path) -> Path:
    """Which object each value of each label image is."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("file", "source", "t", "z", "c", "value", "label", "score"))
        for sheet in results.sheets:
            for index in sheet.indices:
                image = results.images[index]
                head = (sheet.name, image.source, *("" if at is None else at for at in (image.t, image.z, image.c)))
                document = results.document.image(index)
                for number, (label, score) in enumerate(zip(document.labels, document.scores.tolist(), strict=True), 1):
                    cells = (*head, number, label, "" if math.isnan(score) else score)
                    writer.writerow([_cell(value) for value in cells])
    return path


def _cell(value: object) -> object:
    """A text that a spreadsheet does not take for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
