"""napari: per source image `<name>-shapes.csv`, in the form that napari saves and opens Shapes layers.

`index,shape-type,vertex-index,axis-0,…`: the last two axes are row and column, those before them t, z and c where the
source has them. napari's coordinates are pixel centres; the ring is the outline of the pixels, half a pixel around the
centres. For label images take the target `labels`: napari opens those as they are.
"""

from __future__ import annotations

import csv
from pathlib import Path

from segserve.exporters import outline
from segserve.exporters.base import Exported, Results
from segserve.sheets import Sheet


def export(results: Results, folder: Path) -> Exported:
    """One file per source image."""
    return Exported(tuple(_write(results, sheet, folder / f"{sheet.name}-shapes.csv") for sheet in results.sheets))


def _write(results: Results, sheet: Sheet, path: Path) -> Path:
    dimensions = len(sheet.axes) + 2
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("index", "shape-type", "vertex-index", *(f"axis-{axis}" for axis in range(dimensions))))
        number = 0
        for index in sheet.indices:
            place = sheet.place(results.images[index])
            for item in results.objects(index):
                for ring in outline.keyholes(item.polygons()):
                    corners = enumerate((ring - 0.5).tolist())
                    writer.writerows((number, "polygon", vertex, *place, y, x) for vertex, (x, y) in corners)
                    number += 1
    return path
