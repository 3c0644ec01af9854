"""Label Studio: `label-studio.json` (tasks with predictions) and `label-studio.config.xml` (the labeling setup).

Points in percent of the image's size, from its upper left corner. Its polygons have no holes, so these are said by one
ring that walks to the hole and back; even-odd filling gives exactly the object.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import msgspec

from segserve.exporters import outline
from segserve.exporters.base import Exported, Object, Results, colour

FROM_NAME, TO_NAME = "label", "image"


def export(results: Results, folder: Path) -> Exported:
    """One task per plane."""
    tasks = []
    for sheet in results.sheets:
        for index in sheet.indices:
            shape = results.images[index].shape
            regions = [region for item in results.objects(index) for region in _regions(item, shape)]
            prediction: dict[str, Any] = {"model_version": results.document.model, "result": regions}
            scores = [region["score"] for region in regions if "score" in region]
            if scores:
                prediction["score"] = statistics.fmean(scores)
            tasks.append({"data": {"image": sheet.flat_name(results.images[index])}, "predictions": [prediction]})
    paths = (folder / "label-studio.json", folder / "label-studio.config.xml")
    paths[0].write_bytes(msgspec.json.encode(tasks))
    _write_setup(results, paths[1])
    return Exported(paths)


def _regions(item: Object, shape: tuple[int, int]) -> Iterator[dict[str, Any]]:
    for part, ring in enumerate(outline.keyholes(item.polygons())):
        name = f"object-{item.number}" + (f"-{part + 1}" if part else "")
        region = _region(item, ring, shape, name)
        yield region if item.score is None else {**region, "score": item.score}


def _region(item: Object, ring: outline.Ring, shape: tuple[int, int], name: str) -> dict[str, Any]:
    rows, columns = shape
    return {
        "id": name,
        "type": "polygonlabels",
        "from_name": FROM_NAME,
        "to_name": TO_NAME,
        "original_width": columns,
        "original_height": rows,
        "image_rotation": 0,
        "value": {
            "points": [[100 * x / columns, 100 * y / rows] for x, y in ring.tolist()],
            "closed": True,
            "polygonlabels": [item.label],
        },
    }


def _write_setup(results: Results, path: Path) -> None:
    view = ET.Element("View")
    ET.SubElement(view, "Image", {"name": TO_NAME, "value": "$image", "zoom": "true"})
    labels = ET.SubElement(view, "PolygonLabels", {"name": FROM_NAME, "toName": TO_NAME})
    for name in results.labels:
        shown = "".join(character if character.isprintable() else " " for character in name)
        ET.SubElement(labels, "Label", {"value": shown, "background": "#{:02x}{:02x}{:02x}".format(*colour(name))})
    ET.indent(view)
    ET.ElementTree(view).write(path, encoding="utf-8")
