"""QuPath: one GeoJSON FeatureCollection per source image, `<name>.qupath.json`, to be dropped onto the open image.

Corner coordinates; polygons with holes as such; `plane` within the geometry, as QuPath's ROITypeAdapters read it.
The suffix is not .geojson, because MLflow draws such files as maps of the earth with tiles from elsewhere.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from segserve.exporters.base import Exported, Object, Results, colour
from segserve.sheets import Sheet

# QuPath keeps annotations in a tree that it searches through; tens of thousands of objects are detections there.
MOST_ANNOTATIONS = 10_000
ALL_CHANNELS = -1
_NAMESPACE = uuid.UUID("6f9d6cc5-5e0e-4f0a-9c60-3f3d3a4f0c55")


def export(results: Results, folder: Path) -> Exported:
    """One file per source image."""
    return Exported(tuple(_write(results, sheet, folder / f"{sheet.name}.qupath.json") for sheet in results.sheets))


def _write(results: Results, sheet: Sheet, path: Path) -> Path:
    counts = results.document.counts()
    many = int(counts[list(sheet.indices)].sum()) > MOST_ANNOTATIONS
    kind = "detection" if many else "annotation"
    with path.open("wb") as stream:
        stream.write(b'{"type":"FeatureCollection","features":[')
        before = b"\n"
        for feature in _features(results, sheet, kind):
            stream.write(before + msgspec.json.encode(feature))
            before = b",\n"
        stream.write(b"\n]}\n")
    return path


def _features(results: Results, sheet: Sheet, kind: str) -> Iterator[dict[str, Any]]:
    for index in sheet.indices:
        plane = _plane(results, sheet, index)
        for item in results.objects(index):
            key = f"{results.document.model}/{results.images[index].sha256}/{sheet.name}/{plane}/{item.number}"
            yield {
                "type": "Feature",
                "id": str(uuid.uuid5(_NAMESPACE, key)),
                "geometry": {**_geometry(item), **({"plane": plane} if plane != _DEFAULT else {})},
                "properties": _properties(item, kind),
            }


_DEFAULT = {"c": ALL_CHANNELS, "z": 0, "t": 0}


def _plane(results: Results, sheet: Sheet, index: int) -> dict[str, int]:
    place = dict(zip(sheet.axes, sheet.place(results.images[index]), strict=True))
    # An object on one channel cannot be combined with what is drawn by hand, so only where channels must be told apart.
    return {"c": place.get("C", ALL_CHANNELS), "z": place.get("Z", 0), "t": place.get("T", 0)}


def _geometry(item: Object) -> dict[str, Any]:
    parts = [[[*ring.tolist(), ring[0].tolist()] for ring in polygon] for polygon in item.polygons()]
    if len(parts) == 1:
        return {"type": "Polygon", "coordinates": parts[0]}
    return {"type": "MultiPolygon", "coordinates": parts}


def _properties(item: Object, kind: str) -> dict[str, Any]:
    measurements: dict[str, float] = {"object_id": item.number}
    if item.score is not None:
        measurements["score"] = item.score
    return {
        "objectType": kind,
        "classification": {"name": item.label, "color": list(colour(item.label))},
        "measurements": measurements,
    }
